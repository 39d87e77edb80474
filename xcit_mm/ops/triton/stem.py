"""The patch embedding without a backward pass: its first convolution, and what comes after the later ones.

The first convolution has three input channels, for which cuDNN's kernels are made least: it is one step of a matmul
over 27 taps, with batch norm and GELU in its epilogue. The later convolutions are cuDNN's, each with one pass in place
for batch norm and GELU. Batch norms are folded in registers, so that nothing is launched for it.
"""

from typing import Dict, List, Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .depthwise import gelu
from .launch import on, power_of_2

BLOCK_M = 128  # places of a tile of the first convolution
BLOCK_VALUES = 4096  # of a tile of the others: four loads of 16 bytes for each thread


@triton.jit
def _batch_norm(weight, bias, mean, var, eps, d, D: tl.constexpr):
    """Factor and offset (1, channels) of a batch norm with running statistics, fp32."""
    real = d < D
    factor = tl.load(weight + d, real, 0.0).to(tl.float32)
    factor = factor * tl.rsqrt(tl.load(var + d, real, 1.0).to(tl.float32) + eps)
    offset = tl.load(bias + d, real, 0.0).to(tl.float32) - tl.load(mean + d, real, 0.0).to(tl.float32) * factor
    return factor[None, :], offset[None, :]


