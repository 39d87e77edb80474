"""The two attentions of XCiT: cross-covariance attention (XCA) and class attention."""

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.reference import cross_covariance_attention


@ops.published(qkv=nn.Linear, attn_drop=nn.Dropout, proj=nn.Linear, proj_drop=nn.Dropout)
class XCA(nn.Module):
    r"""Cross-covariance attention (paper, section 3.2).

    Every head h mixes its d channels, not the N tokens, with weights from the cross-covariance of keys and queries:

    .. math::
        \mathrm{XCA}(q, k, v) = A v, \qquad A = \mathrm{softmax}(\tau\, \hat q \hat k^\top) \in R^{d \times d}

    where :math:`q, k, v \in R^{d \times N}`, the hat is the l2 norm along the tokens and :math:`\tau` is learned.
    :mod:`xcit_mm.ops.xca` has a second form of it for many tokens.

    Args:
        dim (int): Channels C.
        num_heads (int): Heads; d = C / num_heads.
        attn_drop (float): Dropout on A.
        proj_drop (float): Dropout on the output.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(dim, dim * 3)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = cross_covariance_attention(self.qkv(x), self.temperature, self.attn_drop)
        return self.proj_drop(self.proj(x))


class ClassAttention(nn.Module):
    """Class attention (CaiT, arXiv:2103.17239): the class token attends to all tokens, nothing else moves.

    Args:
        dim (int): Channels C.
        num_heads (int): Heads.
        attn_drop (float): Dropout on the attention weights.
        proj_drop (float): Dropout on the output.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def attention(self, cls_token: Tensor, tokens: Tensor) -> Tensor:
        """Weights of the class token on itself and on the N tokens: (B, 1, C), (B, N, C) -> (B, heads, 1 + N)."""
        return ops.attend_class(cls_token, tokens, self.qkv, self.num_heads)[0]

    def forward(self, cls_token: Tensor, tokens: Tensor) -> Tensor:
        """(B, 1, C), (B, N, C) -> the new class token (B, 1, C)."""
        value = ops.attend_class(cls_token, tokens, self.qkv, self.num_heads, self.attn_drop)[1]
        return self.proj_drop(self.proj(value))
