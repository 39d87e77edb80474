"""The covariance form of XCA (paper, section 3.2): its layer norm and second moments, its map, LayerScale and residual.

The norm is in the prologues, so that normed tokens are never stored.
"""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .. import xca as plain
from ..second_order import twice_differentiable
from . import norm
from .matmul import gram, matmul


def normed_moments(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    """Second moments and mean of the layer-normed tokens: (B, N, C) -> (B, C, C) / N and (B, 1, C), both fp32.

    Args:
        weight, bias (Tensor): Of the layer norm, (C).
        dtype (torch.dtype): Of the matmuls; their sums are fp32.
    """
    x = x.contiguous()
    return gram(x, (*norm.statistics(x, eps), weight, bias), dtype, 1 / x.shape[1])


def add_normed_affine(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    matrix: Tensor,
    offset: Tensor,
    gamma: Tensor,
    keep: Optional[Tensor] = None,
    dtype: Optional[torch.dtype] = None,
) -> Tensor:
    """x + keep gamma (LN(x) P + p), with one map for each image, without a backward pass.

    Args:
        x (Tensor): (B, N, C).
        matrix, offset (Tensor): P (B, C, C) and p (B, 1, C), fp32.
        gamma (Tensor): (C).
        keep (Tensor, optional): Stochastic depth, (B, 1, 1).
        dtype (torch.dtype, optional): Of the matmuls; defaults to that of x.

    Returns:
        Tensor: (B, N, C), in the type of x.
    """
    x = x.contiguous()
    normed = *norm.statistics(x, eps), weight, bias
    return _affine(x, normed, matrix, offset, gamma, keep, dtype or x.dtype)


def _affine(x, normed, matrix, offset, gamma, keep, dtype) -> Tensor:
    keep = None if keep is None else keep.flatten()
    return matmul(
        x, matrix.to(dtype).contiguous(), offset.contiguous(), x.dtype, normed, 'residual', x, gamma, keep, x.shape[1]
    )


class NormedMoments(torch.autograd.Function):
    """:func:`normed_moments` with a backward pass."""

    @staticmethod
    def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float, _: torch.dtype) -> Tuple[Tensor, Tensor]:
        return plain.NormedMoments.reference(x, weight, bias, eps)

    @staticmethod
    def arguments(ctx: Any) -> tuple:
        x, _, _, weight, bias = ctx.saved_tensors
        return x, weight, bias, ctx.eps, ctx.dtype

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tuple[Tensor, Tensor]:
        x = x.contiguous()
        normed = *norm.statistics(x, eps), weight, bias
        ctx.save_for_backward(x, *normed)
        ctx.eps, ctx.dtype = eps, dtype
        return gram(x, normed, dtype, 1 / x.shape[1])

    @twice_differentiable
    def backward(ctx: Any, grad_moments: Tensor, grad_mean: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, *normed = ctx.saved_tensors
        N = x.shape[1]
        slope = (grad_moments + grad_moments.transpose(1, 2)).div_(N).to(ctx.dtype)
        grad = matmul(x, slope, (grad_mean / N).contiguous(), ctx.dtype, normed)
        return (*norm.backward(grad, x, *normed[:3], x.new_ones((), dtype=torch.float32)), None, None)


class AddNormedAffine(torch.autograd.Function):
    """:func:`add_normed_affine` with a backward pass, for which x and the map are kept."""

    @staticmethod
    def reference(x, weight, bias, eps, matrix, offset, gamma, keep, _) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        return reference.residual(x, normed @ matrix.to(x.dtype) + offset.to(x.dtype), gamma, keep)

    @staticmethod
    def arguments(ctx: Any) -> tuple:
        x, _, _, weight, bias, *rest = ctx.saved_tensors
        return (x, weight, bias, ctx.eps, *rest, ctx.dtype)

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        matrix: Tensor,
        offset: Tensor,
        gamma: Tensor,
        keep: Optional[Tensor],
        dtype: Optional[torch.dtype],
    ) -> Tensor:
        x = x.contiguous()
        normed = *norm.statistics(x, eps), weight, bias
        ctx.eps, ctx.dtype = eps, dtype or x.dtype
        ctx.save_for_backward(x, *normed, matrix, offset, gamma, keep)
        return _affine(x, normed, matrix, offset, gamma, keep, ctx.dtype)

    @twice_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, *normed, matrix, offset, gamma, keep = ctx.saved_tensors
        grad = grad.contiguous()
        map_grad, total = gram(x, normed, ctx.dtype, 1.0, other=grad)  # of the normed tokens with the gradient
        scaled = gamma if keep is None else gamma * keep.float()
        size = norm.size_of(gamma)  # for all of what follows is linear in gamma
        by_branch = (matrix * (scaled / size)).to(ctx.dtype).contiguous().transpose(1, 2)
        by_norm = matmul(grad, by_branch, None, ctx.dtype)
        grads = norm.backward(by_norm, x, *normed[:3], size, grad)
        by_gamma = (map_grad * matrix).sum(1, keepdim=True) + total * offset
        by_gamma = (by_gamma if keep is None else by_gamma * keep.float()).sum((0, 1))
        return (*grads, None, map_grad * scaled, total * scaled, by_gamma, None, None)
