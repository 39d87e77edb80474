"""One clear message instead of a traceback, for what a user can mend."""

import os
import sys
from contextlib import contextmanager

from ..checkpoint import CheckpointError


class UsageError(Exception):
    """A mistake in the command, the config or the data; the message says what was found and what to do."""


@contextmanager
def clear_errors():
    """End the program with exit code 1 and one message on :class:`UsageError` and :class:`CheckpointError`."""
    try:
        yield
    except (UsageError, CheckpointError) as error:
        # From a process that loads data, the message arrives as the last line of a traceback.
        message = str(error).rpartition(f'.{type(error).__name__}: ')[2]
        rank = f' (process {os.environ["RANK"]})' if int(os.environ.get('WORLD_SIZE', 1)) > 1 else ''
        print(f'\nerror{rank}: {message}', file=sys.stderr, flush=True)
        sys.exit(1)
