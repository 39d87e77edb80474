"""Class attention with one query: keys and values of all tokens need not exist.

``q . (W_k x)`` is ``(W_k^T q) . x`` (the key's bias shifts all logits alike and cancels in the softmax), and the value
projection acts on the pooled token. Exact, and O(N C heads) instead of O(N C^2). cls_token is (B, 1, C), tokens are
(B, N, C), attention weights (B, heads, 1 + N). Differentiable.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_weights(
    cls_token: Tensor, tokens: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, num_heads: int
) -> Tensor:
    """Weights of the class token on itself and on the tokens."""
    B, _, C = cls_token.shape
    d = C // num_heads
    w_q, w_k, _ = qkv_weight.chunk(3)
    q = F.linear(cls_token, w_q, qkv_bias[:C]).view(B, num_heads, 1, d)
    key_query = (q @ w_k.view(num_heads, d, C)).squeeze(2) * d**-0.5  # (B, heads, C)
    logits = [key_query @ t.transpose(1, 2) for t in (cls_token, tokens)]
    return torch.cat(logits, dim=-1).softmax(dim=-1)


def pooled_value(attn: Tensor, cls_token: Tensor, tokens: Tensor, qkv_weight: Tensor, qkv_bias: Tensor) -> Tensor:
    """The values, weighted by attn: (B, 1, C)."""
    B, _, C = cls_token.shape
    heads, d = attn.shape[1], C // attn.shape[1]
    pooled = attn[..., :1] * cls_token + attn[..., 1:] @ tokens  # (B, heads, C)
    w_v, b_v = qkv_weight[2 * C :].view(heads, d, C), qkv_bias[2 * C :].view(heads, d)
    # Dropout may leave the weights not summing to one, and the value's bias is weighted by their sum.
    value = (w_v @ pooled.unsqueeze(-1)).squeeze(-1) + attn.sum(-1, keepdim=True) * b_v
    return value.reshape(B, 1, C)
