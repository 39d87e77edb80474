"""The two attentions of XCiT: cross-covariance attention (XCA) and class attention."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import HAS_TILES, HAS_WIDE_PRODUCTS, Linear, affine, compute_dtype, is_traced, linear, without_autocast
from .tokenwise import gram

# Values of tokens: with fewer, the covariance form's many small steps take longer than what they save. On a GPU each of
# them is a launch: estimates, from the launches of both forms and what else GPUs do meanwhile.
LEAST_VALUES = {'cpu': 2**18, 'gpu': 2**20, 'gpu in half precision': 2**22}
HALF = torch.float16, torch.bfloat16


def least_tokens_per_channel(dtype: torch.dtype, device: str) -> int:
    """From which on the covariance form of XCA is faster in such products.

    Its 4 C^3 multiply-adds are computed in fp32, which takes longer than what they save where half precision is much
    faster: on a CPU with tiles for bf16, where the moments are in fp32 too, and on GPUs. Those multiply 8 to 16 times
    as fast in it and then wait for memory, of whose traffic this form needs half as much. By the published figures of a
    T4, V100, H100 and A100 it pays from 6, 8, 9 and 14 tokens for each channel on. If the moments need fp32, it is
    never faster; from 64 on it is taken for its memory, and since sums over all tokens would leave the range of fp16.
    """
    if dtype not in HALF:
        return 2
    if device == 'cpu':
        return 4 if HAS_TILES and dtype == torch.bfloat16 else 2
    return 8 if HAS_WIDE_PRODUCTS else 64


def is_watched(*modules: nn.Module) -> bool:
    """Whether somebody asked to be called with the inputs, outputs or gradients of these modules."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


