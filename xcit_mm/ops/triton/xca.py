"""XCA in its covariance form (paper, section 3.2; see :mod:`xcit_mm.ops.xca`), with layer norm, LayerScale, residual.

The normed tokens are read twice: by cuBLAS for their second moments, and for the map that follows from these.
"""

from typing import List, Optional

import torch
from torch import Tensor

from .. import reference
from . import covariance, layer_scale, norm
from .matmul import matmul, over_tokens


def forward(
    x: Tensor, weights: List[Tensor], keep: Optional[Tensor], eps: float, dtype: torch.dtype, keeps: bool
) -> List[Tensor]:
    """x + keep gamma XCA(LN(x)); see :mod:`~xcit_mm.ops.triton.operators`.

    Kept are, besides the statistics of the layer norm, only tensors without tokens: their Gram matrix (B, C, C) and sum
    (B, C), the map and what :func:`.covariance.affine_map` keeps.

    Args:
        weights (list[Tensor]): Of the layer norm; of queries, keys and values, of the projection, and temperature, as
            in :func:`xcit_mm.ops.xca.affine_map`; gamma (C).
    """
    norm_weight, norm_bias, *of_map, gamma = weights
    x, N = x.contiguous(), x.shape[1]
    normed, mean, rstd, total = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype, summed=True)
    moments = over_tokens(normed, normed)
    map_dtype = torch.float32 if keeps else dtype
    matrix, offset, kept = covariance.affine_map(moments, total, 1 / N, *of_map, map_dtype, keeps)
    out = matmul(normed, matrix.to(dtype), offset, x.dtype, 'residual', x, gamma, keep, N)
    return [out] if kept is None else [out, mean, rstd, moments, total, matrix, offset, *kept]


def like(x, weights, keep, eps, dtype, keeps) -> List[Tensor]:
    if not keeps:
        return norm.like(x, keeps)
    (B, _, C), heads = x.shape, len(weights[6])
    d = C // heads
    sizes = (C, C), (C,), (C, C), (C,), (heads, d, d), (heads, d, d), (heads, 4, d)
    return [*norm.like(x, keeps), *(x.new_empty(B, *size, dtype=torch.float32) for size in sizes)]


def plain(x, weights, keep, eps, *_) -> Tensor:
    return reference.add_xca(x, *weights[:2], eps, *weights[2:], keep)


def backward(grad, kept, x, weights, keep, eps, dtype, *_) -> List[Tensor]:
    """Gradients for that of the result of :func:`forward`."""
    norm_weight, norm_bias, *of_map, gamma = weights
    mean, rstd, moments, sums, matrix, offset, *attention = kept
    x, grad, N = x.contiguous(), grad.contiguous(), x.shape[1]
    normed = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype)[0]
    by_branch, total = norm.branch_gradient(grad, keep, dtype, by_image=True)
    scaled, size = layer_scale.split(gamma)  # for all of what follows is linear in gamma
    by_map, scaled_map, by_gamma = layer_scale.affine_map(
        over_tokens(normed, by_branch), total, matrix, offset, scaled, dtype
    )
    slope, shift, *by_weights = covariance.affine_map_backward(
        by_map, covariance.Kept(*attention), moments, sums, 1 / N, *of_map
    )
    torch._foreach_mul_(by_weights, size)
    # Of the normed tokens: through the map, and through their moments and mean.
    by_normed = torch.bmm(by_branch, scaled_map.transpose(1, 2))
    by_normed = matmul(normed, slope.to(dtype), shift, dtype, 'residual', by_normed)
    return [*norm.backward(by_normed, x, mean, rstd, norm_weight, size, grad), *by_weights, by_gamma]
