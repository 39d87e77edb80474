"""Convolutions in inference, with their batch norms and GELUs, in bands of rows that stay in a CPU's cache.

Memory for another image costs more than a step itself: batch norm of 96x400x608 values takes 28 ms with it and 3 ms
without.
"""

from typing import Iterator, List, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .products import HAS_OPERATORS, Conv2d, compute_dtype, conv_gelu, gelu_, is_exported, is_traced, linear, register
from .tokenwise import chunk_size, evenly

# Bytes of a map of a band. From 32 MiB on, glibc gets memory from the system anew each time, and the first touch of its
# pages takes as long as what is done with them. A quarter is for the rows that a band has in common with the next.
LARGEST_MAP = 2**25 * 3 // 4


def works_in_place(x: Tensor, *modules: nn.Module) -> bool:
    """Whether the outputs of the layers in these modules may be overwritten: nothing needs them later or looks at them.

    The layers are convolutions, GELUs and batch norms with statistics then.
    """
    if x.device.type != 'cpu' or torch.is_grad_enabled():
        return False
    for module in modules:
        for layer in module.modules():
            if layer._forward_hooks or layer._forward_pre_hooks or not (layer is module or _is_simple(layer)):
                return False
    return True


def _is_simple(layer: nn.Module) -> bool:
    if isinstance(layer, nn.GELU):
        return layer.approximate == 'none'
    if isinstance(layer, _BatchNorm):
        return layer.affine and not layer.training and layer.running_mean is not None
    return type(layer) in (Conv2d, nn.Conv2d, nn.Sequential)


def compiles_in_place(x: Tensor) -> bool:
    """Whether torch.compile gets the functions of this module as operators. There is no autocast in an operator."""
    return HAS_OPERATORS and is_traced() and not is_exported() and compute_dtype(x) == x.dtype


def batch_norm_(image: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Batch norm of (B, C, H, W) with given statistics."""
    unused = mean.new_empty(0)
    statistics = mean, var, False, 0.0, eps
    with torch.autocast(image.device.type, enabled=False):
        torch.ops.aten.native_batch_norm.out(
            image, weight, bias, *statistics, out=image, save_mean=unused, save_invstd=unused
        )
    return image


def folded(conv: nn.Conv2d, bn: _BatchNorm) -> Tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does the batch norm after it as well, in fp32."""
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)
    weight, bn_weight, bias, mean, var = (
        t.to(dtype) for t in (conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var)
    )
    scale = bn_weight * (var + bn.eps).rsqrt()
    return weight * scale[:, None, None, None], bias - mean * scale


