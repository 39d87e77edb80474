"""Building models without hundreds of lines."""

import logging
from contextlib import contextmanager


@contextmanager
def quiet():
    """In here MMEngine does not list the start value of every single parameter, nor what it loads from where."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.INFO))
    try:
        yield
    finally:
        logging.disable(level)
