"""Checkpoints that survive a crash at any moment, and the search for the newest intact one."""

import errno
import os
import re
import shutil
import zipfile
from contextlib import contextmanager, suppress
from glob import escape, glob
from typing import Any, Dict, List, Optional, Tuple

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook

from ..errors import UsageError
from ..registry import HOOKS
from .atomic_writing import BACKEND, UNFINISHED, write_whole

POINTER = 'last_checkpoint'  # MMEngine's: a file that holds the path of the newest checkpoint
INTERRUPTED = 'interrupted.pth'


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's checkpoint hook with atomic writes.

    A checkpoint is written to a temporary file and renamed, so a file under its final name is complete. Old checkpoints
    are removed after the new one is on disk, so there is always at least one; for that moment the disk holds one more
    than ``max_keep_ckpts``.

    Args:
        *args, **kwargs: As for :class:`mmengine.hooks.CheckpointHook`.

    Raises:
        UsageError: If a checkpoint cannot be written. The message names the cause and the last good checkpoint.
    """

    backend_args: Optional[dict]
    file_backend: Any

    def before_train(self, runner) -> None:
        out_dir = str(self.out_dir or runner.work_dir)
        if self.backend_args is None and self.file_client_args is None and '://' not in out_dir:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        self.file_backend = _RemovesLater(self.file_backend)
        if is_main_process():
            for leftover in glob(os.path.join(escape(self.out_dir), f'*{UNFINISHED}')):
                with suppress(OSError):
                    os.remove(leftover)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        before = self.last_ckpt
        with explained(self.out_dir, before):
            super()._save_checkpoint_with_step(runner, step, meta)
            if is_main_process():
                write_pointer(runner.work_dir, self.last_ckpt)  # MMEngine has written it in place
        self._remove()
        if is_main_process():
            with suppress(OSError):
                os.remove(os.path.join(self.out_dir, INTERRUPTED))

    def _save_best_checkpoint(self, runner, metrics) -> None:
        with explained(self.out_dir, self.last_ckpt):
            super()._save_best_checkpoint(runner, metrics)
        self._remove()

    def _remove(self) -> None:
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.remove_now(keep={self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best})


class _RemovesLater:
    """A file backend that collects the paths to remove, and removes them when :meth:`remove_now` is called."""

    def __init__(self, backend):
        self._backend = backend
        self._paths: List[str] = []

    def __getattr__(self, name: str):
        if name == '_backend':  # of a copy that has no attributes yet
            raise AttributeError(name)
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._paths.append(path)

    rmtree = remove

    def remove_now(self, keep: set) -> None:
        for path in self._paths:
            if path in keep:
                continue
            if self._backend.isfile(path):
                self._backend.remove(path)
            elif self._backend.isdir(path):
                self._backend.rmtree(path)
        self._paths.clear()


def write_pointer(work_dir: str, checkpoint: str) -> None:
    """Write the path of the newest checkpoint where MMEngine looks for it (``last_checkpoint``)."""
    write_whole(checkpoint.encode(), os.path.join(work_dir, POINTER))


@contextmanager
def explained(folder: str, intact: Optional[str]):
    """Turn an ``OSError`` of writing a checkpoint into one message."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        with suppress(OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason += f', {shutil.disk_usage(folder).free / 2**20:.0f} MiB are free'
        before = f'the one before it, {intact}, is as it was' if intact else 'there was none before it in this run'
        raise UsageError(
            f'a checkpoint could not be written to {folder} ({reason}); {before}. When that is fixed, continue with '
            f'--resume'
        ) from error


def save_interrupted(runner, iterations: int) -> str:
    """Write ``interrupted.pth`` between two regular checkpoints. A collective: every process calls it.

    Args:
        runner (Runner): The runner, between two iterations.
        iterations (int): Iterations done so far.

    Returns:
        str: Its path. The next regular checkpoint removes it.
    """
    hook = next((hook for hook in runner.hooks if isinstance(hook, MMEngineCheckpointHook)), None)
    out_dir = str(getattr(hook, 'out_dir', None) or runner.work_dir)
    backend_args = getattr(hook, 'backend_args', None)
    if backend_args is None and '://' not in out_dir:
        backend_args = dict(backend=BACKEND)
    path = os.path.join(out_dir, INTERRUPTED)
    with explained(out_dir, getattr(hook, 'last_ckpt', None)):
        runner.save_checkpoint(
            out_dir,
            INTERRUPTED,
            meta=dict(epoch=runner.epoch, iter=iterations),
            by_epoch=False,
            backend_args=backend_args,
        )
        if is_main_process():
            write_pointer(runner.work_dir, path)
    barrier()
    return path