class XCA(nn.Module):
    r"""Cross-covariance attention (paper, section 3.2).

    Every head h mixes its d channels, not the N tokens, with weights from the cross-covariance of keys and queries:

    .. math::
        \mathrm{XCA}(q, k, v) = A v, \qquad A = \mathrm{softmax}(\tau\, \hat q \hat k^\top) \in R^{d \times d}

    where :math:`q, k, v \in R^{d \times N}`, the hat is the l2 norm along the tokens and :math:`\tau` is learned.

    **Token form.** Computed as written: four products over the tokens (the three projections count as one
    C x 3C product; then q k, A v and the output projection).

    **Covariance form.** XCA sees the tokens only through their second moments. Let :math:`x \in R^{N \times C}` be the
    input, :math:`\tilde x = [x, 1]`, :math:`\tilde W = [W, b]` and :math:`S = \tilde x^\top \tilde x`. Then

    .. math::
        q_i k_j^\top = \tilde w^q_i\, S\, \tilde w^{k\top}_j, \quad
        \lVert q_i \rVert^2 = \tilde w^q_i\, S\, \tilde w^{q\top}_i, \quad
        \lVert k_j \rVert^2 = \tilde w^k_j\, S\, \tilde w^{k\top}_j,

    and the output is one affine map of the input, :math:`x P^\top + p` with
    :math:`[P, p] = W_o\, \mathrm{blockdiag}(A)\, \tilde W_v + [0, b_o]`. Two products over the tokens remain (S and
    :math:`x P^\top`), no q, k, v is ever stored, and the backward pass keeps nothing of size N but x.
    The price is a few C x C products for each image, so the form pays when there are many tokens for each channel.

    Both forms are exact and agree to rounding. Which one runs depends on N and C, on the batch if there is little to
    do, and where half precision is much faster than fp32 on the type too (:meth:`prefers_covariance`).

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
        self.qkv = Linear(dim, dim * 3)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @staticmethod
    def prefers_covariance(
        num_tokens: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        batch_size: Optional[int] = None,
        device: str = 'cpu',
    ) -> bool:
        """The token form costs 4 N C^2 multiply-adds and more, the covariance form 2 N C^2 + 4 C^3.

        Without a batch size the choice is the one for large batches.
        """
        kind = 'cpu' if device == 'cpu' else 'gpu in half precision' if dtype in HALF else 'gpu'
        enough = batch_size is None or batch_size * num_tokens * dim >= LEAST_VALUES[kind]
        return enough and num_tokens >= least_tokens_per_channel(dtype, device) * dim

    def takes_covariance(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether tokens (B, N, C) go through the covariance form, in products of this type."""
        B, N, C = x.shape
        if not is_traced() and is_watched(self.qkv, self.proj):
            return False  # it has no q, k, v to show
        # Models are compiled, and their multiply-adds counted, for any batch size.
        return self.prefers_covariance(N, C, dtype, None if is_traced() or x.is_meta else B, x.device.type)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = self.covariance_form(x) if self.takes_covariance(x, compute_dtype(x)) else self.token_form(x)
        return self.proj_drop(x)

    def token_form(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C), as the paper writes it."""
        B, N, C = x.shape
        qkv = self.qkv(x)
        inv_norm = _inverse_norms(qkv[..., : 2 * C], at_once=x.device.type != 'cpu').view(B, 2, self.num_heads, -1, 1)
        q, k, v = qkv.reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 4, 1)
        q = (q * inv_norm[:, 0]).to(v.dtype)  # before the product, which might overflow fp16
        attn = q @ k.transpose(-2, -1) * inv_norm[:, 1].transpose(-2, -1) * self.temperature
        attn = self.attn_drop(attn.softmax(dim=-1)).to(v.dtype)
        return self.proj((attn @ v).permute(0, 3, 1, 2).reshape(B, N, C))

    def covariance_form(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C), through the second moments of the tokens."""
        # A few sums over all tokens: in half precision they would overflow, or lose the small entries of S. A GPU's
        # products of half precision have sums in fp32.
        tokens = x if x.device.type == 'cpu' else x.to(compute_dtype(x))
        with without_autocast(x):
            moments = gram(tokens) / x.shape[1]
            weight, bias = self.affine_map(moments, x.mean(dim=1, keepdim=True, dtype=torch.float32))
        return affine(x, weight.to(x.dtype), bias.to(x.dtype))

    def affine_map(self, moments: Tensor, mean: Tensor) -> Tuple[Tensor, Tensor]:
        """What the layer does to every token of an image, from the moments of its tokens.

        Args:
            moments (Tensor): S / N without its border, (B, C, C), fp32.
            mean (Tensor): Its border, the mean token, (B, 1, C), fp32.

        Returns:
            tuple[Tensor, Tensor]: P^T (B, C, C) and p (B, 1, C), fp32, so that the output is x P^T + p.
        """
        C = mean.shape[2]
        with without_autocast(moments):
            w_qk, w_v = self.qkv.weight.float().split((2 * C, C))
            b_qk, b_v = self.qkv.bias.float().split((2 * C, C))
            attn = self._attention_from_moments(moments, mean, w_qk, b_qk)
            return self._fold(self.attn_drop(attn), w_v, b_v)

    def _attention_from_moments(self, moments: Tensor, mean: Tensor, w: Tensor, b: Tensor) -> Tensor:
        """S / N -> A (B, heads, d, d). The factor 1 / N cancels in the normalisation.

        With the covariance of the tokens, S / N = cov + mean mean^T, no borders remain: w~ S w~^T / N is
        w cov w^T + u u^T, where u = w mean + b is the mean query or key.
        """
        B, C, _ = moments.shape
        heads, d = self.num_heads, C // self.num_heads
        cov = torch.baddbmm(moments, mean.transpose(1, 2), mean, alpha=-1)
        u = F.linear(mean.squeeze(1), w, b)  # (B, 2C)
        # The covariance is symmetric: cov @ w^T of all images is one product.
        cov_w = linear(cov.flatten(0, 1), w).view(B, C, 2 * C)
        sq_norm = torch.addcmul((cov_w * w.t()).sum(1), u, u)
        inv_q, inv_k = sq_norm.clamp_min(1e-24).rsqrt().view(B, 2, heads, d).unbind(1)
        u_q, u_k = u.view(B, 2, heads, d).unbind(1)
        attn = w[:C].view(heads, d, C) @ cov_w[..., C:].unflatten(2, (heads, d)).permute(0, 2, 1, 3)
        attn = torch.addcmul(attn, u_q.unsqueeze(3), u_k.unsqueeze(2))
        attn = attn * (inv_q.unsqueeze(3) * self.temperature.float()) * inv_k.unsqueeze(2)
        return attn.softmax(dim=-1)

    def _fold(self, attn: Tensor, w_v: Tensor, b_v: Tensor) -> Tuple[Tensor, Tensor]:
        """A -> the affine map of the whole layer: P^T (B, C, C) and p (B, 1, C)."""
        B, heads, d, _ = attn.shape
        C = heads * d
        w_o, b_o = self.proj.weight.float(), self.proj.bias.float()
        mixed = (attn @ w_v.view(heads, d, C)).reshape(B, C, C)
        weight = linear(mixed.transpose(1, 2), w_o)
        bias = F.linear((attn @ b_v.view(heads, d, 1)).reshape(B, 1, C), w_o, b_o)
        return weight, bias


