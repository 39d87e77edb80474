"""Matmuls over tokens with sums in fp32: layer norm in the prologue, GELU or LayerScale and residual in the epilogue.

They save passes over the tokens and over the MLP's hidden values, which are four times as large. fp32 stays fp32,
without tf32, and is then slower than cuBLAS.
"""

from typing import Optional, Sequence, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .depthwise import gelu, gelu_slope
from .launch import gram_chunks, gram_tile, matmul_tile, on

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit(do_not_specialize=['N', 'tokens_of_image'])
def tokens_kernel(
    a, mean, rstd, norm_weight, norm_bias, matrix, bias, residual, gamma, keep, hidden, activated, out,
    N, tokens_of_image,
    K: tl.constexpr, D: tl.constexpr, MATRIX_K: tl.constexpr, MATRIX_D: tl.constexpr, BY_IMAGE: tl.constexpr,
    NORM: tl.constexpr, HAS_BIAS: tl.constexpr, EPILOGUE: tl.constexpr, HAS_KEEP: tl.constexpr, STORES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = epilogue(norm(a) @ matrix + bias) for tokens a (images, N, K), with one matrix for all or for each image.

    Epilogues: 'none'; 'gelu', which also stores what it is applied to in ``hidden`` if STORES; 'residual', residual +
    keep gamma times it; 'gelu_backward', times GELU's slope at ``hidden``, whose GELU goes to ``activated``.

    Args:
        matrix (K, D): With strides MATRIX_K and MATRIX_D; (images, K, D) and bias (images, D) if BY_IMAGE.
        keep: One factor for each ``tokens_of_image`` tokens, counted over all images.
    """
    across = tl.cdiv(D, BLOCK_N)
    down = tl.cdiv(N, BLOCK_M)
    program = tl.program_id(0)
    image = (program // (across * down)).to(tl.int64)
    top = ((program // across) % down * BLOCK_M).to(tl.int64)
    first = image * N + top  # token of all images
    m = tl.arange(0, BLOCK_M)
    d = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    real = top + m < N
    a_place = a + first * K + (m[:, None] * K + k[None, :])
    matrix_place = matrix + (k[:, None] * MATRIX_K + d[None, :] * MATRIX_D)
    bias_place = bias + d
    if BY_IMAGE:
        matrix_place += image * (K * D)
        bias_place += image * D
    if NORM:
        level = tl.load(mean + first + m, real, 0.0)[:, None]
        inverse = tl.load(rstd + first + m, real, 0.0)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        there = start + k < K
        value = tl.load(a_place + start, real[:, None] & there[None, :], 0.0)
        if NORM:
            factor = tl.load(norm_weight + start + k, there, 0.0).to(tl.float32)[None, :]
            offset = tl.load(norm_bias + start + k, there, 0.0).to(tl.float32)[None, :]
            value = (value.to(tl.float32) - level) * inverse * factor + offset
        other = tl.load(matrix_place + start * MATRIX_K, there[:, None] & (d < D)[None, :], 0.0)
        total = tl.dot(value.to(matrix.dtype.element_ty), other, total, input_precision='ieee')
    mask = real[:, None] & (d < D)[None, :]
    if HAS_BIAS:
        total += tl.load(bias_place, d < D, 0.0).to(tl.float32)[None, :]
    place = first * D + (m[:, None] * D + d[None, :])
    if EPILOGUE == 'gelu':
        if STORES:
            stored = total.to(hidden.dtype.element_ty)
            tl.store(hidden + place, stored, mask)
            total = stored.to(tl.float32)  # what the backward pass will see
        total = gelu(total)
    if EPILOGUE == 'gelu_backward':
        before = tl.load(hidden + place, mask, 0.0).to(tl.float32)
        tl.store(activated + place, gelu(before).to(activated.dtype.element_ty), mask)
        total = total * gelu_slope(before)
    if EPILOGUE == 'residual':
        total = total * tl.load(gamma + d, d < D, 0.0).to(tl.float32)[None, :]
        if HAS_KEEP:
            total = total * tl.load(keep + (first + m) // tokens_of_image, real, 0.0).to(tl.float32)[:, None]
        total += tl.load(residual + place, mask, 0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=['N', 'chunk', 'images'])
def gram_kernel(
    x, other, mean, rstd, norm_weight, norm_bias, partial, sums, N, chunk, images,
    C: tl.constexpr, SYMMETRIC: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """LN(x)^T other of a chunk of each image's tokens, (N, C) each; SYMMETRIC: of LN(x), upper triangle of blocks.

    Args:
        partial (chunks, images, C, C): fp32.
        sums (chunks, images, C): Sum of the other's tokens, fp32.
    """
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    pair = tl.program_id(0) % (blocks * blocks)
    image = (tl.program_id(0) // (blocks * blocks) % images).to(tl.int64)
    part = tl.program_id(0) // (blocks * blocks) // images
    i = pair // blocks
    j = pair % blocks
    if SYMMETRIC and i > j:
        return
    row = i * BLOCK + tl.arange(0, BLOCK)
    column = j * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, BLOCK_K)
    row_weight = tl.load(norm_weight + row, row < C, 0.0).to(tl.float32)[None, :]
    row_bias = tl.load(norm_bias + row, row < C, 0.0).to(tl.float32)[None, :]
    column_weight = tl.load(norm_weight + column, column < C, 0.0).to(tl.float32)[None, :]
    column_bias = tl.load(norm_bias + column, column < C, 0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    summed = tl.zeros((BLOCK,), tl.float32)
    end = tl.minimum((part + 1) * chunk, N)
    for start in range(part * chunk, end, BLOCK_K):
        first = image * N + start
        real = start + k < end
        level = tl.load(mean + first + k, real, 0.0)[:, None]
        inverse = tl.load(rstd + first + k, real, 0.0)[:, None]
        left = tl.load(x + first * C + (k[:, None] * C + row[None, :]), real[:, None] & (row < C)[None, :], 0.0)
        left = (left.to(tl.float32) - level) * inverse * row_weight + row_bias
        left = tl.where(real[:, None], left, 0.0).to(DTYPE)
        mask = real[:, None] & (column < C)[None, :]
        right = tl.load(other + first * C + (k[:, None] * C + column[None, :]), mask, 0.0)
        if SYMMETRIC:
            right = (right.to(tl.float32) - level) * inverse * column_weight + column_bias
            right = tl.where(real[:, None], right, 0.0)
        summed += tl.sum(right.to(tl.float32), 0)
        total = tl.dot(tl.trans(left), right.to(DTYPE), total, input_precision='ieee')
    place = part * images + image
    if i == 0:
        tl.store(sums + place * C + column, summed, column < C)
    mask = (row < C)[:, None] & (column < C)[None, :]
    tl.store(partial + place * (C * C) + (row[:, None] * C + column[None, :]), total, mask)


@triton.jit(do_not_specialize=['chunks', 'images'])
def gram_sum_kernel(
    partial, sums, gram, mean, scale, chunks, images,
    C: tl.constexpr, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the chunks in a fixed order, times ``scale``; SYMMETRIC: the lower triangle mirrors the upper one."""
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < C)[:, None] & (column < C)[None, :]
    place = row[:, None] * C + column[None, :]
    source = place
    if SYMMETRIC:
        source = tl.where(row[:, None] > column[None, :], column[None, :] * C + row[:, None], place)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    summed = tl.zeros((BLOCK,), tl.float32)
    for part in range(chunks):
        first = part * images + image
        total += tl.load(partial + first * (C * C) + source, mask, 0.0)
        summed += tl.load(sums + first * C + column, column < C, 0.0)
    tl.store(gram + image * (C * C) + place, total * scale, mask)
    if tl.program_id(1) == 0:
        tl.store(mean + image * C + column, summed * scale, column < C)


