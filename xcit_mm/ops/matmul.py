"""Matmuls of tokens with matrices, by the faster library.

On a CPU, PyTorch hands fp32 matmuls to MKL and convolutions to oneDNN. A linear layer is a 1x1 convolution, and on
AMD's processors oneDNN computes it more than twice as fast; on Intel's own, MKL is as fast. Half precision always goes
to oneDNN. On other devices these are PyTorch's matmuls.
"""

import platform
from functools import lru_cache, partial
from pathlib import Path
from typing import Callable, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import compute_dtype
from .private import (
    AMX,
    ONEDNN,
    conv_pointwise,
    has_conv_pointwise,
    has_inner_product,
    has_wide_bmm,
    inner_product,
    packed_weight,
)

LEAST_TOKENS = 128  # fewer do not pay for packing the matrix
TOKENS_IN_ROW = 64  # at most, where tokens become an image of several rows


def _is_intel() -> bool:
    cpus = Path('/proc/cpuinfo')
    return 'GenuineIntel' in (cpus.read_text(errors='replace') if cpus.is_file() else platform.processor())


MKL_IS_FASTER = torch.backends.mkl.is_available() and _is_intel()


def prefers_onednn(x: Tensor) -> bool:
    """True if matmuls of tokens (..., C) are faster as oneDNN's convolutions: fp32 on a CPU, enough tokens."""
    is_fp32 = x.device.type == 'cpu' and compute_dtype(x) == torch.float32
    return is_fp32 and ONEDNN and not MKL_IS_FASTER and x.numel() >= LEAST_TOKENS * x.shape[-1]


def prefers_inner_product(x: Tensor, weight: Tensor) -> bool:
    """True if matmuls of tokens (..., C) with (D, C), without a backward pass, are fastest as oneDNN's inner product.

    A convolution packs the matrix for every call, which counts up to about a thousand tokens. Below 48 tokens or 4
    million MACs MKL is as fast, and rows of 2048 values and more are read slowly.
    """
    tokens, C = x.numel() // x.shape[-1], x.shape[-1]
    if torch.is_grad_enabled() or MKL_IS_FASTER or not (48 <= tokens < 1024 and C < 2048):
        return False
    is_fp32 = x.device.type == 'cpu' and compute_dtype(x) == torch.float32 == weight.dtype
    return is_fp32 and tokens * weight.numel() >= 2**22 and has_inner_product()


def fuses_gelu(x: Tensor) -> bool:
    """True if a convolution of this device and type can have GELU as its epilogue."""
    return x.device.type == 'cpu' and has_conv_pointwise(x.dtype)


def as_image(x: Tensor) -> Tensor:
    """Tokens (n, C) as an image, (1, C, h, w), channels last: a view."""
    return x.view(1, *_grid(len(x), x.dtype), x.shape[-1]).permute(0, 3, 1, 2)


