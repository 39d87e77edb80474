"""The pyramid's deconvolution in inference on a CPU."""

import torch
from torch import Tensor

from .chunks import LARGEST_MAP, bands
from .matmul import linear
from .private import register


def deconvolve(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """2x2 deconvolution of stride 2: (B, C, H, W) in any layout, (C, D, 2, 2) and (D) -> (B, D, 2H, 2W), contiguous.

    Its windows do not overlap: every pixel gives 2x2 pixels by a matmul. PyTorch's own writes the whole map twice,
    since it keeps a channels-last layout that nobody after it can use.
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


register(
    deconvolve, lambda image, weight, bias: image.new_empty(len(image), len(bias), *(2 * n for n in image.shape[2:]))
)
