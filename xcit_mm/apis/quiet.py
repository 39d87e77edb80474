"""Build models without hundreds of log lines."""

import logging
from contextlib import contextmanager


@contextmanager
def quiet():
    """Suppress log records up to INFO inside the context, such as MMEngine's list of all initialised parameters."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.INFO))
    try:
        yield
    finally:
        logging.disable(level)
