"""Folders that take long to make, made once for all processes of pytest-xdist."""

import fcntl
import os


def make_once(tmp_path_factory, name, make):
    """The folder of that name, after the first process that asks for it has called ``make(folder)``; to read alone."""
    root = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        root = root.parent  # that of all workers
    folder, done = root / name, root / f'{name}.done'
    with open(root / f'{name}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder
