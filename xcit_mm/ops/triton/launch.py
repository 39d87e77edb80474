"""What every launch of a kernel needs: the tensors' device, and tiles chosen from sizes by rule, never by timing."""

from contextlib import nullcontext
from typing import ContextManager, Dict, NamedTuple

import torch
from torch import Tensor

# Programs in flight that keep a large GPU busy: eight for each of an H100's 132 multiprocessors.
PROGRAMS = 1024
# Bytes of shared memory that every GPU from Ampere on gives to one program (99 KiB on an RTX 3090 or 4090).
SHARED_MEMORY = 99 * 1024


class Tile(NamedTuple):
    """A tile of tokens by channels and the warps that work on it."""

    tokens: int
    channels: int
    warps: int


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def row_tile(C: int, values_per_thread: int = 16) -> Tile:
    """Whole tokens, for reductions over channels: about 2048 values, so that no token is split between programs."""
    channels = power_of_2(C)
    tokens = max(1, 2048 // channels)
    return Tile(tokens, channels, max(1, min(8, tokens * channels // (32 * values_per_thread))))


def matmul_tile(rows: int, columns: int, images: int, dtype: torch.dtype, halved: bool = False) -> Dict[str, int]:
    """Tile of a matmul with sums in fp32, as keyword arguments of its kernel.

    128 x 128 sums are 64 registers for each thread of 8 warps: the fastest tile on an H100 for both layers of the MLP,
    with 3 stages of 64 in flight. Smaller tiles where there are too few to fill a GPU, or where the columns would not
    fill them. fp32 without tf32 runs on the ordinary units, whose operands take registers as well.

    Args:
        rows, columns, images (int): Of the result.
        dtype (torch.dtype): What is multiplied.
        halved (bool): For an epilogue that needs registers of its own.
    """
    if dtype == torch.float32:
        return dict(BLOCK_M=64, BLOCK_N=32, BLOCK_K=16, num_warps=4, num_stages=2)
    n = 128 if columns % 128 == 0 or columns > 512 else 64
    tiles = images * -(-rows // 128) * -(-columns // n)
    m = 64 if halved or tiles < PROGRAMS // 8 else 128
    return dict(BLOCK_M=m, BLOCK_N=n, BLOCK_K=64, num_warps=8 if m * n >= 8192 else 4, num_stages=3)


def norm_chunks(images: int, N: int, tokens: int) -> int:
    """Parts that the tokens of an image are divided into for a norm: as many as fill a GPU, of 4 tiles at least."""
    return max(1, min(-(-N // (4 * tokens)), -(-2 * PROGRAMS // images)))


def strip(B: int, H: int, W: int, C: int, columns: int) -> int:
    """Rows of a strip of so many columns that a convolution slides down.

    Every strip reads two rows more than it writes, so they are as long as leaves half of :data:`PROGRAMS`, from 8 rows
    on: 16 rows of 100 are the fastest on an H100.
    """
    beside = B * -(-W // columns) * -(-C // 64)
    rows = 8
    while rows < min(H, 64) and beside * -(-H // (2 * rows)) >= PROGRAMS // 2:
        rows *= 2
    return rows


def on(x: Tensor) -> ContextManager:
    """Inside, kernels are launched on the device of x."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return _NOTHING  # which costs less than setting the device that is set


_NOTHING = nullcontext()