def damage(path: str) -> Optional[str]:
    """Read a whole local checkpoint, verify its checksums, and say what is wrong with it.

    Args:
        path (str): A file of :func:`torch.save`, or the folder that a run with sharded weights writes.

    Returns:
        str, optional: The reason; None if it is intact.
    """
    if os.path.isdir(path):
        parts = sorted(glob(os.path.join(escape(path), '**', '*.p*t*'), recursive=True))
        found = ((part, damage(part)) for part in parts if os.path.isfile(part))
        return next((f'{part}: {reason}' for part, reason in found if reason), None if parts else 'the folder is empty')
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except FileNotFoundError:
        return 'there is no such file'
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        return f'cut off or damaged, {os.path.getsize(path)} bytes ({error})'
    return f'damaged, the checksum of {broken} is wrong' if broken else None


def find_checkpoint(work_dir: str, newer_than: Optional[str] = None) -> Tuple[Optional[str], List[Tuple[str, str]]]:
    """Find the newest intact checkpoint to resume from.

    Candidates are the one that ``last_checkpoint`` names, those written after it (the run may have died before it
    updated the pointer), and, if these are damaged, the ones before.

    Args:
        work_dir (str): The work folder.
        newer_than (str, optional): Ignore checkpoints that are older than this file.

    Returns:
        tuple: The path or None, and the damaged checkpoints that are newer, each with the reason.
    """
    damaged: List[Tuple[str, str]] = []
    for path in _candidates(work_dir, os.path.getmtime(newer_than) if newer_than else 0.0):
        reason = damage(path)
        if reason is None:
            return path, damaged
        damaged.append((path, reason))
    return None, damaged


def has_checkpoint(work_dir: str) -> bool:
    """True if there is a checkpoint to resume from, intact or not."""
    return bool(_candidates(work_dir, 0.0))


def _candidates(work_dir: str, since: float) -> List[str]:
    """Checkpoints, the most recent first."""
    pointed = None
    with suppress(OSError), open(os.path.join(work_dir, POINTER)) as file:
        pointed = file.read().strip()
    if pointed and '://' in pointed:
        return [pointed]
    if pointed and not os.path.exists(pointed):  # the work folder was moved
        pointed = os.path.join(work_dir, os.path.basename(pointed))
    folders = {os.path.realpath(work_dir), os.path.realpath(os.path.dirname(pointed or work_dir))}
    files: Dict[str, tuple] = {}
    for folder in folders:
        for path in glob(os.path.join(escape(folder), '*.pth')):
            numbered = re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', os.path.basename(path))
            if numbered:
                files[path] = int(numbered[1]), os.path.getmtime(path)
    if not pointed or not os.path.exists(pointed):
        order = sorted(files, key=lambda path: files[path], reverse=True)
        interrupted = os.path.join(work_dir, INTERRUPTED)
        order = [interrupted, *order] if os.path.exists(interrupted) else order
        return [path for path in order if os.path.getmtime(path) >= since]
    pointed = os.path.realpath(pointed)
    files.setdefault(pointed, (None, os.path.getmtime(pointed)))
    number, written = files.pop(pointed)
    # A higher number with an earlier date is left from another run in the same folder.
    later = [p for p, (n, t) in files.items() if t > written and (number is None or n > number)]
    earlier = [p for p, (n, t) in files.items() if p not in later and (number is None or n < number)]
    by_date = [sorted(paths, key=lambda path: files[path][::-1], reverse=True) for paths in (later, earlier)]
    order = [*by_date[0], pointed, *by_date[1]]
    return [path for path in order if os.path.getmtime(path) >= since]
