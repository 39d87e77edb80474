"""Matmuls over tokens with sums in fp32, whose epilogue is GELU, its backward pass, or LayerScale and residual.

They save passes over the tokens and over the MLP's hidden values, which are four times as large. Matmuls without an
epilogue are cuBLAS's, which is faster.
"""

from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..precision import without_autocast
from .depthwise import gelu, gelu_slope
from .launch import matmul_tile, on
from .sums import over_parts


@triton.jit(do_not_specialize=['N', 'tokens_of_image'])
def tokens_kernel(
    a, matrix, bias, residual, gamma, keep, hidden, activated, sums, out,
    N, tokens_of_image,
    A_ROW: tl.constexpr, K: tl.constexpr, D: tl.constexpr, MATRIX_K: tl.constexpr, MATRIX_D: tl.constexpr,
    MATRIX_IMAGE: tl.constexpr, BIAS_IMAGE: tl.constexpr, HAS_BIAS: tl.constexpr, EPILOGUE: tl.constexpr,
    HAS_GAMMA: tl.constexpr, HAS_KEEP: tl.constexpr, STORES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = epilogue(a @ matrix + bias) for tokens a (images, N, K), with one matrix for all or for each image.

    Epilogues: 'none'; 'gelu', which also stores what it is applied to in ``hidden`` if STORES; 'residual', residual +
    keep gamma times it; 'gelu_backward', times GELU's slope at ``hidden``, whose GELU goes to ``activated``, and whose
    sums over the tokens of a tile, as rounded, go to ``sums``.

    Args:
        a: With rows A_ROW apart.
        matrix (K, D): With strides MATRIX_K and MATRIX_D, and MATRIX_IMAGE from that of one image to the next.
        bias (D): With BIAS_IMAGE from that of one image to the next.
        keep: One factor for each ``tokens_of_image`` tokens, counted over all images.
        sums (images, tiles, D): fp32.
    """
    across: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    down = tl.cdiv(N, BLOCK_M)
    program = tl.program_id(0)
    image = (program // (across * down)).to(tl.int64)
    top = ((program // across) % down * BLOCK_M).to(tl.int64)
    first = image * N + top  # token of all images
    m = tl.arange(0, BLOCK_M)
    d = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    real = top + m < N
    a_place = a + first * A_ROW + (m[:, None] * A_ROW + k[None, :])
    matrix_place = matrix + (k[:, None] * MATRIX_K + d[None, :] * MATRIX_D)
    matrix_place += image * MATRIX_IMAGE
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            value = tl.load(a_place + start, real[:, None], 0.0)
        else:
            value = tl.load(a_place + start, real[:, None] & (start + k < K)[None, :], 0.0)
        if K % BLOCK_K == 0 and D % BLOCK_N == 0:
            other = tl.load(matrix_place + start * MATRIX_K)
        else:
            other = tl.load(matrix_place + start * MATRIX_K, (start + k < K)[:, None] & (d < D)[None, :], 0.0)
        total = tl.dot(value.to(matrix.dtype.element_ty), other, total, input_precision='ieee')
    mask = real[:, None] & (d < D)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + image * BIAS_IMAGE + d, d < D, 0.0).to(tl.float32)[None, :]
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
        total = (total * gelu_slope(before)).to(out.dtype.element_ty).to(tl.float32)
        tile = image * down + (program // across) % down
        tl.store(sums + tile * D + d, tl.sum(tl.where(mask, total, 0.0), 0), d < D)
    if EPILOGUE == 'residual':
        if HAS_GAMMA:
            total = total * tl.load(gamma + d, d < D, 0.0).to(tl.float32)[None, :]
        if HAS_KEEP:
            total = total * tl.load(keep + (first + m) // tokens_of_image, real, 0.0).to(tl.float32)[:, None]
        total += tl.load(residual + place, mask, 0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask)


def matmul(
    a: Tensor,
    matrix: Tensor,
    bias: Optional[Tensor],
    dtype: torch.dtype,
    epilogue: str = 'none',
    residual: Optional[Tensor] = None,
    gamma: Optional[Tensor] = None,
    keep: Optional[Tensor] = None,
    tokens_of_image: int = 1,
    hidden: Optional[Tensor] = None,
) -> Tensor:
    """:func:`tokens_kernel` on tokens (B, N, K) -> (B, N, D).

    Args:
        a (Tensor): Contiguous, or some channels of contiguous tokens.
        matrix (Tensor): In the type of the matmuls, (K, D), or (B, K, D) for one of each image; contiguous but for the
            order of its last two dimensions.
        bias (Tensor, optional): (D), or (B, D) for one of each image, contiguous.
        dtype (torch.dtype): Of the result.
        residual (Tensor, optional): (B, N, D), contiguous, for the epilogue 'residual', with gamma (D) and keep
            (images, 1, 1), both optional.
        hidden (Tensor, optional): Written by the epilogue 'gelu', (B, N, D).
    """
    out = a.new_empty(*a.shape[:2], matrix.shape[-1], dtype=dtype)
    _launch(a, matrix, bias, out, epilogue, residual, gamma, keep, tokens_of_image, hidden)
    return out


def gelu_backward(grad: Tensor, matrix: Tensor, hidden: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """The gradient of GELU's input, from tokens ``grad`` (1, N, K) and the matrix (K, D) behind GELU.

    Args:
        hidden (Tensor): GELU's input, (1, N, D).

    Returns:
        tuple[Tensor, Tensor, Tensor]: The gradient and GELU's output, as ``hidden``; the gradient's sum over the
        tokens (D), fp32.
    """
    out, activated = torch.empty_like(hidden), torch.empty_like(hidden)
    sums = _launch(grad, matrix, None, out, 'gelu_backward', hidden=hidden, activated=activated)
    return out, activated, over_parts(sums.view(1, -1, sums.shape[2]))[0]


def _launch(
    a: Tensor,
    matrix: Tensor,
    bias: Optional[Tensor],
    out: Tensor,
    epilogue: str,
    residual: Optional[Tensor] = None,
    gamma: Optional[Tensor] = None,
    keep: Optional[Tensor] = None,
    tokens_of_image: int = 1,
    hidden: Optional[Tensor] = None,
    activated: Optional[Tensor] = None,
) -> Tensor:
    """Launch the kernel; its sums (B, tiles, D), if the epilogue has any."""
    B, N, K = a.shape
    D = matrix.shape[-1]
    tile = matmul_tile(N, D, B, matrix.dtype, halved=epilogue == 'gelu_backward')
    down = triton.cdiv(N, tile['BLOCK_M'])
    programs = B * down * triton.cdiv(D, tile['BLOCK_N'])
    sums = a.new_empty(B, down, D, dtype=torch.float32) if activated is not None else a

    def given(tensor: Optional[Tensor]) -> Tensor:  # a pointer that the kernel does not follow
        return a if tensor is None else tensor

    if programs:
        with on(a):
            tokens_kernel[(programs,)](
                a, matrix, given(bias), given(residual), given(gamma), given(keep), given(hidden), given(activated),
                sums, out, N, tokens_of_image, a.stride(1), K, D, matrix.stride(-2), matrix.stride(-1),
                K * D if matrix.dim() == 3 else 0, D if bias is not None and bias.dim() == 2 else 0, bias is not None,
                epilogue, gamma is not None, keep is not None, hidden is not None, **tile,
            )  # fmt: skip
    return sums


def over_tokens(a: Tensor, b: Tensor) -> Tensor:
    """a^T b in fp32 for each image, (B, N, D) and (B, N, C) -> (B, D, C), by cuBLAS.

    Products are rounded in between where PyTorch cannot keep fp32 sums (before 2.8), and on a CPU.
    """
    if a.is_cuda and a.dtype != torch.float32 and 'dtype' in torch.ops.aten.bmm.overloads():
        return torch.bmm(a.transpose(1, 2), b, out_dtype=torch.float32)
    with without_autocast(a):
        return torch.bmm(a.transpose(1, 2).float(), b.float())
