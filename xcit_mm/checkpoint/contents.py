"""Checks of a checkpoint's content: names are strings, values are tensors that can be weights."""

from collections import OrderedDict
from typing import Dict

import torch
from torch import Tensor

from ..errors import CheckpointError, printable

# MMEngine and PyTorch take these for dicts without a check.
DICTS = ('state_dict', 'meta', 'message_hub')


def checked(checkpoint: dict) -> dict:
    """The same content in fresh dicts, without what a file may have attached to them.

    Raises:
        CheckpointError: If a part that has to be a dict is not one, or if a tensor's name is not a string.
    """
    checkpoint = dict(dict.items(checkpoint))
    for key in DICTS:
        value = checkpoint.get(key, {})
        if not isinstance(value, dict):
            raise CheckpointError(f'its {key!r} is a {type(value).__name__}, expected a dict')
    state = checkpoint.get('state_dict', checkpoint)
    for name in dict.keys(state):
        if not isinstance(name, str):
            raise CheckpointError(f'a tensor is named {printable(repr(name))}, expected text')
    if state is not checkpoint:
        metadata = getattr(state, '_metadata', None)
        checkpoint['state_dict'] = OrderedDict(dict.items(state))
        if isinstance(metadata, dict):
            entries = ((name, entry) for name, entry in dict.items(metadata) if isinstance(entry, dict))
            checkpoint['state_dict']._metadata = dict(entries)
    return checkpoint


def check_values(state: dict) -> None:
    """Check that a whole model's state dict holds tensors, and extra state of modules.

    Raises:
        CheckpointError: Naming the first value that is neither.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor) and not name.endswith('_extra_state'):
            raise CheckpointError(f'its {printable(name)} is a {type(value).__name__}, expected a tensor')


def check_tensors(tensors: Dict[str, Tensor]) -> None:
    """Check that an XCiT's tensors are dense, real and finite.

    Raises:
        CheckpointError: Naming the first tensor that is sparse, quantised, complex or without data, or that holds a NaN
            (in the backbone also an Inf).
    """
    for name, tensor in tensors.items():
        kind = _unusual_kind(tensor)
        if kind:
            raise CheckpointError(f'its tensor {printable(name)} is {kind}, expected ordinary numbers')
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if broken:
        more = f' and {len(broken) - 4} more' if len(broken) > 4 else ''
        raise CheckpointError(
            f'it holds values that are not finite (NaN or infinite) in {len(broken)} of {len(tensors)} tensors: '
            f'{", ".join(map(printable, broken[:4]))}{more}. The training that wrote it had diverged, or the file is '
            f'damaged; take an earlier checkpoint'
        )


def _unusual_kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return 'without data'
    if tensor.layout != torch.strided or tensor.is_nested:
        return 'sparse'
    if tensor.is_quantized:
        return 'quantised'
    return 'complex' if tensor.is_complex() else ''


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # A sum is fast, and finite only if all values are. Where it overflows, check the values one by one, as fp32,
    # which the weights will be.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor.float()).all())
