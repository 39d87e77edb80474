"""The numbers that the papers and releases published, and the addresses of the weights."""

from .records import (
    RELEASED_ARCHS,
    SIZE_NAMES,
    TASKS,
    TOP1,
    TOP1_MMPRETRAIN,
    TOP1_V2,
    TOP5_MMPRETRAIN,
    Model,
    Weights,
    all_models,
    all_weights,
    find_weights,
    read_table,
    weights_by_name,
)

__all__ = [
    'RELEASED_ARCHS',
    'SIZE_NAMES',
    'TASKS',
    'TOP1',
    'TOP1_MMPRETRAIN',
    'TOP1_V2',
    'TOP5_MMPRETRAIN',
    'Model',
    'Weights',
    'all_models',
    'all_weights',
    'find_weights',
    'read_table',
    'weights_by_name',
]
