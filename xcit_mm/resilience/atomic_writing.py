"""Atomic writes: a file is complete or not there at all."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Union

from mmengine.fileio import LocalBackend, register_backend

UNFINISHED = '.unfinished'
BACKEND = 'xcit_mm.whole_files'


def write_whole(data: bytes, path: Union[str, Path]) -> None:
    """Write to a temporary file beside ``path``, flush it to disk (fsync), and rename it.

    If the process or the machine dies at any moment, ``path`` is either the old file or the new one.

    Raises:
        OSError: For example if the disk is full. ``path`` is unchanged, and no temporary file is left.
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
    """Flush a temporary file to disk and rename it to ``path``."""
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
    """MMEngine's local backend with atomic writes: ``backend_args=dict(backend='xcit_mm.whole_files')``."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write bytes to a file; its folder is created if needed."""
        os.makedirs(os.path.dirname(filepath) or '.', exist_ok=True)
        write_whole(obj, filepath)


register_backend(BACKEND, WholeFilesBackend, force=True)
