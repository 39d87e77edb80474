"""XCiT's maths in plain PyTorch, as the paper writes it: what every other implementation is tested against.

Differentiable as often as one likes, for any device, type and shape. The layers of :mod:`xcit_mm.models` do the same
module by module; that is what hooks, tracers, FLOP counters and changed layers get.

x is the residual stream (B, N, C), gamma the LayerScale (C), keep what stochastic depth multiplies a branch with,
(B, 1, 1) or None.
"""

from typing import Callable, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_fp32


def residual(x: Tensor, branch: Tensor, gamma: Tensor, keep: Optional[Tensor] = None) -> Tensor:
    """x + keep * gamma * branch, in one pass; under autocast in fp32, like gamma."""
    return torch.addcmul(x, branch, gamma if keep is None else gamma * keep)


def cross_covariance_attention(qkv: Tensor, temperature: Tensor, drop: Optional[Callable] = None) -> Tensor:
    """Softmax(temperature * q̂ k̂^T) v (section 3.2, equation 3): (B, N, 3 C) -> (B, N, C).

    Each of the heads mixes its d = C / heads channels; the hat is the l2 norm along the tokens.

    Args:
        qkv (Tensor): Queries, keys and values, side by side.
        temperature (Tensor): (heads, 1, 1).
        drop (Callable, optional): Dropout of the attention weights (B, heads, d, d).
    """
    B, N, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    heads = temperature.shape[0]
    q, k, v = qkv.reshape(B, N, 3, heads, C // heads).permute(2, 0, 3, 4, 1)  # (B, heads, d, N) each
    attn = (l2_normalized(q) @ l2_normalized(k).transpose(-2, -1) * temperature).softmax(dim=-1)
    attn = attn if drop is None else drop(attn)
    return (attn.to(v.dtype) @ v).permute(0, 3, 1, 2).reshape(B, N, C)


def l2_normalized(x: Tensor) -> Tensor:
    """x / max(||x||, 1e-12) along the last dimension; the norm is in fp32 at least, or it would overflow fp16."""
    scale = x.to(at_least_fp32(x.dtype)).square().sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()
    return (x * scale).to(x.dtype)


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
) -> Tensor:
    """x + keep * gamma * XCA(LN(x))."""
    qkv = F.linear(F.layer_norm(x, gamma.shape, norm_weight, norm_bias, eps), qkv_weight, qkv_bias)
    return residual(x, F.linear(cross_covariance_attention(qkv, temperature), proj_weight, proj_bias), gamma, keep)


def add_lpi(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    bn_mean: Optional[Tensor],
    bn_var: Optional[Tensor],
    bn_eps: float,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
    gamma: Tensor,
    height: int,
    keep: Optional[Tensor] = None,
) -> Tensor:
    """x + keep * gamma * LPI(LN(x)) for the tokens of an image of ``height`` rows (section 3.3).

    Without ``bn_mean`` and ``bn_var``, the batch norm has the statistics of the batch.
    """
    C = len(gamma)
    image = F.layer_norm(x, (C,), norm_weight, norm_bias, eps).unflatten(1, (height, -1)).permute(0, 3, 1, 2)
    image = F.gelu(F.conv2d(image, conv1_weight, conv1_bias, padding=1, groups=C))
    image = F.batch_norm(image, bn_mean, bn_var, bn_weight, bn_bias, bn_mean is None, eps=bn_eps)
    image = F.conv2d(image, conv2_weight, conv2_bias, padding=1, groups=C)
    return residual(x, image.flatten(2).transpose(1, 2), gamma, keep)


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
    """x + keep * gamma * MLP(LN(x))."""
    hidden = F.gelu(F.linear(F.layer_norm(x, gamma.shape, norm_weight, norm_bias, eps), fc1_weight, fc1_bias))
    return residual(x, F.linear(hidden, fc2_weight, fc2_bias), gamma, keep)


def class_attention(qkv: Tensor, num_heads: int, drop: Callable) -> Tuple[Tensor, Tensor]:
    """Attention of the first token to all (CaiT, arXiv:2103.17239): (B, 1 + N, 3 C) -> its weights and (B, 1, C)."""
    B, N, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.reshape(B, N, 3, num_heads, C // num_heads).permute(2, 0, 3, 1, 4)  # (B, heads, 1 + N, d) each
    weights = (q[:, :, :1] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1).squeeze(2)
    return weights, (drop(weights).unsqueeze(2) @ v).transpose(1, 2).reshape(B, 1, C)


def embed_patches(image: Tensor, weights: List[Tensor], biases: List[Tensor]) -> Tensor:
    """3x3 convolutions of stride 2, GELU between (section 4.1): (B, 3, H, W) -> (B, ceil(H / p), ceil(W / p), C)."""
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        image = F.conv2d(F.gelu(image) if i else image, weight, bias, stride=2, padding=1)
    return image.permute(0, 2, 3, 1)


def deconvolve(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """2x2 deconvolution of stride 2: (B, C, H, W), (C, D, 2, 2) and (D) -> (B, D, 2H, 2W)."""
    return F.conv_transpose2d(image, weight, bias, stride=2)
