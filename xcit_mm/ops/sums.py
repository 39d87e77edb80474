"""Sums over chunks in a backward pass."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from .precision import at_least_fp32


def add_to(total: Optional[Tensor], part: Tensor) -> Tensor:
    """Sums over chunks are kept in fp32, whatever the weights are; autograd casts them."""
    return part.to(at_least_fp32(part.dtype)) if total is None else total.add_(part)


def add_at(total: Optional[Tensor], piece: Tuple[slice, slice], part: Tensor, shape: torch.Size) -> Tensor:
    """Sums over the tokens of each image, of that shape; without a copy if there is one piece."""
    if total is None and part.shape == shape:
        return part
    images, tokens = piece
    total = part.new_empty(shape) if total is None else total
    total[images].copy_(part) if tokens.start == 0 else total[images].add_(part)
    return total


def layer_norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor):
    """Gradients of a layer norm by its input, weight and bias."""
    return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, weight, bias, [True] * 3)
