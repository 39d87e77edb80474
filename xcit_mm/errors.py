"""One clear message instead of a traceback, for mistakes that users can fix."""

import errno
import os
import sys
from contextlib import contextmanager

# Disk errors that are not bugs.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
# Messages of PyTorch's backends when another process has died.
GONE = ('Connection closed by peer', 'Connection reset by peer', 'NCCL', 'Broken pipe', 'Socket Timeout', 'Timed out')


class UsageError(Exception):
    """A mistake in the command, the config or the data; the message says what was found and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says what was found, what was expected and what to do."""

    def naming(self, path) -> 'CheckpointError':
        """The same error with the file in its message."""
        return self if path is None or str(path) in str(self) else type(self)(f'{path}: {self}')


def printable(text, limit: int = 80) -> str:
    """A name from a file as one short line, with control characters escaped (they could drive a terminal)."""
    text = str(text)
    text = text[:limit] + ('...' if len(text) > limit else '')
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


@contextmanager
def clear_errors():
    """Exit with code 1 and one message instead of a traceback.

    On :class:`UsageError` and :class:`CheckpointError`, when the disk is full or cannot be written to, and when another
    process of the run is gone.
    """
    try:
        yield
    except (UsageError, CheckpointError) as error:
        # An error of a data-loading worker arrives as a traceback whose last line is the message.
        _end(str(error).rpartition(f'.{type(error).__name__}: ')[2])
    except OSError as error:
        if error.errno not in DISK:
            raise
        file = f' ({error.filename})' if error.filename else ''
        _end(f'{os.strerror(error.errno)}{file}; checkpoints that were saved before are as they were')
    except RuntimeError as error:
        if int(os.environ.get('WORLD_SIZE', 1)) == 1 or not any(text in str(error) for text in GONE):
            raise
        _end(
            f'another process of the run has ended, and this one ends too ({str(error).splitlines()[0][:300]}). '
            f'The output of the other says why; --resume continues from the last checkpoint'
        )


def _end(message: str) -> None:
    rank = f' (process {os.environ["RANK"]})' if int(os.environ.get('WORLD_SIZE', 1)) > 1 else ''
    print(f'\nerror{rank}: {message}', file=sys.stderr, flush=True)
    sys.exit(1)