def embed_patches(image: Tensor, weights: List[Tensor], biases: List[Tensor]) -> Tensor:
    """3x3 convolutions of stride 2 and padding 1, GELU between them: (B, C, H, W) -> (B, rows, columns, C').

    In bands of rows. What each layer computes of the rows above a band is not enough for another band: it is dropped.
    """
    out, heights = _embedded_like(image, weights, biases), [image.shape[2]]
    for _ in weights:
        heights.append((heights[-1] + 1) // 2)
    first_map = 4 ** (len(weights) - 1) * len(weights[0]) * out.element_size()  # bytes for each token
    size = min(chunk_size(out), LARGEST_MAP // first_map)
    for group, rows in bands(out, size):
        needed = [rows]  # rows of the image and of the output of each layer
        for height in heights[-2::-1]:
            needed.insert(0, slice(max(2 * needed[0].start - 2, 0), min(2 * needed[0].stop, height)))
        x = image[group, :, needed[0]].to(out.dtype, memory_format=torch.channels_last)
        for weight, bias, given, kept in zip(weights, biases, needed, needed[1:]):
            convolution = F.conv2d if kept is rows else conv_gelu
            x = convolution(x, weight, bias, stride=2, padding=1)[:, :, kept.start - given.start // 2 :]
        out[group, rows] = x.permute(0, 2, 3, 1)
    return out


def deconvolve(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """2x2 deconvolution of stride 2: (B, C, H, W) in any layout, (C, D, 2, 2) and (D) -> (B, D, 2H, 2W), contiguous.

    Its windows do not overlap: every pixel gives 2x2 pixels by a product with a matrix. PyTorch's own writes the whole
    map twice, since it keeps a channels-last layout that nobody after it can use.
    """
    B, C, H, W = image.shape
    D = weight.shape[1]
    matrix = weight.flatten(1).t().contiguous()  # (4D, C)
    out = image.new_empty(B, D, H, 2, W, 2)
    size = LARGEST_MAP // (4 * D * image.element_size())
    for group, rows in bands(image.permute(0, 2, 3, 1), size):
        for pixels, target in zip(image[group, :, rows], out[group, :, rows]):
            # The matrix times the pixels, so that rows of pixels stay rows of pixels.
            parts = linear(matrix, pixels.flatten(1).t()).view(D, 2, 2, -1, W)
            for i in range(2):
                for j in range(2):
                    torch.add(parts[:, i, j], bias[:, None, None], out=target[:, :, i, :, j])
    return out.view(B, D, 2 * H, 2 * W)


class Deconv2x2(nn.ConvTranspose2d):
    """PyTorch's deconvolution with a 2x2 kernel and stride 2, in inference on a CPU by :func:`deconvolve`.

    Args:
        in_channels, out_channels (int): C and D.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, 2H, 2W)."""
        if not works_in_place(x) or x.dtype != torch.float32 or compute_dtype(x) != self.weight.dtype:
            return super().forward(x)
        if is_traced() and not compiles_in_place(x):
            return super().forward(x)
        return (torch.ops.xcit_mm.deconvolve if is_traced() else deconvolve)(x, self.weight, self.bias)


def add_normed_lpi(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    bn_mean: Tensor,
    bn_var: Tensor,
    bn_eps: float,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
    gamma: Tensor,
    height: int,
) -> None:
    """x += gamma LPI(LN(x)) in place, for the tokens (B, N, C) of an image of that many rows; gamma (C).

    In bands of rows that fit a cache, each with the two rows above and below that it depends on.
    """
    dtype, C = compute_dtype(conv1_weight), x.shape[2]
    w1, b1, w2, b2 = (t.to(dtype) for t in (conv1_weight, conv1_bias, conv2_weight, conv2_bias))
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    images = x.unflatten(1, (height, -1))
    pending = []  # the sum of a band waits until the next one has read its last two rows
    with torch.autocast(x.device.type, enabled=False):
        for group, rows in bands(images, chunk_size(images)):
            above, below = max(rows.start - 2, 0), min(rows.stop + 2, height)
            image = F.layer_norm(images[group, above:below], (C,), weight, bias, eps).to(dtype).permute(0, 3, 1, 2)
            _add_pending(pending, gamma)
            # Rows of the edge that lack a neighbour are dropped after each convolution.
            start, stop = max(rows.start - 1, 0), min(rows.stop + 1, height)
            image = F.conv2d(image, w1, b1, padding=1, groups=C)[:, :, start - above : stop - above]
            image = batch_norm_(gelu_(image), bn_weight, bn_bias, bn_mean, bn_var, bn_eps)
            image = F.conv2d(image, w2, b2, padding=1, groups=C)[:, :, rows.start - start : rows.stop - start]
            pending.append((images[group, rows], image.permute(0, 2, 3, 1)))
        _add_pending(pending, gamma)


def _add_pending(pending: list, gamma: Tensor) -> None:
    while pending:
        target, branch = pending.pop()
        target.addcmul_(branch, gamma)


def bands(images: Tensor, size: int) -> Iterator[Tuple[slice, slice]]:
    """Cut images (B, H, W, C) into several whole ones or rows of one, at least two, of about so many tokens.

    Yields:
        tuple[slice, slice]: Of images and of rows.
    """
    B, H, W, _ = images.shape
    for group in evenly(B, size // (H * W)):
        for rows in evenly(H, max(2, size // W)):
            yield group, rows


def lpi_arguments(lpi: nn.Module) -> Tuple[Union[Tensor, float], ...]:
    """The weights of an LPI as :func:`add_normed_lpi` takes them."""
    norm = lpi.bn.weight, lpi.bn.bias, lpi.bn.running_mean, lpi.bn.running_var, lpi.bn.eps
    return lpi.conv1.weight, lpi.conv1.bias, *norm, lpi.conv2.weight, lpi.conv2.bias


def _embedded_like(image, weights, biases):
    height, width = image.shape[2:]
    for _ in weights:
        height, width = (height + 1) // 2, (width + 1) // 2
    return weights[-1].new_empty(len(image), height, width, len(weights[-1]))


register(embed_patches, _embedded_like)
register(
    deconvolve, lambda image, weight, bias: image.new_empty(len(image), len(bias), *(2 * n for n in image.shape[2:]))
)
register(add_normed_lpi, lambda *_: None, mutates=('x',))
