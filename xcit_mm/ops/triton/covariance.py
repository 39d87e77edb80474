"""The C x C algebra of XCA's covariance form (paper, section 3.2): from the moments of an image's tokens to its map.

The formulas are those of :func:`xcit_mm.ops.xca.affine_map`. Its matrices are small, so that what counts is the number
of launches, and that each has enough short programs for one image. All matmuls are fp32 in three tf32 passes on tensor
cores, and all sums are in a fixed order. Rows and columns of a head are padded to a power of two.
"""

from typing import Dict, NamedTuple, Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..precision import without_autocast
from .launch import PROGRAMS, on, power_of_2


@triton.jit
def scores_kernel(
    moments, mean, weight, scores, sums, scale,
    C: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A head's part of w_q cov w_k^T over a block of cov's columns, and of what its norms are made of.

    Programs of even halves have the queries, the others the keys, of which only the norms need cov.

    Args:
        moments, mean: S / N (B, C, C) and the mean token (B, C), fp32, when multiplied by ``scale``. Then cov is
            moments - mean mean^T.
        weight: Of queries, keys and values, (3 C, C).
        scores (B, HEADS, PARTS, D, D): fp32.
        sums (B, HEADS, PARTS, 2, 2, D): For queries and keys w cov w^T of each channel, and w mean.
    """
    part = tl.program_id(0) % PARTS
    half = tl.program_id(0) // PARTS % 2
    head = tl.program_id(0) // (2 * PARTS) % HEADS
    image = (tl.program_id(0) // (2 * PARTS * HEADS)).to(tl.int64)
    r = tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    column = part * BLOCK + tl.arange(0, BLOCK)
    row_place = weight + (half * C + head * D + r)[:, None] * C
    column_mean = tl.load(mean + image * C + column, column < C, 0.0) * scale
    total = tl.zeros((BLOCK_D, BLOCK), tl.float32)
    for start in range(0, C, BLOCK_K):
        there = start + k < C
        w = tl.load(row_place + (start + k)[None, :], (r < D)[:, None] & there[None, :], 0.0).to(tl.float32)
        row_mean = tl.load(mean + image * C + start + k, there, 0.0) * scale
        place = moments + image * (C * C) + ((start + k)[:, None] * C + column[None, :])
        cov = tl.load(place, there[:, None] & (column < C)[None, :], 0.0) * scale
        cov -= row_mean[:, None] * column_mean[None, :]
        total = tl.dot(w, cov, total, input_precision='tf32x3')
    mask = (r < D)[:, None] & (column < C)[None, :]
    own = tl.load(row_place + column[None, :], mask, 0.0).to(tl.float32)
    place = (image * HEADS + head) * PARTS + part
    sum_place = sums + (place * 2 + half) * (2 * D) + r
    tl.store(sum_place, tl.sum(total * own, 1), r < D)
    tl.store(sum_place + D, tl.sum(own * column_mean[None, :], 1), r < D)
    if half == 0:
        key = tl.load(weight + (C + head * D + r)[:, None] * C + column[None, :], mask, 0.0).to(tl.float32)
        score = tl.dot(total, tl.trans(key), input_precision='tf32x3')
        square = place * (D * D) + (r[:, None] * D + r[None, :])
        tl.store(scores + square, score, (r < D)[:, None] & (r < D)[None, :])


@triton.jit
def inverse_norm(sums, bias, r, D: tl.constexpr, PARTS: tl.constexpr):
    """1 / norm of a head's queries or keys over sqrt(N), and their means, of which ``sums`` has PARTS parts."""
    total = tl.zeros(r.shape, tl.float32)
    level = tl.zeros(r.shape, tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(sums + part * (4 * D) + r, r < D, 0.0)
        level += tl.load(sums + part * (4 * D) + D + r, r < D, 0.0)
    level += tl.load(bias + r, r < D, 0.0).to(tl.float32)
    return 1.0 / tl.sqrt(tl.maximum(total + level * level, 1e-24)), level


@triton.jit
def mix_kernel(
    scores, sums, weight, bias, temperature, attention, cosines, statistics, mixed,
    C: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, STORES: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A head's attention, and its mix of a block of columns of [w_v, b_v].

    Args:
        scores, sums: See :func:`scores_kernel`; with no parts, the attention is known.
        attention, cosines (B, HEADS, D, D): Written if STORES, read if there are no parts.
        statistics (B, HEADS, 4, D): 1 / norm of queries and keys, and their means, written if STORES.
        mixed (B, C + 1, C): Transposed; the last row is that of the biases. fp32.
    """
    blocks: tl.constexpr = (C + BLOCK) // BLOCK  # of C + 1 columns
    block = tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks % HEADS
    image = (tl.program_id(0) // (blocks * HEADS)).to(tl.int64)
    r = tl.arange(0, BLOCK_D)
    square = r[:, None] * D + r[None, :]
    mask = (r < D)[:, None] & (r < D)[None, :]
    of_head = image * HEADS + head
    if PARTS == 0:
        weights = tl.load(attention + of_head * (D * D) + square, mask, 0.0)
    else:
        score = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
        for part in tl.static_range(PARTS):
            score += tl.load(scores + (of_head * PARTS + part) * (D * D) + square, mask, 0.0)
        place = sums + of_head * (PARTS * 4 * D)
        inverse_q, level_q = inverse_norm(place, bias + head * D, r, D, PARTS)
        inverse_k, level_k = inverse_norm(place + 2 * D, bias + C + head * D, r, D, PARTS)
        cosine = (score + level_q[:, None] * level_k[None, :]) * inverse_q[:, None] * inverse_k[None, :]
        logit = tl.where((r < D)[None, :], cosine * tl.load(temperature + head).to(tl.float32), -float('inf'))
        weights = tl.exp(logit - tl.max(logit, 1)[:, None])
        weights = weights / tl.sum(weights, 1)[:, None]
        if STORES and block == 0:
            tl.store(attention + of_head * (D * D) + square, weights, mask)
            tl.store(cosines + of_head * (D * D) + square, cosine, mask)
            own = statistics + of_head * (4 * D) + r
            tl.store(own, inverse_q, r < D)
            tl.store(own + D, inverse_k, r < D)
            tl.store(own + 2 * D, level_q, r < D)
            tl.store(own + 3 * D, level_k, r < D)
    column = block * BLOCK + tl.arange(0, BLOCK)
    row = 2 * C + head * D + r
    value = tl.load(weight + row[:, None] * C + column[None, :], (r < D)[:, None] & (column < C)[None, :], 0.0)
    value_bias = tl.load(bias + row, r < D, 0.0).to(tl.float32)
    value = tl.where((column == C)[None, :], value_bias[:, None], value.to(tl.float32))
    result = tl.dot(weights, value, input_precision='tf32x3')
    place = mixed + image * ((C + 1) * C) + (column[None, :] * C + (head * D + r)[:, None])
    tl.store(place, result, (r < D)[:, None] & (column <= C)[None, :])


@triton.jit
def project_kernel(
    mixed, weight, bias, matrix, offset, C: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """matrix (B, C, C) and offset (B, C) = mixed (B, C + 1, C) @ weight^T, and bias in the last row, the offset."""
    down: tl.constexpr = (C + BLOCK) // BLOCK  # blocks of C + 1 rows
    across: tl.constexpr = (C + BLOCK - 1) // BLOCK
    image = (tl.program_id(0) // (down * across)).to(tl.int64)
    row = tl.program_id(0) // across % down * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, BLOCK_K)
    row_place = mixed + image * ((C + 1) * C) + (row[:, None] * C + k[None, :])
    column_place = weight + (column[None, :] * C + k[:, None])
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, C, BLOCK_K):
        there = start + k < C
        left = tl.load(row_place + start, (row <= C)[:, None] & there[None, :], 0.0)
        right = tl.load(column_place + start, there[:, None] & (column < C)[None, :], 0.0).to(tl.float32)
        total = tl.dot(left, right, total, input_precision='tf32x3')
    place = matrix + image * (C * C) + (row[:, None] * C + column[None, :])
    tl.store(place, total.to(matrix.dtype.element_ty), (row < C)[:, None] & (column < C)[None, :])
    total += tl.load(bias + column, column < C, 0.0).to(tl.float32)[None, :]
    place = offset + image * C + (column[None, :] + tl.zeros((BLOCK, 1), tl.int32))
    tl.store(place, total, (row == C)[:, None] & (column < C)[None, :])


@triton.jit
def attention_backward_kernel(
    by_mixed, weight, bias, temperature, attention, cosines, statistics, by_scores, by_norms, by_temperature,
    C: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A head's gradients from that of mixed.

    Args:
        by_mixed: Gradient of mixed, (B, C + 1, C).
        by_scores (B, HEADS, D, D): Gradient of w_q S w_k^T / N, of the whole moments.
        by_norms (B, HEADS, 2, D): Twice that of the squared norms.
        by_temperature (B, HEADS): Of this image.
    """
    head = tl.program_id(0) % HEADS
    image = (tl.program_id(0) // HEADS).to(tl.int64)
    of_head = image * HEADS + head
    r = tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    square = of_head * (D * D) + (r[:, None] * D + r[None, :])
    mask = (r < D)[:, None] & (r < D)[None, :]
    row = 2 * C + head * D + r
    mixed_place = by_mixed + image * ((C + 1) * C) + head * D + r
    value_bias = tl.load(bias + row, r < D, 0.0).to(tl.float32)
    by_attention = tl.load(mixed_place + C * C, r < D, 0.0)[:, None] * value_bias[None, :]
    for start in range(0, C, BLOCK_K):
        there = start + k < C
        grad = tl.load(mixed_place[:, None] + (start + k)[None, :] * C, (r < D)[:, None] & there[None, :], 0.0)
        place = weight + (row[None, :] * C + (start + k)[:, None])
        value = tl.load(place, there[:, None] & (r < D)[None, :], 0.0).to(tl.float32)
        by_attention = tl.dot(grad, value, by_attention, input_precision='tf32x3')
    weights = tl.load(attention + square, mask, 0.0)
    by_logit = weights * (by_attention - tl.sum(by_attention * weights, 1)[:, None])
    factor = tl.load(temperature + head).to(tl.float32)
    inverse_q = tl.load(statistics + of_head * (4 * D) + r, r < D, 0.0)
    inverse_k = tl.load(statistics + of_head * (4 * D) + D + r, r < D, 0.0)
    tl.store(by_scores + square, by_logit * factor * inverse_q[:, None] * inverse_k[None, :], mask)
    along = by_logit * tl.load(cosines + square, mask, 0.0)
    by_q = tl.sum(along, 1)
    tl.store(by_temperature + of_head, tl.sum(by_q, 0))
    # Norms below 1e-12 are clamped, and have no gradient.
    by_q = tl.where(inverse_q < 0.999e12, -factor * by_q * inverse_q * inverse_q, 0.0)
    by_k = tl.where(inverse_k < 0.999e12, -factor * tl.sum(along, 0) * inverse_k * inverse_k, 0.0)
    tl.store(by_norms + of_head * (2 * D) + r, by_q, r < D)
    tl.store(by_norms + of_head * (2 * D) + D + r, by_k, r < D)


@triton.jit(do_not_specialize=['images'])
def values_backward_kernel(
    attention, by_mixed, by_weight, by_bias, images,
    C: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of a head's values: of a block of columns of [w_v, b_v], summed over the images.

    Args:
        by_mixed: Gradient of mixed, (B, C + 1, C).
        by_weight, by_bias: (3 C, C) and (3 C), of which the last third is written.
    """
    blocks: tl.constexpr = (C + BLOCK) // BLOCK
    head = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, BLOCK_D)
    mask = (r < D)[:, None] & (r < D)[None, :]
    total = tl.zeros((BLOCK_D, BLOCK), tl.float32)
    place = attention + head * (D * D) + (r[None, :] * D + r[:, None])  # transposed
    grad_place = by_mixed + (column[None, :] * C + (head * D + r)[:, None])
    for _ in range(images):
        weights = tl.load(place, mask, 0.0)
        grad = tl.load(grad_place, (r < D)[:, None] & (column <= C)[None, :], 0.0)
        total = tl.dot(weights, grad, total, input_precision='tf32x3')
        place += C * D
        grad_place += (C + 1) * C
    row = (2 * C + head * D + r)[:, None]
    tl.store(by_weight + (row * C + column[None, :]), total, (r < D)[:, None] & (column < C)[None, :])
    place = by_bias + row + tl.zeros((1, BLOCK), tl.int32)
    tl.store(place, total, (r < D)[:, None] & (column == C)[None, :])


@triton.jit(do_not_specialize=['images'])
def queries_backward_kernel(
    by_scores, by_norms, statistics, weight, slope, shift, images,
    C: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """slope = H w for a block of columns of a head's w of queries and keys, and shift = H u for their means u.

    H is the symmetric gradient of all their inner products: ``by_norms`` on its diagonal, ``by_scores`` beside.

    Args:
        slope (2 C, B, C), shift (2 C, B): fp32.
    """
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    block = tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks % HEADS
    image = (tl.program_id(0) // (blocks * HEADS)).to(tl.int64)
    of_head = image * HEADS + head
    r = tl.arange(0, BLOCK_D)
    square = of_head * (D * D) + (r[:, None] * D + r[None, :])
    grad = tl.load(by_scores + square, (r < D)[:, None] & (r < D)[None, :], 0.0)
    norm_q = tl.load(by_norms + of_head * (2 * D) + r, r < D, 0.0)
    norm_k = tl.load(by_norms + of_head * (2 * D) + D + r, r < D, 0.0)
    row = (head * D + r).to(tl.int64) * images + image  # of (2 C, B)
    below = tl.cast(images, tl.int64) * C  # rows to those of the keys
    if block == 0:
        level_q = tl.load(statistics + of_head * (4 * D) + 2 * D + r, r < D, 0.0)
        level_k = tl.load(statistics + of_head * (4 * D) + 3 * D + r, r < D, 0.0)
        tl.store(shift + row, norm_q * level_q + tl.sum(grad * level_k[None, :], 1), r < D)
        tl.store(shift + row + below, norm_k * level_k + tl.sum(grad * level_q[:, None], 0), r < D)
    column = block * BLOCK + tl.arange(0, BLOCK)
    mask = (r < D)[:, None] & (column < C)[None, :]
    place = weight + ((head * D + r)[:, None] * C + column[None, :])
    query = tl.load(place, mask, 0.0).to(tl.float32)
    key = tl.load(place + C * C, mask, 0.0).to(tl.float32)
    place = slope + (row[:, None] * C + column[None, :])
    tl.store(place, tl.dot(grad, key, norm_q[:, None] * query, input_precision='tf32x3'), mask)
    tl.store(place + below * C, tl.dot(tl.trans(grad), query, norm_k[:, None] * key, input_precision='tf32x3'), mask)


class Kept(NamedTuple):
    """What a backward pass needs: attention and cosines (B, heads, d, d), 1 / norm and mean of queries and keys
    (B, heads, 4, d); fp32."""

    attention: Tensor
    cosines: Tensor
    statistics: Tensor


def affine_map(
    moments: Tensor,
    mean: Tensor,
    scale: float,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    temperature: Tensor,
    dtype: torch.dtype,
    keeps: bool = False,
) -> Tuple[Tensor, Tensor, Optional[Kept]]:
    """What XCA does to every token of an image, from the moments of its tokens, without autograd.

    Args:
        moments (Tensor): Symmetric, contiguous (B, C, C), fp32; S / N when multiplied by ``scale``.
        mean (Tensor): Contiguous (B, C), fp32; the mean token when multiplied by ``scale``.
        qkv_weight, qkv_bias, proj_weight, proj_bias (Tensor): (3 C, C), (3 C), (C, C) and (C), any floating type.
        temperature (Tensor): (heads, 1, 1); heads have :data:`~xcit_mm.ops.triton.LARGEST_HEAD` channels at most.
        dtype (torch.dtype): Of P^T.
        keeps (bool): For :func:`affine_map_backward`.

    Returns:
        tuple[Tensor, Tensor, Kept | None]: P^T (B, C, C), contiguous, and p (B, C), fp32, so that the output is
        x P^T + p; and what is kept.
    """
    B, C = mean.shape
    heads = len(temperature)
    d = C // heads
    qkv_weight, proj_weight = qkv_weight.contiguous(), proj_weight.contiguous()
    tile = _head_tile(C, heads)
    block = _block(2 * B * heads * triton.cdiv(C, 64))
    parts = triton.cdiv(C, block)
    scores, sums = mean.new_empty(B, heads, parts, d, d), mean.new_empty(B, heads, parts, 2, 2, d)
    kept = Kept(*(mean.new_empty(B, heads, *size) for size in ((d, d), (d, d), (4, d)))) if keeps else None
    matrix, offset = torch.empty_like(moments, dtype=dtype), torch.empty_like(mean)
    with on(mean):
        scores_kernel[(2 * B * heads * parts,)](
            moments, mean, qkv_weight, scores, sums, scale, PARTS=parts, BLOCK=block, BLOCK_K=32, num_warps=4,
            num_stages=4, **tile,
        )  # fmt: skip
        mixed = _mix(scores, sums, parts, qkv_weight, qkv_bias, temperature, kept, B)
        block = _block(B * triton.cdiv(C + 1, 64) * triton.cdiv(C, 64))
        project_kernel[(B * triton.cdiv(C + 1, block) * triton.cdiv(C, block),)](
            mixed, proj_weight, proj_bias, matrix, offset, C=C, BLOCK=block, BLOCK_K=32, num_warps=4, num_stages=4
        )
    return matrix, offset, kept


def affine_map_backward(
    grad: Tensor,
    kept: Kept,
    moments: Tensor,
    mean: Tensor,
    scale: float,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    temperature: Tensor,
) -> Tuple[Tensor, ...]:
    """Backward pass of :func:`affine_map`, from the gradient of P^T with that of p below it, (B, C + 1, C), fp32.

    Returns:
        tuple[Tensor, ...]: The gradient of the moments, plus its transpose, (B, C, C), and that of ``mean``, (B, C):
        those of the tokens x, of which ``moments`` and ``mean`` are sums, are x times the first, plus the second. Then
        those of the weights, biases and temperature. All fp32.
    """
    B, C = mean.shape
    heads = len(temperature)
    with without_autocast(mean):
        qkv_weight, tile = qkv_weight.contiguous(), _head_tile(C, heads)
        by_offset, grad = grad[:, C], grad.flatten(0, 1)
        by_mixed = grad @ proj_weight.float()
        by_scores, by_norms = torch.empty_like(kept.attention), mean.new_empty(B, heads, 2, C // heads)
        by_temperature = mean.new_empty(B, heads)
        by_weight, by_bias = mean.new_empty(3 * C, C), mean.new_empty(3 * C)
        slope, shift = mean.new_empty(2 * C, B, C), mean.new_empty(2 * C, B)
        with on(mean):
            mixed = _mix(mean, mean, 0, qkv_weight, qkv_bias, temperature, kept, B)
            attention_backward_kernel[(B * heads,)](
                by_mixed, qkv_weight, qkv_bias, temperature, *kept, by_scores, by_norms, by_temperature, BLOCK_K=32,
                num_warps=4, num_stages=3, **tile,
            )  # fmt: skip
            values_backward_kernel[(heads * triton.cdiv(C + 1, 32),)](
                kept.attention, by_mixed, by_weight, by_bias, B, BLOCK=32, num_warps=8, num_stages=2, **tile
            )
            queries_backward_kernel[(B * heads * triton.cdiv(C, 16),)](
                by_scores, by_norms, kept.statistics, qkv_weight, slope, shift, B, BLOCK=16, num_warps=8, **tile
            )
        # With H of the last kernel, the gradient of w is H w cov + H u mean^T, that of b is H u; that of cov, plus its
        # transpose, w^T H w; and both cov and u = w mean + b depend on the mean.
        w, by_image = qkv_weight[: 2 * C].float(), slope.transpose(0, 1)
        by_moments = torch.baddbmm(moments, w.t().expand(B, -1, -1), by_image, beta=0, alpha=scale)
        means = mean.unsqueeze(1)
        by_mean = torch.baddbmm((shift.t() @ w).unsqueeze(1), means, by_moments, beta=scale, alpha=-scale).squeeze(1)
        cov = torch.baddbmm(moments, means.transpose(1, 2), means, beta=scale, alpha=-(scale**2))
        torch.mm(slope.flatten(1), cov.view(B * C, C), out=by_weight[: 2 * C])
        by_weight[: 2 * C].addmm_(shift, mean, alpha=scale)
        torch.sum(shift, 1, out=by_bias[: 2 * C])
        by_proj = grad.t() @ mixed.flatten(0, 1), by_offset.sum(0)
        by_factor = by_temperature.sum(0).view_as(temperature)
        return (by_moments, by_mean, by_weight, by_bias, *by_proj, by_factor)


def _mix(scores, sums, parts: int, weight, bias, temperature, kept: Optional[Kept], B: int) -> Tensor:
    """A [w_v, b_v] of all heads, transposed (B, C + 1, C), from so many parts of scores; with none, from what is kept.

    In a backward pass this takes less time than the memory would cost to keep it.
    """
    C, heads = weight.shape[1], len(temperature)
    mixed = weight.new_empty(B, C + 1, C, dtype=torch.float32)
    attention, cosines, statistics = (mixed,) * 3 if kept is None else kept  # pointers that the kernel does not follow
    mix_kernel[(B * heads * triton.cdiv(C + 1, 64),)](
        scores, sums, weight, bias, temperature, attention, cosines, statistics, mixed, PARTS=parts,
        STORES=parts > 0 and kept is not None, BLOCK=64, num_warps=8, **_head_tile(C, heads),
    )  # fmt: skip
    return mixed


def _block(programs: int) -> int:
    """Columns of a block: 64 if there are then this many programs and they fill a GPU, else 32."""
    return 64 if programs >= PROGRAMS // 8 else 32


def _head_tile(C: int, heads: int) -> Dict[str, int]:
    """Sizes of a head, as keyword arguments of its kernels."""
    d = C // heads
    return dict(C=C, HEADS=heads, D=d, BLOCK_D=max(16, power_of_2(d)))