def matmul(
    a: Tensor,
    matrix: Tensor,
    bias: Optional[Tensor],
    dtype: torch.dtype,
    norm: Optional[Sequence[Tensor]] = None,
    epilogue: str = 'none',
    residual: Optional[Tensor] = None,
    gamma: Optional[Tensor] = None,
    keep: Optional[Tensor] = None,
    tokens_of_image: int = 1,
    hidden: Optional[Tensor] = None,
    activated: Optional[Tensor] = None,
) -> Tensor:
    """:func:`tokens_kernel` on contiguous tokens (B, N, K) -> (B, N, D).

    Args:
        matrix (Tensor): In the type of the matmuls, (K, D), or (B, K, D) for one of each image; contiguous but for the
            order of its last two dimensions.
        bias (Tensor, optional): (D) or (B, 1, D).
        dtype (torch.dtype): Of the result.
        norm (Sequence[Tensor], optional): Mean and rstd of each token, weight and bias (K) of a layer norm.
        residual (Tensor, optional): (B, N, D), for the epilogue 'residual', with gamma (D) and keep (images).
        hidden, activated (Tensor, optional): Written or read by the epilogues 'gelu' and 'gelu_backward', (B, N, D).
    """
    B, N, K = a.shape
    D, by_image = matrix.shape[-1], matrix.dim() == 3
    out = a.new_empty(B, N, D, dtype=dtype)
    tile = matmul_tile(N, D, B, matrix.dtype, a.dtype, halved=epilogue == 'gelu_backward')
    programs = B * triton.cdiv(N, tile['BLOCK_M']) * triton.cdiv(D, tile['BLOCK_N'])
    mean, rstd, norm_weight, norm_bias = (a,) * 4 if norm is None else norm

    def given(tensor: Optional[Tensor]) -> Tensor:  # a pointer that the kernel does not follow
        return a if tensor is None else tensor

    if programs:
        with on(a):
            tokens_kernel[(programs,)](
                a, mean, rstd, norm_weight, norm_bias, matrix, given(bias), given(residual), given(gamma), given(keep),
                given(hidden), given(activated), out, N, tokens_of_image, K, D, matrix.stride(-2), matrix.stride(-1),
                by_image, norm is not None, bias is not None, epilogue, keep is not None, hidden is not None, **tile,
            )  # fmt: skip
    return out


