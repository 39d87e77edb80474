"""LayerScale in the backward pass of a branch."""

from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on, power_of_2
from .sums import over_parts

LAST_LAYER = dict(BLOCK_D=4, BLOCK_K=128, num_warps=4)
AFFINE_MAP = dict(BLOCK_K=32, BLOCK_D=64, num_warps=4)


@triton.jit
def split_kernel(gamma, scaled, size, C: tl.constexpr, BLOCK_C: tl.constexpr):
    c = tl.arange(0, BLOCK_C)
    value = tl.load(gamma + c, c < C, 0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(value), 0), 1.1754943508222875e-38)
    tl.store(scaled + c, value / largest, c < C)
    tl.store(size, largest)


def split(gamma: Tensor) -> Tuple[Tensor, Tensor]:
    """LayerScale over its size, (C), and its size, one number above zero: its largest absolute value. Both fp32.

    fp16 has hardly any numbers for gradients times LayerScale at its published start of 1e-5. They are linear in it, so
    that they are divided by its size on their way.
    """
    C = len(gamma)
    scaled, size = (gamma.new_empty(shape, dtype=torch.float32) for shape in (C, ()))
    with on(gamma):
        split_kernel[(1,)](gamma, scaled, size, C, power_of_2(C), num_warps=4)
    return scaled, size


def scaled_rows(weight: Tensor, scaled: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight (D, K) times LayerScale over its size, contiguous, rounded to this type once."""
    return torch.mul(weight, scaled[:, None], out=weight.new_empty(weight.shape, dtype=dtype))


@triton.jit(do_not_specialize=['parts'])
def last_layer_kernel(
    product, total, weight, bias, gamma, by_weight, by_bias, by_gamma, factor, parts,
    D: tl.constexpr, K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """See :func:`last_layer`; ``product`` (parts, D, K) is summed over its parts, in their order, and multiplied."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    real = d < D
    scale = tl.load(gamma + d, real, 0.0).to(tl.float32)
    along = tl.zeros((BLOCK_D, BLOCK_K), tl.float32)
    for start in range(0, K, BLOCK_K):
        mask = real[:, None] & (start + k < K)[None, :]
        place = d[:, None] * K + (start + k)[None, :]
        value = tl.zeros((BLOCK_D, BLOCK_K), tl.float32)
        for part in range(parts):
            value += tl.load(product + tl.cast(part, tl.int64) * (D * K) + place, mask, 0.0)
        value = value * factor
        along += value * tl.load(weight + place, mask, 0.0).to(tl.float32)
        tl.store(by_weight + place, value * scale[:, None], mask)
    level = tl.load(total + d, real, 0.0)
    tl.store(by_bias + d, level * scale, real)
    tl.store(by_gamma + d, tl.sum(along, 1) + level * tl.load(bias + d, real, 0.0).to(tl.float32), real)


def last_layer(
    product: Tensor, total: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, factor: float = 1.0
) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of a linear layer y = W h + b before LayerScale, and of LayerScale.

    Args:
        product (Tensor): Sum over the tokens of g h^T, where g is the gradient of gamma y, in parts (parts, D, K), when
            multiplied by ``factor``; contiguous, fp32.
        total (Tensor): Sum of g, (1, D), fp32.
        weight, bias, gamma (Tensor): W (D, K), b (D) and (D).

    Returns:
        tuple[Tensor, Tensor, Tensor]: Of W, b and gamma, fp32.
    """
    parts, D, K = product.shape
    by_weight, by_bias, by_gamma = (product.new_empty(shape) for shape in ((D, K), (D,), (D,)))
    with on(product):
        last_layer_kernel[(triton.cdiv(D, LAST_LAYER['BLOCK_D']),)](
            product, total, weight.contiguous(), bias, gamma, by_weight, by_bias, by_gamma, factor, parts, D, K,
            **LAST_LAYER,
        )  # fmt: skip
    return by_weight, by_bias, by_gamma


@triton.jit
def affine_map_kernel(
    product, total, matrix, offset, scaled, by_map, scaled_map, sums,
    C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """See :func:`affine_map`, for BLOCK_K rows and BLOCK_D columns; ``sums`` (B, blocks of rows, C) are of by_gamma."""
    image = tl.program_id(2).to(tl.int64)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    real = d < C
    mask = (k < C)[:, None] & real[None, :]
    place = k[:, None] * C + d[None, :]
    factor = tl.load(scaled + d, real, 0.0)
    value = tl.load(product + image * (C * C) + place, mask, 0.0)
    own = tl.load(matrix + image * (C * C) + place, mask, 0.0)
    along = tl.sum(value * own, 0)
    tl.store(by_map + image * ((C + 1) * C) + place, value * factor[None, :], mask)
    tl.store(scaled_map + image * (C * C) + place, (own * factor[None, :]).to(scaled_map.dtype.element_ty), mask)
    if tl.program_id(0) == 0:
        level = tl.load(total + image * C + d, real, 0.0)
        along += level * tl.load(offset + image * C + d, real, 0.0)
        tl.store(by_map + image * ((C + 1) * C) + C * C + d, level * factor, real)
    tl.store(sums + (image * tl.num_programs(0) + tl.program_id(0)) * C + d, along, real)


def affine_map(
    product: Tensor, total: Tensor, matrix: Tensor, offset: Tensor, scaled: Tensor, dtype: torch.dtype
) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradient of each image's affine map y = h P^T + p before LayerScale, and of LayerScale.

    Args:
        product (Tensor): Sum over the tokens of h^T g, where g is the gradient of gamma y, (B, C, C), fp32.
        total (Tensor): Sum of g, (B, C), fp32.
        matrix, offset (Tensor): P^T (B, C, C) and p (B, C), fp32.
        scaled (Tensor): LayerScale over its size, (C).

    Returns:
        tuple[Tensor, Tensor, Tensor]: The gradient of P^T and below it that of p, over the size of LayerScale,
        (B, C + 1, C), fp32; P^T times ``scaled``, in the given type; the gradient of LayerScale, (C), fp32.
    """
    B, C, _ = product.shape
    blocks = triton.cdiv(C, AFFINE_MAP['BLOCK_K'])
    by_map, scaled_map = product.new_empty(B, C + 1, C), torch.empty_like(product, dtype=dtype)
    sums = product.new_empty(1, B * blocks, C)
    with on(product):
        affine_map_kernel[(blocks, triton.cdiv(C, AFFINE_MAP['BLOCK_D']), B)](
            product, total, matrix, offset, scaled, by_map, scaled_map, sums, C, **AFFINE_MAP
        )
    return by_map, scaled_map, over_parts(sums)[0]
