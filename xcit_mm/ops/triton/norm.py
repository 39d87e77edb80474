"""Layer norm as the kernels need it: statistics of tokens for their prologues, and the backward pass.

No kernel writes the normed tokens: whoever needs them normalises what it loads, from 8 bytes for each token.
"""

from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on, row_tile

BACKWARD_PROGRAMS = 512  # a fixed number, so that sums over tokens are the same on every GPU


@triton.jit
def statistics_kernel(x, mean, rstd, tokens, eps, C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and reciprocal standard deviation of each token (BLOCK_T of them), in two passes over registers."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_T
    t = tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_C)
    real = start + t < tokens
    mask = real[:, None] & (c < C)[None, :]
    value = tl.load(x + start * C + (t[:, None] * C + c[None, :]), mask, 0.0).to(tl.float32)
    mu = tl.sum(value, 1) / C
    centred = tl.where(mask, value - mu[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / C
    tl.store(mean + start + t, mu, real)
    tl.store(rstd + start + t, 1.0 / tl.sqrt(variance + eps), real)


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


def statistics(x: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation of contiguous tokens (..., C): two (...), fp32."""
    C = x.shape[-1]
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    tokens, tile = mean.numel(), row_tile(C)
    if tokens:
        with on(x):
            statistics_kernel[(triton.cdiv(tokens, tile.tokens),)](
                x, mean, rstd, tokens, eps, C, tile.tokens, tile.channels, num_warps=tile.warps
            )
    return mean, rstd


def backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    size: Tensor,
    residual: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Backward pass of a layer norm.

    Args:
        grad (Tensor): Gradient of the normed tokens divided by ``size``, (..., C), contiguous, any floating type.
        x, mean, rstd (Tensor): Its input (..., C), contiguous, and what :func:`statistics` says of it.
        weight (Tensor): (C).
        size (Tensor): One fp32 number.
        residual (Tensor, optional): Added to the gradient of x, (..., C), contiguous.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Gradients of x, in its type; of weight and of bias, (C), fp32.
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
    by_weight, by_bias = sums.sum(0)
    return out, by_weight, by_bias


def size_of(gamma: Tensor) -> Tensor:
    """The size of LayerScale, one fp32 number above zero, which gradients are divided by on their way.

    fp16 has hardly any numbers for gradients times LayerScale at its published start of 1e-5; they are linear in it.
    """
    return gamma.detach().abs().amax().float().clamp_min(torch.finfo(torch.float32).tiny)