@triton.jit(do_not_specialize=['H', 'W', 'image_b', 'image_c', 'image_h', 'image_w'])
def convolution_kernel(
    image, weight, bn_weight, bn_bias, bn_mean, bn_var, out, eps, H, W, image_b, image_c, image_h, image_w,
    CHANNELS: tl.constexpr, D: tl.constexpr, WEIGHT_D: tl.constexpr, WEIGHT_C: tl.constexpr, WEIGHT_H: tl.constexpr,
    WEIGHT_W: tl.constexpr, GELU: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = BN(conv(image)), and its GELU, for images (B, CHANNELS, H, W) of any strides: 3x3, stride 2, padding 1.

    Args:
        image_b, ..., image_w: Strides of the image; WEIGHT_D, ..., WEIGHT_W of the weight (D, CHANNELS, 3, 3).
        out: (B, ceil(H / 2), ceil(W / 2), D), contiguous.
        K: Taps of all channels, 9 CHANNELS, padded to what tensor cores take.
    """
    rows = (H + 1) // 2
    columns = (W + 1) // 2
    tiles = tl.cdiv(rows * columns, BLOCK_M)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    place = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    real = place < rows * columns
    y = place // columns * 2 - 1
    x = place % columns * 2 - 1
    # One bit for each tap inside the image. Only the first and the last row and column of taps can be outside.
    inside = (tl.where(y >= 0, 0b111, 0) | 0b111000 | tl.where(y + 2 < H, 0b111000000, 0)) & (
        tl.where(x >= 0, 0b001001001, 0) | 0b010010010 | tl.where(x + 2 < W, 0b100100100, 0)
    )
    inside = tl.where(real, inside, 0)
    k = tl.arange(0, K)
    channel = k // 9
    tap = k % 9
    bit = tl.where(channel < CHANNELS, 1, 0) << tap
    from_place = y.to(tl.int64) * image_h + x.to(tl.int64) * image_w
    from_tap = channel.to(tl.int64) * image_c + (tap // 3).to(tl.int64) * image_h + (tap % 3).to(tl.int64) * image_w
    # Where no dimension is contiguous, Triton lays threads along the first: here they load one tap of neighbouring
    # places, and below all taps of one channel, from few cache lines.
    taps_place = image + b * image_b + (from_place[:, None] + from_tap[None, :])
    taps = tl.load(taps_place, (inside[:, None] & bit[None, :]) != 0, 0.0).to(out.dtype.element_ty)
    weight_place = channel * WEIGHT_C + tap // 3 * WEIGHT_H + tap % 3 * WEIGHT_W
    first = (b * (rows * columns) + tl.program_id(0) % tiles * BLOCK_M) * D
    m = tl.arange(0, BLOCK_M)
    for n in tl.static_range(0, D, BLOCK_N):
        d = n + tl.arange(0, BLOCK_N)
        real_weight = (channel < CHANNELS)[:, None] & (d < D)[None, :]
        matrix = tl.load(weight + weight_place[:, None] + d[None, :] * WEIGHT_D, real_weight, 0.0)
        factor, offset = _batch_norm(bn_weight, bn_bias, bn_mean, bn_var, eps, d, D)
        total = tl.dot(taps, matrix.to(taps.dtype), input_precision='ieee') * factor + offset
        if GELU:
            total = gelu(total)
        total = total.to(out.dtype.element_ty)
        tl.store(out + first + (m[:, None] * D + d[None, :]), total, real[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=['N'])
def batch_norm_kernel(
    x, bn_weight, bn_bias, bn_mean, bn_var, eps, N,
    D: tl.constexpr, GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """x = BN(x), and its GELU, in place: (N, D), contiguous."""
    m = tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    mask = (first + m < N)[:, None] & (d < D)[None, :]
    place = x + first * D + (m[:, None] * D + d[None, :])
    factor, offset = _batch_norm(bn_weight, bn_bias, bn_mean, bn_var, eps, d, D)
    value = tl.load(place, mask, 0.0).to(tl.float32) * factor + offset
    if GELU:
        value = gelu(value)
    tl.store(place, value.to(x.dtype.element_ty), mask)


def embed_patches(
    image: Tensor, weights: List[Tensor], norms: List[Tensor], eps: List[float], dtype: torch.dtype
) -> Tensor:
    """3x3 convolutions of stride 2 and padding 1 with batch norm, GELU between: (B, C, H, W) -> (B, rows, columns, D).

    Args:
        image (Tensor): Of any strides, of 7 channels at most.
        weights (list[Tensor]): Of the convolutions, (D, C, 3, 3).
        norms (list[Tensor]): Of the batch norm after each: weight, bias, running mean and running variance, (D).
        eps (list[float]): Of each batch norm.
        dtype (torch.dtype): Of the convolutions and of all maps. Sums, batch norm and GELU are fp32.

    Returns:
        Tensor: Contiguous, in that type.
    """
    x = _convolve(image, weights[0], norms[:4], eps[0], dtype, gelu=len(weights) > 1)
    for i, weight in enumerate(weights[1:], 1):
        weight = weight.to(dtype, memory_format=torch.channels_last)
        x = F.conv2d(x.permute(0, 3, 1, 2), weight, stride=2, padding=1).permute(0, 2, 3, 1).contiguous()
        _normalise_(x, norms[4 * i : 4 * i + 4], eps[i], gelu=i < len(weights) - 1)
    return x


def _convolve(
    image: Tensor, weight: Tensor, norm: Sequence[Tensor], eps: float, dtype: torch.dtype, gelu: bool
) -> Tensor:
    """:func:`convolution_kernel`: (B, C, H, W) -> (B, rows, columns, D)."""
    B, C, H, W = image.shape
    D = len(weight)
    rows, columns = (H + 1) // 2, (W + 1) // 2
    out = image.new_empty(B, rows, columns, D, dtype=dtype)
    taps = max(16, power_of_2(9 * C))
    with on(image):
        convolution_kernel[(B * triton.cdiv(rows * columns, BLOCK_M),)](
            image, weight, *norm, out, eps, H, W, *image.stride(), C, D, *weight.stride(), gelu,
            K=taps, BLOCK_M=BLOCK_M, BLOCK_N=channels_tile(D, 32), num_warps=4,
        )  # fmt: skip
    return out


def _normalise_(x: Tensor, norm: Sequence[Tensor], eps: float, gelu: bool) -> None:
    """:func:`batch_norm_kernel` on (B, rows, columns, D), contiguous."""
    D = x.shape[-1]
    N, n = x.numel() // D, channels_tile(D, 64)
    tile: Dict[str, int] = dict(BLOCK_M=BLOCK_VALUES // n, BLOCK_N=n, num_warps=4)
    with on(x):
        batch_norm_kernel[(triton.cdiv(N, tile['BLOCK_M']), triton.cdiv(D, n))](x, *norm, eps, N, D, gelu, **tile)


def channels_tile(D: int, most: int) -> int:
    """Channels of a tile: as many as waste the fewest. Most widths are no power of two, and GELU takes the time.

    With 64, the matmul's sums and their GELU would take so many registers that few programs fit a multiprocessor.
    """
    return min((n for n in (64, 32, 16) if n <= most), key=lambda n: -(-D // n) * n)
