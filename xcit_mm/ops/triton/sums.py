"""Sums of what many programs have left behind, in a fixed order.

There are up to some thousand parts of some hundred channels each: PyTorch's sum over the first of two such dimensions
has too few programs for it, and took 19 us on an H100 for 1.5 MB.
"""

import triton
import triton.language as tl
from torch import Tensor

from .launch import on

TILE = dict(BLOCK_P=256, BLOCK=32, num_warps=8)  # parts by channels, of a cache line


@triton.jit(do_not_specialize=['parts', 'size'])
def sum_kernel(partial, out, parts, size, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over the parts of a block of channels: (images, parts, size) -> (images, size)."""
    image = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, BLOCK_P).to(tl.int64)
    total = tl.zeros((BLOCK_P, BLOCK), tl.float32)
    for start in range(0, parts, BLOCK_P):
        mask = (start + p < parts)[:, None] & (c < size)[None, :]
        total += tl.load(partial + image * parts * size + ((start + p)[:, None] * size + c[None, :]), mask, 0.0)
    tl.store(out + image * size + c, tl.sum(total, 0), c < size)


def over_parts(partial: Tensor) -> Tensor:
    """(images, parts, ...) -> (images, ...), fp32 and contiguous."""
    images, parts, *shape = partial.shape
    out = partial.new_empty(images, *shape)
    size = out[0].numel()
    with on(partial):
        sum_kernel[(triton.cdiv(size, TILE['BLOCK']), images)](partial, out, parts, size, **TILE)
    return out
