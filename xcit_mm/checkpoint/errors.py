class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says what was found, what was expected and what to do."""

    def naming(self, path) -> 'CheckpointError':
        """The same error, naming the file where the message does not yet."""
        return self if path is None or str(path) in str(self) else type(self)(f'{path}: {self}')