def _inverse_norms(x: Tensor, at_once: bool) -> Tensor:
    """Of the channels along the tokens, in fp32 at least: (B, N, C) -> (B, C).

    In one launch that reads them once and keeps nothing new for the backward pass, or in steps: 2.5 times as fast on a
    CPU, where sums along the tokens are fast ones, since the channels of a token lie side by side.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if at_once:
        return torch.linalg.vector_norm(x, dim=1, dtype=dtype).clamp_min(1e-12).reciprocal()
    return x.to(dtype).square().sum(1).clamp_min(1e-24).rsqrt()


class ClassAttention(nn.Module):
    """Class attention (CaiT, arXiv:2103.17239): the class token attends to all tokens, nothing else moves.

    With one query, keys and values of all tokens need not exist: ``q . (W_k x)`` is ``(W_k^T q) . x`` (the key's bias
    shifts all logits alike and cancels in the softmax), and the value projection acts on the pooled token. Exact, and
    O(N C heads) instead of O(N C^2).

    Args:
        dim (int): Channels C.
        num_heads (int): Heads.
        attn_drop (float): Dropout on the attention weights.
        proj_drop (float): Dropout on the output.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def attention(self, cls_token: Tensor, tokens: Tensor) -> Tensor:
        """Weights of the class token on itself and on the N tokens: (B, 1, C), (B, N, C) -> (B, heads, 1 + N)."""
        B, _, C = cls_token.shape
        heads, d = self.num_heads, C // self.num_heads
        w_q, w_k, _ = self.qkv.weight.chunk(3)
        q = F.linear(cls_token, w_q, self.qkv.bias[:C]).view(B, heads, 1, d)
        key_query = (q @ w_k.view(heads, d, C)).squeeze(2) * self.scale  # (B, heads, C)
        logits = [key_query @ t.transpose(1, 2) for t in (cls_token, tokens)]
        return torch.cat(logits, dim=-1).softmax(dim=-1)

    def forward(self, cls_token: Tensor, tokens: Tensor) -> Tensor:
        """(B, 1, C), (B, N, C) -> the new class token (B, 1, C)."""
        B, _, C = cls_token.shape
        heads, d = self.num_heads, C // self.num_heads
        attn = self.attn_drop(self.attention(cls_token, tokens))
        pooled = attn[..., :1] * cls_token + attn[..., 1:] @ tokens  # (B, heads, C)
        w_v = self.qkv.weight[2 * C :].view(heads, d, C)
        b_v = self.qkv.bias[2 * C :].view(heads, d)
        # Dropout may leave the weights not summing to one, and the value's bias is weighted by their sum.
        value = (w_v @ pooled.unsqueeze(-1)).squeeze(-1) + attn.sum(-1, keepdim=True) * b_v
        return self.proj_drop(self.proj(value.reshape(B, 1, C)))
