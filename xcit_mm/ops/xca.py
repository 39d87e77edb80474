r"""The residual branch of cross-covariance attention, x + gamma XCA(LN(x)), in two forms.

**Token form.** Computed as the paper writes it: q, k, v of every token.

**Covariance form.** XCA sees the tokens only through their second moments. Let :math:`x \in R^{N \times C}` be its
input, :math:`\tilde x = [x, 1]`, :math:`\tilde W = [W, b]` and :math:`S = \tilde x^\top \tilde x`. Then

.. math::
    q_i k_j^\top = \tilde w^q_i\, S\, \tilde w^{k\top}_j, \quad
    \lVert q_i \rVert^2 = \tilde w^q_i\, S\, \tilde w^{q\top}_i, \quad
    \lVert k_j \rVert^2 = \tilde w^k_j\, S\, \tilde w^{k\top}_j,

and the output is one affine map of the input, :math:`x P^\top + p` with
:math:`[P, p] = W_o\, \mathrm{blockdiag}(A)\, \tilde W_v + [0, b_o]`. Two matmuls over the tokens remain (S and
:math:`x P^\top`), no q, k, v is ever stored, and the backward pass keeps nothing of size N but x. The price is a few
C x C matmuls for each image, so the form pays when there are many tokens for each channel.

Both forms are exact and agree to rounding. Tokens x are (B, N, C), LayerScale gamma (C) or, times stochastic depth's
factor of each image, (B, 1, C).
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .chunks import pieces
from .matmul import add_gram, affine, affine_backward, column_major, linear, symmetric
from .precision import compute_dtype, in_range, without_autocast
from .private import has_wide_bmm, register
from .second_order import twice_differentiable
from .sums import add_at, add_to, layer_norm_backward


def add_token_form(
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
) -> Tensor:
    """x + gamma XCA(LN(x)), through q, k and v. Differentiable."""
    dtype = compute_dtype(qkv_weight)
    normed = F.layer_norm(x, x.shape[-1:], norm_weight.to(x.dtype), norm_bias.to(x.dtype), eps)
    with without_autocast(x):
        qkv = linear(normed.to(dtype), qkv_weight.to(dtype), qkv_bias.to(dtype))
        branch = reference.cross_covariance_attention(qkv, temperature)
        branch = linear(branch, proj_weight.to(dtype), proj_bias.to(dtype))
    return torch.addcmul(x, branch, gamma)


def add_covariance_form(
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
) -> Tensor:
    """x + gamma XCA(LN(x)), through the second moments of the tokens. Differentiable."""
    norm = norm_weight, norm_bias, eps
    moments = NormedMoments.apply(x, *norm)
    matrix, offset = affine_map(*moments, qkv_weight, qkv_bias, proj_weight, proj_bias, temperature)
    return NormedAffine.apply(x, *norm, matrix, offset, gamma)


def add_covariance_form_(
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
) -> None:
    """:func:`add_covariance_form` in place, without a backward pass."""
    norm = norm_weight, norm_bias, eps
    moments = normed_moments(x, *norm)
    matrix, offset = affine_map(*moments, qkv_weight, qkv_bias, proj_weight, proj_bias, temperature)
    add_normed_affine(x, *norm, matrix, offset, gamma, out=x)


def affine_map(
    moments: Tensor,
    mean: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    temperature: Tensor,
) -> Tuple[Tensor, Tensor]:
    """What XCA does to every token of an image, from the moments of its tokens.

    Args:
        moments (Tensor): S / N without its border, (B, C, C), fp32.
        mean (Tensor): Its border, the mean token, (B, 1, C), fp32.

    Returns:
        tuple[Tensor, Tensor]: P^T (B, C, C) and p (B, 1, C), fp32, so that the output is x P^T + p.
    """
    B, _, C = mean.shape
    heads = len(temperature)
    d = C // heads
    with without_autocast(moments):
        w_qk, w_v = qkv_weight.float().split((2 * C, C))
        b_qk, b_v = qkv_bias.float().split((2 * C, C))
        attn = _attention_from_moments(moments, mean, w_qk, b_qk, temperature.float())
        w_o, b_o = proj_weight.float(), proj_bias.float()
        mixed = (attn @ w_v.view(heads, d, C)).reshape(B, C, C)
        weight = linear(mixed.transpose(1, 2), w_o)
        bias = F.linear((attn @ b_v.view(heads, d, 1)).reshape(B, 1, C), w_o, b_o)
    return weight, bias


def _attention_from_moments(moments: Tensor, mean: Tensor, w: Tensor, b: Tensor, temperature: Tensor) -> Tensor:
    """S / N -> A (B, heads, d, d). The factor 1 / N cancels in the normalisation.

    With the covariance of the tokens, S / N = cov + mean mean^T, no borders remain: w~ S w~^T / N is
    w cov w^T + u u^T, where u = w mean + b is the mean query or key.
    """
    B, C, _ = moments.shape
    heads = len(temperature)
    d = C // heads
    cov = torch.baddbmm(moments, mean.transpose(1, 2), mean, alpha=-1)
    u = F.linear(mean.squeeze(1), w, b)  # (B, 2C)
    # The covariance is symmetric: cov @ w^T of all images is one matmul.
    cov_w = linear(cov.flatten(0, 1), w).view(B, C, 2 * C)
    sq_norm = torch.addcmul((cov_w * w.t()).sum(1), u, u)
    inv_q, inv_k = sq_norm.clamp_min(1e-24).rsqrt().view(B, 2, heads, d).unbind(1)
    u_q, u_k = u.view(B, 2, heads, d).unbind(1)
    attn = w[:C].view(heads, d, C) @ cov_w[..., C:].unflatten(2, (heads, d)).permute(0, 2, 1, 3)
    attn = torch.addcmul(attn, u_q.unsqueeze(3), u_k.unsqueeze(2))
    attn = attn * (inv_q.unsqueeze(3) * temperature) * inv_k.unsqueeze(2)
    return attn.softmax(dim=-1)


def normed_moments(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """Second moments and mean of the layer-normed tokens: (B, N, C) -> (B, C, C) / N and (B, 1, C), both fp32."""
    B, N, C = x.shape
    moments = x.new_empty(B, C, C, dtype=torch.float32)
    mean = x.new_empty(B, 1, C, dtype=torch.float32)
    dtype = compute_dtype(weight)
    dtype = dtype if has_wide_bmm(dtype, x.device.type) else x.dtype
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    with without_autocast(x):
        for images, part in pieces(x):
            first = part.start == 0
            normed = F.layer_norm(x[images, part], (C,), weight, bias, eps)
            add_gram(moments[images], normed.to(dtype), first)
            if first:
                torch.sum(normed, 1, keepdim=True, dtype=torch.float32, out=mean[images])
            else:
                mean[images] += normed.sum(1, keepdim=True, dtype=torch.float32)
    return symmetric(moments).div_(N), mean.div_(N)


def add_normed_affine(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, matrix: Tensor, offset: Tensor, gamma: Tensor, out: Tensor
) -> None:
    """out = x + gamma (LN(x) P + p), with one map for each image; out may be x.

    Args:
        x (Tensor): (B, N, C).
        weight, bias (Tensor): Of the layer norm, (C).
        matrix, offset (Tensor): P (B, C, C) and p (B, 1, C), fp32.
        gamma (Tensor): (C) or (B, 1, C).
        out (Tensor): (B, N, C).
    """
    dtype = compute_dtype(weight)
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    with without_autocast(x):
        matrix, offset = column_major(matrix.to(dtype)), offset.to(dtype)
        for piece in pieces(x):
            normed = F.layer_norm(x[piece], x.shape[-1:], weight, bias, eps)
            branch = affine(normed.to(dtype), matrix[piece[0]], offset[piece[0]])
            torch.addcmul(x[piece], branch, gamma if gamma.dim() == 1 else gamma[piece[0]], out=out[piece])


class NormedMoments(torch.autograd.Function):
    """:func:`normed_moments` with a backward pass, which keeps the tokens alone."""

    @staticmethod
    def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
        normed = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        return (normed.transpose(1, 2) @ normed).float() / x.shape[1], normed.mean(1, keepdim=True).float()

    @staticmethod
    def arguments(ctx) -> tuple:
        return (*ctx.saved_tensors, ctx.eps)

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.save_for_backward(x, weight, bias)
        ctx.eps, ctx.dtype = eps, compute_dtype(x)
        return normed_moments(x, weight, bias, eps)

    @twice_differentiable
    def backward(ctx, grad_moments, grad_mean):
        x, weight, bias = ctx.saved_tensors
        _, N, C = x.shape
        grad_x = grad_weight = grad_bias = None
        with without_autocast(x):
            slope = column_major(((grad_moments + grad_moments.transpose(1, 2)) / N).to(ctx.dtype))
            shift = (grad_mean / N).to(ctx.dtype)
            for piece in pieces(x):
                normed, mean, rstd = torch.native_layer_norm(x[piece], (C,), weight, bias, ctx.eps)
                grad = affine(normed.to(ctx.dtype), slope[piece[0]], shift[piece[0]]).to(x.dtype)
                grads = layer_norm_backward(grad, x[piece], mean, rstd, weight, bias)
                if grads[0].shape == x.shape:
                    grad_x = grads[0]
                else:
                    grad_x = torch.empty_like(x) if grad_x is None else grad_x
                    grad_x[piece] = grads[0]
                grad_weight, grad_bias = add_to(grad_weight, grads[1]), add_to(grad_bias, grads[2])
        return grad_x, grad_weight, grad_bias, None


class NormedAffine(torch.autograd.Function):
    """:func:`add_normed_affine` with a backward pass, which keeps the tokens and the map."""

    @staticmethod
    def reference(x, weight, bias, eps, matrix, offset, gamma) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        return reference.residual(x, normed @ matrix.to(x.dtype) + offset.to(x.dtype), gamma)

    @staticmethod
    def arguments(ctx) -> tuple:
        x, weight, bias, *rest = ctx.saved_tensors
        return (x, weight, bias, ctx.eps, *rest)

    @staticmethod
    def forward(ctx, x, weight, bias, eps, matrix, offset, gamma):
        ctx.save_for_backward(x, weight, bias, matrix, offset, gamma)
        ctx.eps, ctx.dtype = eps, compute_dtype(x)
        out = torch.empty_like(x)
        add_normed_affine(x, weight, bias, eps, matrix, offset, gamma, out)
        return out

    @twice_differentiable
    def backward(ctx, grad_out):
        x, weight, bias, matrix, offset, gamma = ctx.saved_tensors
        grad_x, grad_weight, grad_bias, grad_map = torch.empty_like(x), None, None, None
        scale, size = in_range(gamma, ctx.dtype)
        with without_autocast(x):
            scaled = column_major((matrix * scale).to(ctx.dtype))
            for piece in pieces(x):
                normed, mean, rstd = torch.native_layer_norm(x[piece], x.shape[-1:], weight, bias, ctx.eps)
                grads = affine_backward(grad_out[piece].to(ctx.dtype), normed.to(ctx.dtype), scaled[piece[0]])
                grad_map = add_at(grad_map, piece, grads[1], matrix.shape)
                grad = grads[0].to(x.dtype) if size is None else grads[0].to(x.dtype) * size
                grads = layer_norm_backward(grad, x[piece], mean, rstd, weight, bias)
                torch.add(grad_out[piece], grads[0], out=grad_x[piece])
                grad_weight, grad_bias = add_to(grad_weight, grads[1]), add_to(grad_bias, grads[2])
        total = grad_out.sum(1, keepdim=True, dtype=torch.float32)
        grad_gamma = torch.addcmul((grad_map * matrix).sum(1, keepdim=True), total, offset)
        grad_gamma = grad_gamma if gamma.dim() == 3 else grad_gamma.sum((0, 1))
        return grad_x, grad_weight, grad_bias, None, grad_map * gamma, total * gamma, grad_gamma


register(add_covariance_form_, lambda *_: None, mutates=('x',))
register(add_token_form, lambda x, *_: torch.empty_like(x))
