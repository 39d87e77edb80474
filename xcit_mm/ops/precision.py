"""Types: what autocast asks for, and how to keep half precision in its range."""

from contextlib import nullcontext
from typing import ContextManager, Optional, Tuple

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def _autocasts(x: Tensor) -> bool:
    if x.is_meta:  # knows no autocast
        return False
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.is_autocast_enabled(x.device.type)
    return torch.is_autocast_cpu_enabled() if x.device.type == 'cpu' else torch.is_autocast_enabled()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Type of matmuls with x: autocast's where it is on, else that of x."""
    kind = x.device.type
    if not _autocasts(x):
        return x.dtype
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(kind)
    return torch.get_autocast_cpu_dtype() if kind == 'cpu' else torch.get_autocast_gpu_dtype()


def without_autocast(x: Tensor) -> ContextManager:
    """Inside, everything has the type of its inputs."""
    # Entering autocast takes longer than a small kernel on a GPU.
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The type of sums over many tokens, which half precision would round or overflow."""
    return torch.promote_types(dtype, torch.float32)


def in_range(gamma: Tensor, dtype: torch.dtype) -> Tuple[Tensor, Optional[Tensor]]:
    """Split LayerScale into a part that a matrix of this type can hold, and a factor left for the results, if any.

    fp16 has hardly any digits for a matrix times LayerScale at its published start of 1e-5.
    """
    if dtype != torch.float16:
        return gamma, None
    size = gamma.detach().float().abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    return gamma / size, size
