"""Depthwise 3x3 convolutions of channels-last images, with what comes before and after them in LPI.

A program slides a strip of columns and channels down the rows of an image. Of each row it loads three vectors, shifted
by one column, which hit the same lines of the L1 cache. So DRAM and L2 see every value once for each strip, plus two
rows of halo.

Images are (B, H, W, C), contiguous; places outside are zero *after* the prologue, as with ``padding=1`` of conv2d.
Prologues, applied in fp32 registers to what is loaded: 'batch_norm' (mean, variance, weight and bias of each channel),
'image' (one weight by image), 'none'.
"""

from typing import Optional, Sequence, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on, strip
from .sums import over_parts

BLOCK_C = 64  # channels of a strip: 128 bytes of half precision, a cache line
# Values of a strip's row for each thread: sums and weights of the forward pass leave room for 4 in half of a
# multiprocessor's registers, the nine sums of the backward pass for 2.
FORWARD = dict(BLOCK_W=8, BLOCK_C=BLOCK_C, num_warps=4)
BACKWARD = dict(BLOCK_W=8, BLOCK_C=BLOCK_C, num_warps=8)
SUMS = 12  # of each channel in the backward pass: nine weights and three more


@triton.jit
def _normal_cdf(x):
    """The normal distribution function, to rounding in fp32; its lower tail to a relative 3e-4 down to -5.

    log2(2 cdf(-a)) / a is smooth: a polynomial, fitted for a <= 5.5 and falling beyond, and one exp2 are less than half
    of erf's instructions, of which the epilogue of a matmul is full.
    """
    a = tl.abs(x)
    p = 1.5542542314506136e-5 + a * -9.418246804671071e-7
    p = -4.415221919771284e-4 + a * (-6.68934517307207e-5 + a * p)
    p = -5.2810464054346085e-2 + a * (7.486519403755665e-3 + a * p)
    p = -1.1511197090148926 + a * (-4.5909538865089417e-1 + a * p)
    tail = tl.exp2(a * p - 1.0)
    return tl.where(x < 0, tail, 1.0 - tail)


@triton.jit
def gelu(x):
    return x * _normal_cdf(x)


@triton.jit
def gelu_slope(x):
    return _normal_cdf(x) + x * 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)


@triton.jit
def _per_channel(mean, var, weight, bias, eps, b, c, C: tl.constexpr, PROLOGUE: tl.constexpr):
    """What the prologue needs: level, factor and offset of each channel."""
    if PROLOGUE == 'none':
        return 0.0, 1.0, 0.0
    elif PROLOGUE == 'image':
        return 0.0, tl.load(weight + b).to(tl.float32), 0.0
    else:
        real = c < C
        factor = tl.load(weight + c, real, 0.0).to(tl.float32)
        offset = tl.load(bias + c, real, 0.0).to(tl.float32)[None, :]
        factor = factor / tl.sqrt(tl.load(var + c, real, 1.0).to(tl.float32) + eps)
        return tl.load(mean + c, real, 0.0).to(tl.float32)[None, :], factor[None, :], offset


@triton.jit
def _load(image, level, factor, offset, b, row, w, c, H, W, C: tl.constexpr, PROLOGUE: tl.constexpr):
    """Values (columns w, channels c) of one row of image b after the prologue, zero outside the image."""
    inside = (row >= 0) & (row < H) & (w >= 0) & (w < W)
    mask = inside[:, None] & (c < C)[None, :]
    first = (b * H + row) * W  # int64, as b is
    value = tl.load(image + first * C + (w[:, None] * C + c[None, :]), mask, 0.0).to(tl.float32)
    if PROLOGUE == 'batch_norm':
        value = tl.where(mask, (value - level) * factor + offset, 0.0)
    if PROLOGUE == 'image':
        value = value * factor
    return value


