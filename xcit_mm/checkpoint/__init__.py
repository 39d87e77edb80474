"""Reading checkpoints: safely, in every layout XCiT was published in, all or nothing.

:mod:`layouts` renames tensors, :mod:`sources` downloads, :mod:`loading` is what MMEngine calls to read a file,
:mod:`matching` is what the backbone calls before tensors are copied into it, and :mod:`fit` compares whole models.
"""

from ..errors import CheckpointError
from .layouts import LAYOUTS, Layout, find_layout
from .loading import load_checkpoint_file, read_checkpoint
from .matching import match_state_dict
from .sources import is_address

__all__ = [
    'LAYOUTS',
    'CheckpointError',
    'Layout',
    'find_layout',
    'is_address',
    'load_checkpoint_file',
    'match_state_dict',
    'read_checkpoint',
]
