"""XCA in its covariance form (paper, section 3.2; see :mod:`xcit_mm.ops.xca`), with layer norm, LayerScale, residual.

The normed tokens are read twice: by cuBLAS for their second moments, and for the map that follows from these.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from .. import reference
from ..second_order import twice_differentiable
from . import norm
from .covariance import Kept, affine_map, affine_map_backward
from .matmul import matmul, over_tokens


def add_xca(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    temperature: Tensor,
    gamma: Tensor,
    keep: Optional[Tensor] = None,
    dtype: Optional[torch.dtype] = None,
) -> Tensor:
    """x + keep gamma XCA(LN(x)), without a backward pass.

    Args:
        x (Tensor): Tokens (B, N, C).
        qkv_weight, qkv_bias, proj_weight, proj_bias, temperature (Tensor): See :func:`xcit_mm.ops.xca.affine_map`.
        gamma (Tensor): (C).
        keep (Tensor, optional): Stochastic depth, (B, 1, 1).
        dtype (torch.dtype, optional): Of the matmuls; defaults to that of x. Sums are fp32.

    Returns:
        Tensor: (B, N, C), in the type of x.
    """
    weights = qkv_weight, qkv_bias, proj_weight, proj_bias, temperature
    dtype = dtype or x.dtype
    return _forward(x.contiguous(), norm_weight, norm_bias, eps, weights, gamma, keep, dtype, dtype)[0]


def _forward(
    x, norm_weight, norm_bias, eps, weights, gamma, keep, dtype, map_dtype, keeps=False
) -> Tuple[Optional[Tensor], ...]:
    """The result; mean and rstd of each token; Gram matrix (B, C, C) and sum (B, 1, C) of the normed tokens; the map,
    in ``map_dtype``; and the three tensors of :class:`Kept`."""
    normed, mean, rstd, total = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype, summed=True)
    N = x.shape[1]
    moments = over_tokens(normed, normed)
    matrix, offset, kept = affine_map(moments, total, 1 / N, *weights, map_dtype, keeps)
    keep = None if keep is None else keep.flatten()
    out = matmul(normed, matrix.to(dtype).contiguous(), offset.contiguous(), x.dtype, 'residual', x, gamma, keep, N)
    return (out, mean, rstd, moments, total, matrix, offset, *(kept or (None,) * 3))


class AddXca(torch.autograd.Function):
    """:func:`add_xca` with a backward pass, for which x and matrices of (C, C) are kept."""

    @staticmethod
    def reference(x, norm_weight, norm_bias, eps, *arguments) -> Tensor:
        return reference.add_xca(x, norm_weight, norm_bias, eps, *arguments[:-1])

    @staticmethod
    def arguments(ctx: Any) -> tuple:
        x, _, _, _, _, _, _, _, _, _, norm_weight, norm_bias, *rest = ctx.saved_tensors
        return (x, norm_weight, norm_bias, ctx.eps, *rest, ctx.dtype)

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        temperature: Tensor,
        gamma: Tensor,
        keep: Optional[Tensor],
        dtype: Optional[torch.dtype],
    ) -> Tensor:
        x, weights = x.contiguous(), (qkv_weight, qkv_bias, proj_weight, proj_bias, temperature)
        ctx.eps, ctx.dtype = eps, dtype or x.dtype
        out, *found = _forward(x, norm_weight, norm_bias, eps, weights, gamma, keep, ctx.dtype, torch.float32, True)
        ctx.save_for_backward(x, *found, norm_weight, norm_bias, *weights, gamma, keep)
        return out

    @twice_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, mean, rstd, moments, sums, matrix, offset, *rest = ctx.saved_tensors
        attention, cosines, statistics, norm_weight, norm_bias, *weights, gamma, keep = rest
        N, grad = x.shape[1], grad.contiguous()
        normed = norm.layer_norm(x, norm_weight, norm_bias, ctx.eps, ctx.dtype)[0]
        kept, total = norm.branch_gradient(grad, None if keep is None else keep.flatten(), ctx.dtype)
        by_map = over_tokens(normed, kept)
        size = norm.size_of(gamma)  # for all of what follows is linear in gamma
        kept_of_map = None if attention is None else Kept(attention, cosines, statistics)
        slope, shift, *by_weights = affine_map_backward(
            by_map * (gamma / size), total * (gamma / size), kept_of_map, moments, sums, 1 / N, *weights
        )
        # Of the normed tokens: through the map, and through their moments and mean.
        by_branch = (matrix * (gamma / size)).to(ctx.dtype).transpose(1, 2)
        by_branch = torch.bmm(kept, by_branch)
        by_norm = matmul(normed, slope.to(ctx.dtype), shift, ctx.dtype, 'residual', by_branch, torch.ones_like(gamma))
        grads = norm.backward(by_norm, x, mean, rstd, norm_weight, size, grad)
        by_gamma = ((by_map * matrix).sum(1, keepdim=True) + total * offset).sum((0, 1))
        by_weights = [by_weight * size for by_weight in by_weights]
        return (*grads, None, *by_weights, by_gamma, None, None)
