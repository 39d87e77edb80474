"""mmcv's Python code with operators of one's choice."""

import contextlib
import sys

import mmcv.ops  # noqa: F401


@contextlib.contextmanager
def operators(module):
    """Let mmcv's Python code call the operators of ``module``, whichever are installed."""
    users = [m for name, m in sys.modules.items() if name.startswith('mmcv.ops.') and hasattr(m, 'ext_module')]
    before = [user.ext_module for user in users]
    for user in users:
        user.ext_module = module
    try:
        yield
    finally:
        for user, old in zip(users, before):
            user.ext_module = old
