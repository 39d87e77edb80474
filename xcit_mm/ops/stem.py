"""The patch embedding in inference on a CPU: batch norms folded, GELU as an epilogue, in bands of rows."""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunks import LARGEST_MAP, bands, chunk_size
from .matmul import conv_gelu
from .precision import at_least_fp32
from .private import register


def folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does the batch norm after it as well, in fp32 at least."""
    dtype = at_least_fp32(conv.weight.dtype)
    weight, bn_weight, bias, mean, var = (
        t.to(dtype) for t in (conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var)
    )
    scale = bn_weight * (var + bn.eps).rsqrt()
    return weight * scale[:, None, None, None], bias - mean * scale


def embed_patches(image: Tensor, weights: List[Tensor], biases: List[Tensor]) -> Tensor:
    """3x3 convolutions of stride 2 and padding 1, GELU between them: (B, C, H, W) -> (B, rows, columns, C').

    What each layer computes of the rows above a band is not enough for another band: it is dropped.
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


def _embedded_like(image: Tensor, weights: List[Tensor], biases: List[Tensor]) -> Tensor:
    height, width = image.shape[2:]
    for _ in weights:
        height, width = (height + 1) // 2, (width + 1) // 2
    return weights[-1].new_empty(len(image), height, width, len(weights[-1]))


register(embed_patches, _embedded_like)
