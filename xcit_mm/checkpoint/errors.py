"""The error of checkpoints, and how names out of a file are printed in it."""


def printable(text, limit: int = 80) -> str:
    """A name from a file on one short line: control characters, which could move a terminal's cursor, are escaped."""
    text = str(text)
    text = text[:limit] + ('...' if len(text) > limit else '')
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says what was found, what was expected and what to do."""

    def naming(self, path) -> 'CheckpointError':
        """The same error, naming the file where the message does not yet."""
        return self if path is None or str(path) in str(self) else type(self)(f'{path}: {self}')