@triton.jit
def _taps(weight, scale, c, row, C: tl.constexpr, FLIPPED: tl.constexpr, SCALED: tl.constexpr):
    """The three weights of each channel in a row of the kernel, three (1, channels); turned around if FLIPPED."""
    first = 8 - 3 * row if FLIPPED else 3 * row
    step: tl.constexpr = -1 if FLIPPED else 1
    real = c < C
    a = tl.load(weight + c * 9 + first, real, 0.0).to(tl.float32)
    b = tl.load(weight + c * 9 + first + step, real, 0.0).to(tl.float32)
    d = tl.load(weight + c * 9 + first + 2 * step, real, 0.0).to(tl.float32)
    if SCALED:
        factor = tl.load(scale + c, real, 0.0)
        a, b, d = a * factor, b * factor, d * factor
    return a[None, :], b[None, :], d[None, :]


@triton.jit
def _strip(H, W, ROWS: tl.constexpr, BLOCK_W: tl.constexpr):
    """This program's image and first row (int64), its number of rows and its first column."""
    across = tl.cdiv(W, BLOCK_W)
    down = tl.cdiv(H, ROWS)
    program = tl.program_id(0)
    top = (program // across) % down * ROWS
    image = program // (across * down)
    return image.to(tl.int64), top.to(tl.int64), tl.minimum(ROWS, H - top), program % across * BLOCK_W


@triton.jit(do_not_specialize=['H', 'W'])
def forward_kernel(
    image, bn_mean, bn_var, bn_weight, bn_bias, weight, bias, out, residual, gamma, keep, moments, eps, H, W,
    C: tl.constexpr, PROLOGUE: tl.constexpr, FLIPPED: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_KEEP: tl.constexpr, HAS_MOMENTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = conv(prologue(image)) + bias; then its GELU, or residual + keep gamma times it.

    Every row of the image is multiplied once with each of the three rows of the kernel: ``below`` and ``here`` are the
    sums of two rows that still wait for rows of the image.

    Args:
        moments (programs, 3, C): This program's mean and sum of squared deviations of each channel of ``out``, and the
            number of its places.
    """
    b, top, rows, left = _strip(H, W, ROWS, BLOCK_W)
    w = left + tl.arange(0, BLOCK_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    mask = (w < W)[:, None] & real[None, :]
    v, f, o = _per_channel(bn_mean, bn_var, bn_weight, bn_bias, eps, b, c, C, PROLOGUE)
    t0, t1, t2 = _taps(weight, gamma, c, 0, C, FLIPPED, False)
    t3, t4, t5 = _taps(weight, gamma, c, 1, C, FLIPPED, False)
    t6, t7, t8 = _taps(weight, gamma, c, 2, C, FLIPPED, False)
    level = tl.load(bias + c, real, 0.0).to(tl.float32)[None, :] if HAS_BIAS else 0.0
    scale = 1.0
    if HAS_RESIDUAL:
        scale = tl.load(gamma + c, real, 0.0).to(tl.float32)[None, :]
        if HAS_KEEP:
            scale = scale * tl.load(keep + b).to(tl.float32)

    x0 = _load(image, v, f, o, b, top - 1, w - 1, c, H, W, C, PROLOGUE)
    x1 = _load(image, v, f, o, b, top - 1, w, c, H, W, C, PROLOGUE)
    x2 = _load(image, v, f, o, b, top - 1, w + 1, c, H, W, C, PROLOGUE)
    here = x0 * t0 + x1 * t1 + x2 * t2
    x0 = _load(image, v, f, o, b, top, w - 1, c, H, W, C, PROLOGUE)
    x1 = _load(image, v, f, o, b, top, w, c, H, W, C, PROLOGUE)
    x2 = _load(image, v, f, o, b, top, w + 1, c, H, W, C, PROLOGUE)
    here += x0 * t3 + x1 * t4 + x2 * t5
    below = x0 * t0 + x1 * t1 + x2 * t2
    average = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    deviation = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for i in tl.range(rows, num_stages=3):  # rows in flight, as registers allow
        x0 = _load(image, v, f, o, b, top + i + 1, w - 1, c, H, W, C, PROLOGUE)
        x1 = _load(image, v, f, o, b, top + i + 1, w, c, H, W, C, PROLOGUE)
        x2 = _load(image, v, f, o, b, top + i + 1, w + 1, c, H, W, C, PROLOGUE)
        result = here + x0 * t6 + x1 * t7 + x2 * t8 + level
        here = below + x0 * t3 + x1 * t4 + x2 * t5
        below = x0 * t0 + x1 * t1 + x2 * t2
        place = ((b * H + top + i) * W) * C + (w[:, None] * C + c[None, :])
        if GELU:
            result = gelu(result)
        if HAS_RESIDUAL:
            result = tl.load(residual + place, mask, 0.0).to(tl.float32) + scale * result
        stored = result.to(out.dtype.element_ty)
        tl.store(out + place, stored, mask)
        if HAS_MOMENTS:  # Welford's, along the rows
            difference = stored.to(tl.float32) - average
            average += difference / (i + 1)
            deviation += difference * (stored.to(tl.float32) - average)
    if HAS_MOMENTS:
        columns = tl.minimum(BLOCK_W, W - left)
        total = tl.sum(tl.where(mask, average, 0.0), 0) / columns
        difference = tl.where(mask, average - total[None, :], 0.0)
        squares = tl.sum(tl.where(mask, deviation, 0.0), 0) + rows * tl.sum(difference * difference, 0)
        place = tl.program_id(0).to(tl.int64) * (3 * C) + c
        tl.store(moments + place, total, real)
        tl.store(moments + place + C, squares, real)
        tl.store(moments + place + 2 * C, tl.zeros((BLOCK_C,), tl.float32) + (rows * columns).to(tl.float32), real)


@triton.jit(do_not_specialize=['H', 'W'])
def backward_kernel(
    image, keep, weight, bias, gamma, hidden, bn_mean, bn_var, bn_weight, bn_bias,
    bn_sums, bn_count, grad, out, sums, eps, H, W,
    C: tl.constexpr, PROLOGUE: tl.constexpr, SECOND: tl.constexpr, OF_BATCH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A window of 3x3 places of ``image`` around each place, its weighted sum, and its values times one value there.

    SECOND, from the gradient g of LPI's output (times keep) to that of BN's output, dz: the window is of g, its
    weighted sum by the flipped weights of conv2 is dz, and z times the window are the gradients of these weights.
    Otherwise, from dz to the gradient da of conv1's output: the window is of the normed tokens, its weighted sum is
    conv1's output, which gives GELU's slope, and da times the window are the gradients of conv1's weights.

    Args:
        bn_sums (2, C), bn_count: Unless SECOND, and if BN has the statistics of the batch, sums over it of dz and of dz
            times the normalised hidden values, and the number of its places.
        sums (programs, 12, C): Gradients of the nine weights; then, SECOND, the sums of dz, of dz times the normalised
            hidden values and of g; otherwise the sum of da.
    """
    b, top, rows, left = _strip(H, W, ROWS, BLOCK_W)
    w = left + tl.arange(0, BLOCK_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    mask = (w < W)[:, None] & real[None, :]
    v, f, o = _per_channel(keep, keep, keep, keep, eps, b, c, C, PROLOGUE)
    t0, t1, t2 = _taps(weight, gamma, c, 0, C, SECOND, SECOND)
    t3, t4, t5 = _taps(weight, gamma, c, 1, C, SECOND, SECOND)
    t6, t7, t8 = _taps(weight, gamma, c, 2, C, SECOND, SECOND)
    bn_level = tl.load(bn_mean + c, real, 0.0).to(tl.float32)[None, :]
    bn_inverse = (1.0 / tl.sqrt(tl.load(bn_var + c, real, 1.0).to(tl.float32) + eps))[None, :]
    bn_factor = tl.load(bn_weight + c, real, 0.0).to(tl.float32)[None, :]
    if SECOND:
        bn_offset = tl.load(bn_bias + c, real, 0.0).to(tl.float32)[None, :]
    else:
        level = tl.load(bias + c, real, 0.0).to(tl.float32)[None, :]
        bn_factor = bn_factor * bn_inverse
        average = 0.0
        average_along = 0.0
        if OF_BATCH:
            count = tl.load(bn_count)
            average = (tl.load(bn_sums + c, real, 0.0) / count)[None, :]
            average_along = (tl.load(bn_sums + C + c, real, 0.0) / count)[None, :]
    s0 = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    s1, s2, s3, s4, s5, s6, s7, s8, total, along, level_sum = s0, s0, s0, s0, s0, s0, s0, s0, s0, s0, s0

    x0 = _load(image, v, f, o, b, top - 1, w - 1, c, H, W, C, PROLOGUE)
    x1 = _load(image, v, f, o, b, top - 1, w, c, H, W, C, PROLOGUE)
    x2 = _load(image, v, f, o, b, top - 1, w + 1, c, H, W, C, PROLOGUE)
    x3 = _load(image, v, f, o, b, top, w - 1, c, H, W, C, PROLOGUE)
    x4 = _load(image, v, f, o, b, top, w, c, H, W, C, PROLOGUE)
    x5 = _load(image, v, f, o, b, top, w + 1, c, H, W, C, PROLOGUE)
    for i in range(rows):
        x6 = _load(image, v, f, o, b, top + i + 1, w - 1, c, H, W, C, PROLOGUE)
        x7 = _load(image, v, f, o, b, top + i + 1, w, c, H, W, C, PROLOGUE)
        x8 = _load(image, v, f, o, b, top + i + 1, w + 1, c, H, W, C, PROLOGUE)
        result = x0 * t0 + x1 * t1 + x2 * t2 + x3 * t3 + x4 * t4 + x5 * t5 + x6 * t6 + x7 * t7 + x8 * t8
        place = ((b * H + top + i) * W) * C + (w[:, None] * C + c[None, :])
        normed = (tl.load(hidden + place, mask, 0.0).to(tl.float32) - bn_level) * bn_inverse
        if SECOND:
            value = tl.where(mask, normed * bn_factor + bn_offset, 0.0)
            result = tl.where(mask, result, 0.0)
            along += result * normed
            level_sum += tl.where(mask, x4, 0.0)
        else:
            dz = tl.load(grad + place, mask, 0.0).to(tl.float32)
            slope = gelu_slope(result + level)
            result = tl.where(mask, bn_factor * (dz - average - normed * average_along) * slope, 0.0)
            value = result
        total += result
        tl.store(out + place, result.to(out.dtype.element_ty), mask)
        s0 += value * x0
        s1 += value * x1
        s2 += value * x2
        s3 += value * x3
        s4 += value * x4
        s5 += value * x5
        s6 += value * x6
        s7 += value * x7
        s8 += value * x8
        x0, x1, x2, x3, x4, x5 = x3, x4, x5, x6, x7, x8
    place = sums + tl.program_id(0).to(tl.int64) * (12 * C) + c
    # In the order of the weights, which are those of the flipped window for SECOND.
    first: tl.constexpr = 8 if SECOND else 0
    step: tl.constexpr = -1 if SECOND else 1
    tl.store(place + first * C, tl.sum(s0, 0), real)
    tl.store(place + (first + step) * C, tl.sum(s1, 0), real)
    tl.store(place + (first + 2 * step) * C, tl.sum(s2, 0), real)
    tl.store(place + (first + 3 * step) * C, tl.sum(s3, 0), real)
    tl.store(place + 4 * C, tl.sum(s4, 0), real)
    tl.store(place + (first + 5 * step) * C, tl.sum(s5, 0), real)
    tl.store(place + (first + 6 * step) * C, tl.sum(s6, 0), real)
    tl.store(place + (first + 7 * step) * C, tl.sum(s7, 0), real)
    tl.store(place + (first + 8 * step) * C, tl.sum(s8, 0), real)
    tl.store(place + 9 * C, tl.sum(total, 0), real)
    tl.store(place + 10 * C, tl.sum(along, 0), real)
    tl.store(place + 11 * C, tl.sum(level_sum, 0), real)


def convolve(
    image: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    dtype: torch.dtype,
    bn: Sequence[Tensor] = (),
    eps: float = 0.0,
    gelu: bool = False,
    flipped: bool = False,
    residual: Optional[Tensor] = None,
    gamma: Optional[Tensor] = None,
    keep: Optional[Tensor] = None,
    moments: bool = False,
) -> Tuple[Tensor, Optional[Tensor]]:
    """:func:`forward_kernel` on images (B, H, W, C).

    Args:
        weight, bias (Tensor): Of the convolution, (C, 1, 3, 3) and (C).
        dtype (torch.dtype): Of the result; that of the residual where there is one.
        bn (Sequence[Tensor]): Mean, variance, weight and bias of a batch norm before the convolution, (C).
        eps (float): Added to the variance.
        flipped (bool): The transposed convolution, which leads the gradient back.
        residual, gamma, keep (Tensor, optional): (B, H, W, C), (C) and, one factor for each image, (B).
        moments (bool): Also return mean and sum of squared deviations of each program's part of the result, and its
            number of places.

    Returns:
        tuple[Tensor, Tensor | None]: (B, H, W, C), and (programs, 3, C) in fp32.
    """
    B, H, W, C = image.shape
    columns = FORWARD['BLOCK_W']
    rows = strip(B, H, W, C, columns)
    programs = B * triton.cdiv(H, rows) * triton.cdiv(W, columns)
    out = torch.empty_like(image, dtype=dtype)
    parts = image.new_empty(programs, 3, C, dtype=torch.float32) if moments else None

    def given(tensor):  # a pointer that the kernel does not follow
        return image if tensor is None else tensor

    with on(image):
        forward_kernel[(programs, triton.cdiv(C, BLOCK_C))](
            image, *(bn or (image,) * 4), weight, given(bias), out, given(residual), given(gamma),
            given(keep), given(parts), eps, H, W, C,
            'batch_norm' if bn else 'none', flipped, bias is not None, gelu, residual is not None,
            keep is not None, moments, ROWS=rows, **FORWARD,
        )  # fmt: skip
    return out, parts


def convolve_backward(
    image: Tensor,
    weight: Tensor,
    hidden: Tensor,
    bn: Sequence[Tensor],
    eps: float,
    out: Tensor,
    second: bool,
    keep: Optional[Tensor] = None,
    gamma: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    bn_sums: Optional[Tensor] = None,
    bn_count: Optional[Tensor] = None,
) -> Tensor:
    """:func:`backward_kernel`, whose sums over all places it returns, (12, C) in fp32.

    Args:
        image (Tensor): What the window slides over, (B, H, W, C).
        weight (Tensor): Of the convolution, (C, 1, 3, 3).
        hidden (Tensor): Input of the batch norm, (B, H, W, C).
        bn (Sequence[Tensor]): Its mean, variance, weight and bias, (C).
        eps (float): Added to the variance.
        out (Tensor): Written; dz first and then, in the same memory, da, (B, H, W, C).
    """
    B, H, W, C = image.shape
    columns = BACKWARD['BLOCK_W']
    rows = strip(B, H, W, C, columns)
    programs = B * triton.cdiv(H, rows) * triton.cdiv(W, columns)
    sums = image.new_empty(programs, SUMS, C, dtype=torch.float32)

    def given(tensor):
        return image if tensor is None else tensor

    with on(image):
        backward_kernel[(programs, triton.cdiv(C, BLOCK_C))](
            image, given(keep), weight, given(bias), given(gamma), hidden, *bn, given(bn_sums), given(bn_count), out,
            out, sums, eps, H, W, C, 'none' if keep is None else 'image', second, bn_sums is not None, ROWS=rows,
            **BACKWARD,
        )  # fmt: skip
    return over_parts(sums.unsqueeze(0))[0]
