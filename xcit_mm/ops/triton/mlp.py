"""The MLP with its layer norm, LayerScale and residual, in two matmuls with epilogues.

Unfused, GELU alone reads and writes the hidden values, which are four times as large as the tokens.
"""

from typing import List, Optional

import torch
from torch import Tensor

from .. import reference
from . import layer_scale, norm
from .matmul import gelu_backward, matmul, over_tokens


def forward(
    x: Tensor, weights: List[Tensor], keep: Optional[Tensor], eps: float, dtype: torch.dtype, keeps: bool
) -> List[Tensor]:
    """x + keep gamma (GELU(LN(x) W1^T + b1) W2^T + b2); see :mod:`~xcit_mm.ops.triton.operators`.

    Kept are the statistics of the layer norm and GELU's input, (1, B N, D).

    Args:
        weights (list[Tensor]): Of the layer norm; W1 (D, C), b1 (D), W2 (C, D), b2 (C); gamma (C).
    """
    norm_weight, norm_bias, w1, b1, w2, b2, gamma = weights
    x = x.contiguous()
    normed, mean, rstd = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype)
    normed, tokens = (t.view(1, -1, x.shape[2]) for t in (normed, x))
    hidden = normed.new_empty(1, tokens.shape[1], len(w1)) if keeps else None
    activated = matmul(normed, w1.to(dtype).contiguous().t(), b1, dtype, 'gelu', hidden=hidden)
    out = matmul(activated, w2.to(dtype).contiguous().t(), b2, x.dtype, 'residual', tokens, gamma, keep, x.shape[1])
    out = out.view_as(x)
    return [out] if hidden is None else [out, mean, rstd, hidden]


def like(x, weights, keep, eps, dtype, keeps) -> List[Tensor]:
    out = norm.like(x, keeps)
    return [*out, x.new_empty(1, x.shape[0] * x.shape[1], len(weights[2]), dtype=dtype)] if keeps else out


def plain(x, weights, keep, eps, *_) -> Tensor:
    return reference.add_mlp(x, *weights[:2], eps, *weights[2:], keep)


def backward(grad, kept, x, weights, keep, eps, dtype, *_) -> List[Tensor]:
    """Gradients for that of the result of :func:`forward`."""
    norm_weight, norm_bias, w1, _, w2, b2, gamma = weights
    mean, rstd, hidden = kept
    x, grad = x.contiguous(), grad.contiguous()
    by_branch, total = norm.branch_gradient(grad, keep, dtype)
    by_branch = by_branch.view(1, -1, x.shape[2])
    scaled, size = layer_scale.split(gamma)
    by_hidden, activated, by_b1 = gelu_backward(by_branch, layer_scale.scaled_rows(w2, scaled, dtype), hidden)
    last = layer_scale.last_layer(over_tokens(by_branch, activated), total, w2, b2, gamma)
    normed = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype)[0]
    first = [over_tokens(by_hidden, normed.view_as(by_branch))[0], by_b1]
    torch._foreach_mul_(first, size)
    return [*norm.backward(by_hidden[0] @ w1.to(dtype), x, mean, rstd, norm_weight, size, grad), *first, *last]
