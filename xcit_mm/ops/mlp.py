"""The residual branch of the MLP, x + gamma MLP(LN(x)), over chunks of tokens, forward and backward.

The MLP's hidden values are four times as many as the tokens', and each pointwise step is a pass over memory. A chunk of
them stays in a CPU's cache and is then forgotten. For the backward pass only the tokens and the output of the first
layer are kept; layer norm and GELU are computed again. All of it is exact: the same sums in chunks.
"""

from functools import partial
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .chunks import chunk_size, evenly, pieces
from .matmul import TOKENS_IN_ROW, linear, linear_backward, linear_gelu, packed_linear
from .precision import compute_dtype, in_range, without_autocast
from .private import register
from .second_order import twice_differentiable
from .sums import add_to, layer_norm_backward


def add_mlp_(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    gamma: Tensor,
) -> None:
    """x += gamma (GELU(LN(x) W1^T + b1) W2^T + b2) in place, without a backward pass: (B, N, C), gamma (C)."""
    x, C = x.flatten(0, 1), x.shape[-1]
    dtype = compute_dtype(fc1_weight)
    w1, b1, w2, b2 = (t.to(dtype) for t in (fc1_weight, fc1_bias, fc2_weight, fc2_bias))
    norm_weight, norm_bias = norm_weight.to(x.dtype), norm_bias.to(x.dtype)
    parts = list(evenly(len(x), _chunk_size(x, w1), TOKENS_IN_ROW))
    size = parts[0].stop if parts else 0
    with without_autocast(x):
        if len(parts) > 1:
            fc1, fc2 = packed_linear(w1, b1, size, gelu=True), packed_linear(w2, b2, size)
        else:  # packing takes longer than oneDNN's own for one call
            fc1, fc2 = partial(linear_gelu, weight=w1, bias=b1), partial(linear, weight=w2, bias=b2)
        for part in parts:
            # The last goes over some tokens again, to be of the size that the matrices are packed for.
            whole = slice(part.stop - size, part.stop)
            normed = F.layer_norm(x[whole], (C,), norm_weight, norm_bias, eps).to(dtype)
            x[part].addcmul_(fc2(fc1(normed))[part.start - whole.start :], gamma)


def add_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    gamma: Tensor,
    keep: Optional[Tensor] = None,
) -> Tensor:
    """x + keep gamma MLP(LN(x)). Differentiable."""
    mlp = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    return NormedMlp.apply(x, norm_weight, norm_bias, eps, *mlp, gamma, keep)


def _chunk_size(x: Tensor, weight: Tensor) -> int:
    """Tokens (M, C) of a chunk: twice as many in half precision."""
    return max(1, chunk_size(x) * 2 // weight.element_size())


class NormedMlp(torch.autograd.Function):
    """:func:`add_mlp` with its backward pass: (B, N, C) -> the same. Gamma is (C), keep None or (B, 1, 1)."""

    reference = staticmethod(reference.add_mlp)

    @staticmethod
    def arguments(ctx) -> tuple:
        x, weight, bias, w1, b1, w2, b2, gamma, keep, *_ = ctx.saved_tensors
        return x, weight, bias, ctx.eps, w1, b1, w2, b2, gamma, keep

    @staticmethod
    def forward(ctx, x, weight, bias, eps, w1, b1, w2, b2, gamma, keep):
        ctx.eps, ctx.dtype = eps, compute_dtype(x)
        hidden = []
        out = torch.empty_like(x)
        v1, c1, v2, c2 = (t.to(ctx.dtype) for t in (w1, b1, w2, b2))
        factor = gamma if keep is None else gamma * keep
        with without_autocast(x):
            for piece in pieces(x, _chunk_size(x, v1)):
                normed = F.layer_norm(x[piece], x.shape[-1:], weight, bias, eps).to(ctx.dtype)
                hidden.append(linear(normed.flatten(0, 1), v1, c1))
                branch = linear(F.gelu(hidden[-1]), v2, c2).view_as(normed)
                torch.addcmul(x[piece], branch, factor if factor.dim() == 1 else factor[piece[0]], out=out[piece])
        ctx.save_for_backward(x, weight, bias, w1, b1, w2, b2, gamma, keep, *hidden)
        return out

    @twice_differentiable
    def backward(ctx, grad_out):
        x, weight, bias, w1, b1, w2, b2, gamma, keep, *hidden = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.empty_like(x), None, None
        grad_w1 = grad_b1 = grad_scaled_w2 = total = None
        factor, size = in_range(gamma, ctx.dtype)
        v1, v2 = w1.to(ctx.dtype), (w2 * factor[:, None]).to(ctx.dtype)
        with without_autocast(x):
            for piece, h in zip(pieces(x, _chunk_size(x, v1)), hidden):
                normed, mean, rstd = torch.native_layer_norm(x[piece], x.shape[-1:], weight, bias, ctx.eps)
                grad = grad_out[piece].to(ctx.dtype)
                if keep is not None:
                    grad = grad * keep[piece[0]].to(ctx.dtype)
                grads = linear_backward(grad.flatten(0, 1), F.gelu(h), v2)
                grad_scaled_w2, total = add_to(grad_scaled_w2, grads[1]), add_to(total, grads[2])
                grad = grads[0] if size is None else grads[0] * size
                grads = linear_backward(torch.ops.aten.gelu_backward(grad, h), normed.flatten(0, 1).to(ctx.dtype), v1)
                grad_w1, grad_b1 = add_to(grad_w1, grads[1]), add_to(grad_b1, grads[2])
                grads = layer_norm_backward(grads[0].view_as(normed).to(x.dtype), x[piece], mean, rstd, weight, bias)
                torch.add(grad_out[piece], grads[0], out=grad_x[piece])
                grad_weight, grad_bias = add_to(grad_weight, grads[1]), add_to(grad_bias, grads[2])
        grad_gamma = torch.addcmul((grad_scaled_w2 * w2).sum(1), total, b2)
        grad_w2, grad_b2 = grad_scaled_w2 * gamma[:, None], total * gamma
        return grad_x, grad_weight, grad_bias, None, grad_w1, grad_b1, grad_w2, grad_b2, grad_gamma, None


register(add_mlp_, lambda *_: None, mutates=('x',))
