"""Reading checkpoints: safely, in every layout XCiT was published in, and never half of one.

:mod:`layouts` knows the layouts and renames their tensors, :mod:`sources` fetches what is no file of this machine,
:mod:`loading` is what MMEngine calls to read a file, and :mod:`matching` is what the backbone calls before tensors are
copied into it.
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
