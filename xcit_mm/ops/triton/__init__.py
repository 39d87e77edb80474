"""Fused kernels in Triton for NVIDIA GPUs from Ampere on, forward and backward; without Triton nothing here runs.

They take tensors only and know no model. The branches of a block are in :mod:`lpi`, :mod:`mlp`, :mod:`xca` and
:mod:`token_form`, the patch embedding is in :mod:`stem`; :mod:`operators` gives them autograd, and to torch.compile.
They are made of :mod:`norm`, :mod:`depthwise`, :mod:`matmul` and :mod:`layer_scale`, whose tiles
follow from the rules in :mod:`launch`. These modules import Triton; this one does not.
"""

from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Tuple

import torch
from torch import Tensor

HALF = torch.float16, torch.bfloat16
# Channels of a head of XCA, whose d x d sums one program holds: as many as published models have.
LARGEST_HEAD = 64


def available(x: Tensor) -> bool:
    """Whether the kernels can run where x is: an NVIDIA GPU of compute capability 8.0 or more, with Triton."""
    return x.is_cuda and _runs_on(x.device)


def suits(part: str, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels of a part of a block are the faster choice for tokens (B, N, C).

    On an H100 all of them are, in half precision, for 15,200 tokens of one image as for 200,704 of 256 (docs/gpu.md):
    they save passes over memory. In fp32 without tf32 matmuls take so long that cuBLAS is faster; LPI has none.

    Args:
        part (str): 'lpi', 'xca' or 'mlp'; or 'stem' for images (B, C, H, W).
        dtype (torch.dtype): Of the matmuls: that of autocast where it is on.
    """
    if not available(x) or x.numel() == 0 or x.dtype not in (*HALF, torch.float32):
        return False
    if part == 'stem':
        return dtype in HALF and x.shape[1] <= 7  # 63 taps: one step of a matmul
    if x.shape[-1] % 8:
        return False
    return dtype in HALF or part == 'lpi' and dtype == torch.float32


@torch.compiler.assume_constant_result
def _runs_on(device: torch.device) -> bool:
    return _has_triton() and _capability(device) >= (8, 0)


@lru_cache(maxsize=None)
def _has_triton() -> bool:
    if torch.version.hip is not None or find_spec('triton') is None:
        return False
    return int(version('triton').split('.')[0]) >= 3  # PyTorch 2.4 came with the first


@lru_cache(maxsize=None)
def _capability(device: torch.device) -> Tuple[int, int]:
    return torch.cuda.get_device_capability(device)
