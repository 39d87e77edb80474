"""The MLP with its layer norm, LayerScale and residual, in two matmuls with epilogues.

Unfused, GELU alone reads and writes the hidden values, which are four times as large as the tokens.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from .. import reference
from ..second_order import twice_differentiable
from . import norm
from .matmul import gelu_backward, matmul, over_tokens


def add_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gamma: Tensor,
    keep: Optional[Tensor] = None,
    dtype: Optional[torch.dtype] = None,
) -> Tensor:
    """x + keep gamma (GELU(LN(x) W1^T + b1) W2^T + b2), without a backward pass.

    Args:
        x (Tensor): Tokens (B, N, C).
        w1, b1, w2, b2 (Tensor): (D, C), (D), (C, D) and (C).
        keep (Tensor, optional): Stochastic depth, (B, 1, 1).
        dtype (torch.dtype, optional): Of the matmuls and of the hidden values; defaults to that of x.

    Returns:
        Tensor: (B, N, C), in the type of x.
    """
    return _forward(x.contiguous(), norm_weight, norm_bias, eps, w1, b1, w2, b2, gamma, keep, dtype or x.dtype)[0]


def _forward(
    x, norm_weight, norm_bias, eps, w1, b1, w2, b2, gamma, keep, dtype, stores: bool = False
) -> Tuple[Tensor, ...]:
    """The result; mean and rstd of each token; the output of the first layer if it is stored, (1, B N, D)."""
    normed, mean, rstd = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype)
    normed, tokens = (t.view(1, -1, x.shape[2]) for t in (normed, x))
    hidden = normed.new_empty(1, tokens.shape[1], len(w1)) if stores else None
    activated = matmul(normed, w1.to(dtype).contiguous().t(), b1, dtype, 'gelu', hidden=hidden)
    keep = None if keep is None else keep.flatten()
    out = matmul(activated, w2.to(dtype).contiguous().t(), b2, x.dtype, 'residual', tokens, gamma, keep, x.shape[1])
    return out.view_as(x), mean, rstd, hidden


class AddMlp(torch.autograd.Function):
    """:func:`add_mlp` with a backward pass, for which x and the output of the first layer are kept."""

    @staticmethod
    def reference(x, norm_weight, norm_bias, eps, w1, b1, w2, b2, gamma, keep, _) -> Tensor:
        return reference.add_mlp(x, norm_weight, norm_bias, eps, w1, b1, w2, b2, gamma, keep)

    @staticmethod
    def arguments(ctx: Any) -> tuple:
        x, _, _, norm_weight, norm_bias, w1, b1, w2, b2, gamma, keep, _ = ctx.saved_tensors
        return x, norm_weight, norm_bias, ctx.eps, w1, b1, w2, b2, gamma, keep, ctx.dtype

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        gamma: Tensor,
        keep: Optional[Tensor],
        dtype: Optional[torch.dtype],
    ) -> Tensor:
        x = x.contiguous()
        ctx.eps, ctx.dtype = eps, dtype or x.dtype
        out, mean, rstd, hidden = _forward(
            x, norm_weight, norm_bias, eps, w1, b1, w2, b2, gamma, keep, ctx.dtype, stores=True
        )
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, w1, b1, w2, b2, gamma, keep, hidden)
        return out

    @twice_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, mean, rstd, norm_weight, norm_bias, w1, _, w2, b2, gamma, keep, hidden = ctx.saved_tensors
        grad = grad.contiguous()
        kept, total = norm.branch_gradient(grad, None if keep is None else keep.flatten(), ctx.dtype)
        kept, total = kept.view(1, -1, x.shape[2]), total.sum((0, 1))
        size = norm.size_of(gamma)
        by_second = (w2 * (gamma / size)[:, None]).to(ctx.dtype)
        by_hidden, activated, by_b1 = gelu_backward(kept, by_second, hidden)
        product = over_tokens(kept, activated)[0]
        normed = norm.layer_norm(x, norm_weight, norm_bias, ctx.eps, ctx.dtype)[0]
        by_w1 = over_tokens(by_hidden, normed.view_as(kept))[0] * size
        grads = norm.backward(by_hidden[0] @ w1.to(ctx.dtype), x, mean, rstd, norm_weight, size, grad)
        by_gamma = (product * w2).sum(1) + total * b2
        return (*grads, None, by_w1, by_b1 * size, product * gamma[:, None], total * gamma, by_gamma, None, None)
