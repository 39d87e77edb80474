"""The model's maths on every machine, behind one door.

:mod:`~xcit_mm.ops.dispatch` decides how each part is computed, :mod:`~xcit_mm.ops.reference` says what is computed, and
a module for each part does it fast. None of them knows a model.
"""

from .dispatch import (
    MODES,
    add_lpi,
    add_mlp,
    add_xca,
    attend_class,
    current_mode,
    deconvolve,
    embed_patches,
    may_overwrite,
    may_use_weights,
    use,
)
from .untouched import published

__all__ = [
    'MODES',
    'add_lpi',
    'add_mlp',
    'add_xca',
    'attend_class',
    'current_mode',
    'deconvolve',
    'embed_patches',
    'may_overwrite',
    'may_use_weights',
    'published',
    'use',
]
