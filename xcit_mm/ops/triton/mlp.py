"""The MLP with its layer norm, LayerScale and residual, in two matmuls with epilogues.

Unfused, GELU alone reads and writes the hidden values, which are four times as large as the tokens.
"""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..second_order import twice_differentiable
from . import norm
from .matmul import matmul


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
    x = x.contiguous()
    normed = *norm.statistics(x, eps), norm_weight, norm_bias
    return _forward(x, normed, w1, b1, w2, b2, gamma, keep, dtype or x.dtype, stores=False)[0]


def _forward(x, normed, w1, b1, w2, b2, gamma, keep, dtype, stores: bool) -> Tuple[Tensor, Optional[Tensor]]:
    tokens = x.view(1, -1, x.shape[2])
    hidden = tokens.new_empty(1, tokens.shape[1], len(w1), dtype=dtype) if stores else None
    activated = matmul(tokens, w1.to(dtype).contiguous().t(), b1, dtype, normed, 'gelu', hidden=hidden)
    keep = None if keep is None else keep.flatten()
    out = matmul(
        activated, w2.to(dtype).contiguous().t(), b2, x.dtype, None, 'residual', tokens, gamma, keep, x.shape[1]
    )
    return out.view_as(x), hidden


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
        normed = *norm.statistics(x, eps), norm_weight, norm_bias
        ctx.eps, ctx.dtype = eps, dtype or x.dtype
        out, hidden = _forward(x, normed, w1, b1, w2, b2, gamma, keep, ctx.dtype, stores=True)
        ctx.save_for_backward(x, *normed, w1, b1, w2, b2, gamma, keep, hidden)
        return out

    @twice_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, mean, rstd, norm_weight, norm_bias, w1, _, w2, b2, gamma, keep, hidden = ctx.saved_tensors
        C, grad = x.shape[2], grad.contiguous()
        kept = (grad if keep is None else grad * keep).to(ctx.dtype).view(1, -1, C)
        size = norm.size_of(gamma)
        activated = torch.empty_like(hidden)
        by_second = (w2 * (gamma / size)[:, None]).to(ctx.dtype)
        by_hidden = matmul(
            kept, by_second, None, ctx.dtype, epilogue='gelu_backward', hidden=hidden, activated=activated
        )
        normed = F.layer_norm(x, (C,), norm_weight.to(x.dtype), norm_bias.to(x.dtype), ctx.eps).to(ctx.dtype)
        product, total = _over_tokens(kept[0], activated[0]), kept.sum((0, 1), dtype=torch.float32)
        by_w1 = _over_tokens(by_hidden[0], normed.view(-1, C)) * size
        by_b1 = by_hidden.sum((0, 1), dtype=torch.float32) * size
        grads = norm.backward(by_hidden[0] @ w1.to(ctx.dtype), x, mean, rstd, norm_weight, size, grad)
        by_gamma = (product * w2).sum(1) + total * b2
        return (*grads, None, by_w1, by_b1, product * gamma[:, None], total * gamma, by_gamma, None, None)


def _over_tokens(a: Tensor, b: Tensor) -> Tensor:
    """a^T b in fp32, (n, D) and (n, C) -> (D, C); rounded in between where PyTorch cannot keep fp32 sums."""
    if a.is_cuda and a.dtype != torch.float32 and 'dtype' in torch.ops.aten.mm.overloads():
        return torch.mm(a.t(), b, out_dtype=torch.float32)
    return (a.t() @ b).float()