@lru_cache(maxsize=None)
def _grid(tokens: int, dtype: torch.dtype) -> Tuple[int, int]:
    """Height and width of the image of so many tokens. AMX wants several rows."""
    widths = range(TOKENS_IN_ROW, 15, -1) if AMX and dtype == torch.bfloat16 else ()
    width = next((width for width in widths if tokens % width == 0), tokens)
    return tokens // width, width


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x W^T + b: (..., C), (D, C) and (D) -> (..., D). Differentiable."""
    if prefers_inner_product(x, weight):
        return inner_product(x, weight, bias)
    if not prefers_onednn(x):
        return F.linear(x, weight, bias)
    tokens = x.contiguous().reshape(-1, x.shape[-1])  # or the image would not be channels last
    out = F.conv2d(as_image(tokens), weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(x W^T + b) without a backward pass: (n, C), (D, C) and (D) -> (n, D)."""
    by_mkl = MKL_IS_FASTER and x.dtype == torch.float32
    if len(x) < LEAST_TOKENS or not fuses_gelu(x) or by_mkl or prefers_inner_product(x, weight):
        return torch.ops.aten.gelu_(linear(x, weight, bias))
    return conv_gelu(as_image(x), weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(len(x), len(weight))


def packed_linear(weight: Tensor, bias: Tensor, tokens: int, gelu: bool = False) -> Callable[[Tensor], Tensor]:
    """x -> x W^T + b, or its GELU, without a backward pass, for calls with ``tokens`` tokens each: (n, C) -> (n, D).

    Where oneDNN can, the matrix (D, C) is packed once, not for every call, and GELU is the epilogue. The blocked layout
    is one for a number of tokens; with that of another, a matmul can take three times as long.
    """
    if tokens < LEAST_TOKENS or not fuses_gelu(weight):
        return partial(linear_gelu if gelu else linear, weight=weight, bias=bias)
    packed = packed_weight(weight[:, :, None, None], *_grid(tokens, weight.dtype))

    def run(x: Tensor) -> Tensor:
        image = conv_pointwise(as_image(x), packed, bias, 1, 0, gelu)
        return image.permute(0, 2, 3, 1).reshape(len(x), len(bias))

    return run


def conv_gelu(image: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """GELU of a convolution of (B, C, H, W), channels last, without a backward pass."""
    if not fuses_gelu(image):
        return gelu_(F.conv2d(image, weight, bias, stride, padding))
    return conv_pointwise(image, weight, bias, stride, padding, gelu=True)


def gelu_(image: Tensor) -> Tensor:
    """GELU of (B, C, H, W), channels last, in place."""
    # In the order of its memory, since PyTorch's fast path wants that contiguous.
    torch.ops.aten.gelu_(image.permute(0, 2, 3, 1))
    return image


def linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of x W^T + b by x, W and b, the latter two in fp32: from (n, D), (n, C) and (D, C)."""
    if not prefers_onednn(x):
        return grad @ weight, (grad.t() @ x).float(), grad.sum(0, dtype=torch.float32)
    grads = _conv_backward(grad, x, weight[..., None, None], [True] * 3)
    return grads[0].permute(0, 2, 3, 1).reshape(x.shape), grads[1].flatten(1), grads[2]


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: List[bool]) -> Tuple[Tensor, Tensor, Tensor]:
    sizes, settings = [len(weight)], ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(as_image(grad), as_image(x), weight, sizes, *settings, wanted)


def affine(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """x M + m with one map for each image: (B, n, C), (B, C, D) and (B, 1, D) -> (B, n, D)."""
    if not prefers_onednn(x[0]):
        return torch.baddbmm(offset, x, matrix)
    return stack([linear(tokens, m.t(), o[0]) for tokens, m, o in zip(x, matrix, offset)])


def affine_backward(grad: Tensor, x: Tensor, matrix: Tensor) -> Tuple[Tensor, Tensor]:
    """Gradients of x M + m by x and, in fp32, by M: from (B, n, D), (B, n, C) and (B, C, D)."""
    if not prefers_onednn(x[0]):
        return grad @ matrix.transpose(1, 2), (x.transpose(1, 2) @ grad).float()
    images = [linear_backward(g, tokens, m.t()) for g, tokens, m in zip(grad, x, matrix)]
    return stack([image[0] for image in images]), stack([image[1].t() for image in images])


def stack(images: List[Tensor]) -> Tensor:
    """(n, C) of each image -> (B, n, C); that of one image is not copied."""
    return images[0][None] if len(images) == 1 else torch.stack(images)


def column_major(matrix: Tensor) -> Tensor:
    """The same (B, C, D), on a CPU with its columns contiguous, as oneDNN wants the matrix of :func:`affine`."""
    return matrix.transpose(1, 2).contiguous().transpose(1, 2) if matrix.device.type == 'cpu' else matrix


def add_gram(total: Tensor, x: Tensor, first: bool = False) -> None:
    """Add the Gram matrix x^T x to ``total`` in fp32, on a CPU to its upper triangle of blocks.

    By symmetry k (k + 1) / 2 of k x k blocks are enough. Sums rounded to a half type would overflow, or lose the
    directions in which the tokens vary little.

    Args:
        total (Tensor): (B, C, C), fp32; finished by :func:`symmetric`.
        x (Tensor): (B, n, C), any floating type.
        first (bool): Overwrite what is there.
    """
    C, wide = x.shape[2], has_wide_bmm(x.dtype, x.device.type)
    x = x if wide else x.float()
    by_onednn = prefers_onednn(x[0])
    step = C if x.device.type != 'cpu' else max(192 if by_onednn else 96, -(-C // 4))
    for i in range(0, C, step):
        # Contiguous here, since a convolution would copy rows and columns of the last block each.
        columns = x[..., i:].contiguous() if by_onednn else x[..., i:]
        block, rows = total[:, i : i + step, i:], columns[..., :step]
        if not wide and not by_onednn:
            block.baddbmm_(rows.transpose(1, 2), columns, beta=0 if first else 1)
            continue
        if wide:
            part = torch.bmm(rows.transpose(1, 2), columns, out_dtype=torch.float32)
        else:
            part = stack([_transposed_matmul(*image) for image in zip(rows, columns)])
        block.copy_(part) if first else block.add_(part)


def _transposed_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a^T b, as the gradient of a convolution's weight: (n, C) and (n, D) -> (C, D)."""
    shape = b.new_empty(a.shape[1], b.shape[1], 1, 1)
    return _conv_backward(a, b, shape, [False, True, False])[1].flatten(1)


def symmetric(total: Tensor) -> Tensor:
    """(..., C, C) with an upper triangle -> symmetric. Elsewhere than on a CPU it is so already."""
    if total.device.type != 'cpu':
        return total
    return total.triu() + total.triu(1).transpose(-2, -1)
