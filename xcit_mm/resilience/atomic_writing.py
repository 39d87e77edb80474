"""Files that are there whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Union

from mmengine.fileio import LocalBackend, register_backend

UNFINISHED = '.unfinished'
BACKEND = 'xcit_mm.whole_files'


def write_whole(data: bytes, path: Union[str, Path]) -> None:
    """Write a file beside its place, wait until it is on the disk, and give it its name.

    Whenever the process or the machine ends, there is the file as it was before or as it is to be.

    Raises:
        OSError: For example of a full disk; the file is as it was, and nothing is left beside it.
    """
    aside = f'{path}{UNFINISHED}'
    try:
        with open(aside, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        with suppress(OSError):
            os.remove(aside)
        raise
    _settle_folder(path)


def give_name(aside: Union[str, Path], path: Union[str, Path]) -> None:
    """Wait until a file that was written beside its place is on the disk, and give it its name."""
    with open(aside, 'rb+') as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
    _settle_folder(path)


def _settle_folder(path: Union[str, Path]) -> None:
    with suppress(OSError, AttributeError):  # systems that do not open folders
        folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class WholeFilesBackend(LocalBackend):
    """MMEngine's local files, written by :func:`write_whole`: ``backend_args=dict(backend='xcit_mm.whole_files')``."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write bytes to a file, and make its folder if there is none."""
        os.makedirs(os.path.dirname(filepath) or '.', exist_ok=True)
        write_whole(obj, filepath)


register_backend(BACKEND, WholeFilesBackend, force=True)
