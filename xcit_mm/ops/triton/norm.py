"""Layer norm of tokens, forward and backward.

The normed tokens are written, in half precision a pass over memory, and not kept for the backward pass. A norm in the
prologue of a matmul or of a convolution saves that pass, but on an H100 takes longer (docs/gpu.md): its values pass
through registers instead of going from memory to the tensor cores.
"""

from typing import List, Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import norm_chunks, on, row_tile
from .sums import over_parts

BACKWARD_PROGRAMS = 512  # a fixed number, so that sums over tokens are the same on every GPU


@triton.jit(do_not_specialize=['N', 'chunk'])
def forward_kernel(
    x, weight, bias, normed, mean, rstd, sums, N, chunk, eps,
    C: tl.constexpr, HAS_SUMS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Layer norm of a chunk of an image's tokens (images, N, C), BLOCK_T at a time, in two passes over registers.

    Args:
        normed, mean, rstd: Written: the normed tokens; mean and reciprocal standard deviation of each token.
        sums (images, chunks, C): Written if HAS_SUMS: sums of the normed tokens, as rounded, over the chunk.
    """
    image = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    t = tl.arange(0, BLOCK_T)
    of_channel = c < C
    factor = tl.load(weight + c, of_channel, 0.0).to(tl.float32)[None, :]
    offset = tl.load(bias + c, of_channel, 0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    first = tl.program_id(0) * chunk
    for start in range(first, tl.minimum(first + chunk, N), BLOCK_T):
        real = start + t < tl.minimum(first + chunk, N)
        mask = real[:, None] & of_channel[None, :]
        token = image * N + start
        place = token * C + (t[:, None] * C + c[None, :])
        value = tl.load(x + place, mask, 0.0).to(tl.float32)
        mu = tl.sum(value, 1) / C
        value = tl.where(mask, value - mu[:, None], 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(value * value, 1) / C + eps)
        result = (value * inverse[:, None] * factor + offset).to(normed.dtype.element_ty)
        tl.store(normed + place, result, mask)
        tl.store(mean + token + t, mu, real)
        tl.store(rstd + token + t, inverse, real)
        if HAS_SUMS:
            total += tl.where(mask, result.to(tl.float32), 0.0)
    if HAS_SUMS:
        place = (image * tl.num_programs(0) + tl.program_id(0)) * C + c
        tl.store(sums + place, tl.sum(total, 0), of_channel)


@triton.jit(do_not_specialize=['N', 'chunk'])
def branch_kernel(
    grad,
    keep,
    out,
    sums,
    N,
    chunk,
    C: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Cast keep grad for a chunk of an image's tokens (images, N, C), and its sums (images, chunks, C), as rounded."""
    image = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    t = tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    first = tl.program_id(0) * chunk
    end = tl.minimum(first + chunk, N)
    for start in range(first, end, BLOCK_T):
        mask = (start + t < end)[:, None] & (c < C)[None, :]
        place = (image * N + start) * C + (t[:, None] * C + c[None, :])
        value = tl.load(grad + place, mask, 0.0).to(tl.float32)
        if HAS_KEEP:
            value = value * tl.load(keep + image).to(tl.float32)
        value = value.to(out.dtype.element_ty)
        tl.store(out + place, value, mask)
        total += value.to(tl.float32)
    place = (image * tl.num_programs(0) + tl.program_id(0)) * C + c
    tl.store(sums + place, tl.sum(total, 0), c < C)


@triton.jit
def backward_kernel(
    grad, x, mean, rstd, weight, residual, size, out, sums, tokens,
    C: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of tokens from that of their norm, plus that of the residual; and this program's part of two sums.

    Args:
        grad (tokens, C): Gradient of the normed tokens, divided by ``size``.
        residual (tokens, C): Added to the result.
        size: One fp32 factor.
        sums (programs, 2, C): Gradients of weight and bias.
    """
    c = tl.arange(0, BLOCK_C)
    t = tl.arange(0, BLOCK_T)
    of_channel = c < C
    w = tl.load(weight + c, of_channel, 0.0).to(tl.float32)
    factor = tl.load(size)
    by_weight = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    by_bias = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    step = tl.num_programs(0).to(tl.int64) * BLOCK_T
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK_T, tokens, step):
        real = start + t < tokens
        mask = real[:, None] & of_channel[None, :]
        place = start * C + (t[:, None] * C + c[None, :])
        mu = tl.load(mean + start + t, real, 0.0)
        inverse = tl.load(rstd + start + t, real, 0.0)
        value = tl.load(x + place, mask, 0.0).to(tl.float32)
        normed = tl.where(mask, (value - mu[:, None]) * inverse[:, None], 0.0)
        g = tl.load(grad + place, mask, 0.0).to(tl.float32) * factor
        by_weight += g * normed
        by_bias += g
        g = g * w[None, :]
        along = tl.sum(g * normed, 1) / C
        level = tl.sum(g, 1) / C
        result = (g - level[:, None] - normed * along[:, None]) * inverse[:, None]
        if HAS_RESIDUAL:
            result += tl.load(residual + place, mask, 0.0).to(tl.float32)
        tl.store(out + place, result.to(out.dtype.element_ty), mask)
    place = tl.program_id(0) * (2 * C) + c
    tl.store(sums + place, tl.sum(by_weight, 0), of_channel)
    tl.store(sums + place + C, tl.sum(by_bias, 0), of_channel)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, summed: bool = False
) -> Tuple[Tensor, ...]:
    """Layer norm of contiguous tokens (B, N, C), with what its backward pass needs.

    Args:
        weight, bias (Tensor): (C).
        dtype (torch.dtype): Of the normed tokens.
        summed (bool): Also return the sum of an image's normed tokens.

    Returns:
        tuple[Tensor]: The normed tokens (B, N, C); mean and reciprocal standard deviation of each token, (B, N), fp32;
        and the sums (B, C), fp32, if they are wanted.
    """
    B, N, C = x.shape
    normed = torch.empty_like(x, dtype=dtype)
    mean, rstd = (x.new_empty(B, N, dtype=torch.float32) for _ in range(2))
    tile = row_tile(C)
    chunks, chunk = _chunks(B, N, tile.tokens)
    sums = x.new_empty(B, chunks, C, dtype=torch.float32) if summed else mean
    with on(x):
        forward_kernel[(chunks, B)](
            x, weight, bias, normed, mean, rstd, sums, N, chunk, eps, C, summed, tile.tokens, tile.channels,
            num_warps=tile.warps,
        )  # fmt: skip
    return (normed, mean, rstd, over_parts(sums)) if summed else (normed, mean, rstd)


def branch_gradient(
    grad: Tensor, keep: Optional[Tensor], dtype: torch.dtype, by_image: bool = False
) -> Tuple[Tensor, Tensor]:
    """keep grad in the type of the matmuls, (B, N, C), and its sums over all tokens, (1, C) in fp32, or (B, C).

    Args:
        grad (Tensor): Gradient of a block's output, (B, N, C), contiguous.
        keep (Tensor, optional): Stochastic depth, (B, 1, 1).
        by_image (bool): Sums over the tokens of each image.
    """
    B, N, C = grad.shape
    tile = row_tile(C)
    chunks, chunk = _chunks(B, N, tile.tokens)
    out, sums = torch.empty_like(grad, dtype=dtype), grad.new_empty(B, chunks, C, dtype=torch.float32)
    with on(grad):
        branch_kernel[(chunks, B)](
            grad, grad if keep is None else keep, out, sums, N, chunk, C, keep is not None, tile.tokens, tile.channels,
            num_warps=tile.warps,
        )  # fmt: skip
    return out, over_parts(sums if by_image else sums.view(1, -1, C))


def _chunks(B: int, N: int, tokens: int) -> Tuple[int, int]:
    """Chunks of an image's tokens for one program each, and the tokens of one."""
    chunk = triton.cdiv(triton.cdiv(N, norm_chunks(B, N, tokens)), tokens) * tokens
    return triton.cdiv(N, chunk), chunk


def backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    size: Tensor,
    residual: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """Backward pass of a layer norm.

    Args:
        grad (Tensor): Gradient of the normed tokens divided by ``size``, (..., C), contiguous, any floating type.
        x, mean, rstd (Tensor): Its input (..., C), contiguous, and what :func:`layer_norm` says of it.
        weight (Tensor): (C).
        size (Tensor): One fp32 number.
        residual (Tensor, optional): Added to the gradient of x, (..., C), contiguous.

    Returns:
        tuple[Tensor, Tensor]: Gradients of x, in its type; of weight and bias, (2, C), fp32.
    """
    C = x.shape[-1]
    tokens, tile = mean.numel(), row_tile(C)
    programs = max(1, min(BACKWARD_PROGRAMS, triton.cdiv(tokens, tile.tokens)))
    out, sums = torch.empty_like(x), x.new_empty(programs, 2, C, dtype=torch.float32)
    added = grad if residual is None else residual
    with on(x):
        backward_kernel[(programs,)](
            grad, x, mean, rstd, weight, added, size, out, sums, tokens, C, residual is not None,
            tile.tokens, tile.channels, num_warps=tile.warps,
        )  # fmt: skip
    return out, over_parts(sums.unsqueeze(0))[0]


def like(x: Tensor, keeps: bool) -> List[Tensor]:
    """Empty tensors like a branch's result and, if it keeps them, what :func:`layer_norm` says of its tokens."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [out, *(x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))] if keeps else [out]