def gram(
    x: Tensor, norm: Sequence[Tensor], dtype: torch.dtype, scale: float, other: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor]:
    """LN(x)^T LN(x) times ``scale``, or LN(x)^T other: contiguous tokens (B, N, C) -> (B, C, C), fp32.

    Args:
        norm (Sequence[Tensor]): Mean and rstd of each token, weight and bias (C).
        dtype (torch.dtype): Of the matmuls; their sums are fp32.

    Returns:
        tuple[Tensor, Tensor]: And the sum of LN(x), or of the other, over the tokens, times ``scale``, (B, 1, C).
    """
    B, N, C = x.shape
    symmetric = other is None
    tile = gram_tile(C, dtype)
    blocks = triton.cdiv(C, tile['BLOCK'])
    pairs = blocks * (blocks + 1) // 2 if symmetric else blocks**2
    chunks = gram_chunks(B, N, pairs)
    chunk = triton.cdiv(triton.cdiv(N, chunks), tile['BLOCK_K']) * tile['BLOCK_K']
    chunks = max(1, triton.cdiv(N, chunk))
    partial = x.new_empty(chunks, B, C, C, dtype=torch.float32)
    sums = x.new_empty(chunks, B, C, dtype=torch.float32)
    total, mean = torch.empty_like(partial[0]), x.new_empty(B, 1, C, dtype=torch.float32)
    with on(x):
        gram_kernel[(blocks**2 * chunks * B,)](
            x, x if symmetric else other, *norm, partial, sums, N, chunk, B, C, symmetric, TYPES[dtype], **tile
        )
        gram_sum_kernel[(B, triton.cdiv(C, 32), triton.cdiv(C, 32))](
            partial, sums, total, mean, scale, chunks, B, C, symmetric, 32
        )
    return total, mean
