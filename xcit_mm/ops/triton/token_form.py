"""The token form of XCA (paper, section 3.2, equation 3) with its layer norm, LayerScale and residual.

Attention mixes the channels of an image, so with the projection it is one matrix for all of its tokens:
M = blockdiag(A^T) W_o^T, and out = x + keep gamma (v M + b_o). Queries and keys are read once, for the d x d Gram
matrix of each head and for their norms; values once, in the matmul whose epilogue is the residual. Nothing is
permuted, normalised or mixed in memory. cuBLAS computes q, k and v, (B, N, 3C), and in the backward pass what sums over
tokens or over channels. Kept for it are x, 8 bytes for each of its tokens, q, k and v, and 6 bytes for each pair of
channels of a head: of S12/8 at 224, batch 256, in bf16, 490 MB a block besides x. The normed tokens are computed again.
"""

from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import HALF, layer_scale, norm, xca
from .launch import PROGRAMS, on, power_of_2
from .matmul import matmul, over_tokens
from .sums import over_parts

LEAST_SQUARE = tl.constexpr(1e-24)  # of a norm, as in reference.l2_normalized


@triton.jit(do_not_specialize=['N', 'chunk'])
def gram_kernel(
    qkv, gram, squares, N, chunk,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """q^T k and the squared norms of q and k of one head, over a chunk of an image's tokens.

    Neighbouring programs have neighbouring heads: they share cache lines.

    Args:
        qkv (images, N, 3, HEADS, D).
        gram (chunks, images, HEADS, D, D), squares (chunks, images, HEADS, 2, D): Written, fp32.
    """
    C: tl.constexpr = HEADS * D
    head = tl.program_id(0) % HEADS
    image = (tl.program_id(0) // HEADS).to(tl.int64)
    c = tl.arange(0, BLOCK_D)
    t = tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    of_q = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    of_k = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    end = tl.minimum((tl.program_id(1) + 1) * chunk, N)
    for start in range(tl.program_id(1) * chunk, end, BLOCK_T):
        mask = (start + t < end)[:, None] & (c < D)[None, :]
        place = qkv + ((image * N + start) * (3 * C) + head * D) + (t[:, None] * (3 * C) + c[None, :])
        q = tl.load(place, mask, 0.0)
        k = tl.load(place + C, mask, 0.0)
        total = tl.dot(tl.trans(q), k, total, input_precision='ieee')
        of_q += q.to(tl.float32) * q.to(tl.float32)
        of_k += k.to(tl.float32) * k.to(tl.float32)
    place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(squares + place * (2 * D) + c, tl.sum(of_q, 0), c < D)
    tl.store(squares + place * (2 * D) + D + c, tl.sum(of_k, 0), c < D)
    mask = (c < D)[:, None] & (c < D)[None, :]
    tl.store(gram + place * (D * D) + (c[:, None] * D + c[None, :]), total, mask)


@triton.jit
def _softmax(cosine, temperature, c, D: tl.constexpr):
    """Attention (BLOCK_D, BLOCK_D) from cosines, whose padding gets no share."""
    logit = tl.where((c < D)[None, :], cosine * temperature, float('-inf'))
    share = tl.exp(logit - tl.max(logit, 1)[:, None])
    return share / tl.sum(share, 1)[:, None]


@triton.jit(do_not_specialize=['chunks'])
def attention_kernel(
    gram, squares, temperature, attn, cosine, inverse, chunks,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, STORES: tl.constexpr,
):  # fmt: skip
    """Attention of one head of an image, from sums over its chunks, which are added in their order.

    Args:
        attn (images, HEADS, D, D): Written.
        cosine, inverse: As ``attn`` and (images, HEADS, 2, D), fp32, written if STORES: of q and k, and one over norms.
    """
    program = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_D)
    mask = (c < D)[:, None] & (c < D)[None, :]
    place = c[:, None] * D + c[None, :]
    total = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    of_q = tl.zeros((BLOCK_D,), tl.float32)
    of_k = tl.zeros((BLOCK_D,), tl.float32)
    for part in range(chunks):
        first = part * tl.num_programs(0).to(tl.int64) + program
        total += tl.load(gram + first * (D * D) + place, mask, 0.0)
        of_q += tl.load(squares + first * (2 * D) + c, c < D, 0.0)
        of_k += tl.load(squares + first * (2 * D) + D + c, c < D, 0.0)
    inverse_q = 1.0 / tl.sqrt(tl.maximum(of_q, LEAST_SQUARE))
    inverse_k = 1.0 / tl.sqrt(tl.maximum(of_k, LEAST_SQUARE))
    total = total * inverse_q[:, None] * inverse_k[None, :]
    if STORES:
        tl.store(cosine + program * (D * D) + place, total, mask)
        tl.store(inverse + program * (2 * D) + c, inverse_q, c < D)
        tl.store(inverse + program * (2 * D) + D + c, inverse_k, c < D)
    result = _softmax(total, tl.load(temperature + program % HEADS).to(tl.float32), c, D)
    tl.store(attn + program * (D * D) + place, result.to(attn.dtype.element_ty), mask)


@triton.jit
def map_kernel(
    attn, weight, matrix,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rows of one head, and BLOCK_N columns, of an image's matrix blockdiag(attn^T) weight^T.

    Args:
        weight (C, C): Of the projection.
        matrix (images, C, C): Written.
    """
    C: tl.constexpr = HEADS * D
    program = tl.program_id(0).to(tl.int64)
    head = tl.program_id(0) % HEADS
    c = tl.arange(0, BLOCK_D)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (c < D)[:, None] & (c < D)[None, :]
    a = tl.load(attn + program * (D * D) + (c[:, None] * D + c[None, :]), mask, 0.0)
    w = tl.load(weight + head * D + (n[:, None] * C + c[None, :]), (n < C)[:, None] & (c < D)[None, :], 0.0)
    result = tl.dot(tl.trans(a), tl.trans(w), input_precision='ieee').to(matrix.dtype.element_ty)
    mask = (c < D)[:, None] & (n < C)[None, :]
    tl.store(matrix + program * (D * C) + (c[:, None] * C + n[None, :]), result, mask)


@triton.jit
def attention_backward_kernel(
    cosine, inverse, temperature, weight, product, scale, matrix, factors, by_temperature,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    r"""How the gradients of one head's q and k follow from q and k: dq = s k E^T + q f, dk = s q E + k g.

    With cosines S_ij of q_i and k_j, and their gradient dS, :math:`dq_i = (\sum_j dS_{ij} \hat k_j - \hat q_i \sum_j
    dS_{ij} S_{ij}) / |q_i|`, and likewise dk; the second term is missing where a norm is below its bound. The largest
    value of E is 1, for fp16 hardly has the numbers of gradients divided by two norms.

    Args:
        weight (C, C): Of the projection, times LayerScale.
        product (images, C, C): Gradient of the matrix of :func:`map_kernel` before LayerScale, times ``scale``.
        matrix (images, HEADS, D, D): E, written.
        factors (images, HEADS, 3, D): f, g and s, written, fp32.
        by_temperature (images, HEADS): Written, fp32.
    """
    C: tl.constexpr = HEADS * D
    program = tl.program_id(0).to(tl.int64)
    head = tl.program_id(0) % HEADS
    c = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    by_attn = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    for start in range(0, C, BLOCK_N):
        there = start + n < C
        w = tl.load(weight + head * D + ((start + n)[:, None] * C + c[None, :]), there[:, None] & (c < D)[None, :], 0.0)
        place = program * (D * C) + (c[:, None] * C + (start + n)[None, :])
        p = tl.load(product + place, (c < D)[:, None] & there[None, :], 0.0)
        by_attn = tl.dot(tl.trans(w), tl.trans(p), by_attn, input_precision='ieee')
    by_attn = by_attn / scale
    mask = (c < D)[:, None] & (c < D)[None, :]
    place = c[:, None] * D + c[None, :]
    of_head = tl.load(temperature + head).to(tl.float32)
    similar = tl.load(cosine + program * (D * D) + place, mask, 0.0)
    attn = tl.where(mask, _softmax(similar, of_head, c, D), 0.0)
    by_logit = attn * (by_attn - tl.sum(attn * by_attn, 1)[:, None])
    along = by_logit * similar
    tl.store(by_temperature + program, tl.sum(tl.sum(along, 1), 0))
    along = along * of_head
    inverse_q = tl.load(inverse + program * (2 * D) + c, c < D, 0.0)
    inverse_k = tl.load(inverse + program * (2 * D) + D + c, c < D, 0.0)
    f = tl.where(inverse_q * inverse_q * LEAST_SQUARE < 0.99, -inverse_q * inverse_q * tl.sum(along, 1), 0.0)
    g = tl.where(inverse_k * inverse_k * LEAST_SQUARE < 0.99, -inverse_k * inverse_k * tl.sum(along, 0), 0.0)
    result = by_logit * of_head * inverse_q[:, None] * inverse_k[None, :]
    largest = tl.max(tl.max(tl.abs(result), 1), 0)
    result = result / tl.where(largest > 0.0, largest, 1.0)
    tl.store(matrix + program * (D * D) + place, result.to(matrix.dtype.element_ty), mask)
    tl.store(factors + program * (3 * D) + c, f, c < D)
    tl.store(factors + program * (3 * D) + D + c, g, c < D)
    tl.store(factors + program * (3 * D) + 2 * D + c, tl.zeros((BLOCK_D,), tl.float32) + largest, c < D)


@triton.jit(do_not_specialize=['images', 'group'])
def projection_backward_kernel(
    attn, product, partial, images, group,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Columns of one head, and BLOCK_N rows, of the projection's gradient: sums over a group of images.

    Args:
        product (images, C, C): As in :func:`attention_backward_kernel`.
        partial (groups, C, C): Written, fp32.
    """
    C: tl.constexpr = HEADS * D
    head = tl.program_id(0) % HEADS
    c = tl.arange(0, BLOCK_D)
    n = tl.program_id(0) // HEADS * BLOCK_N + tl.arange(0, BLOCK_N)
    square = (c < D)[:, None] & (c < D)[None, :]
    mask = (c < D)[:, None] & (n < C)[None, :]
    total = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
    first = tl.program_id(1) * group
    for image in range(first, tl.minimum(first + group, images)):
        program = tl.cast(image, tl.int64) * HEADS + head
        a = tl.load(attn + program * (D * D) + (c[:, None] * D + c[None, :]), square, 0.0)
        p = tl.load(product + program * (D * C) + (c[:, None] * C + n[None, :]), mask, 0.0)
        total = tl.dot(a, p, total, input_precision='ieee')
    place = tl.program_id(1).to(tl.int64) * (C * C) + head * D
    tl.store(partial + place + (n[None, :] * C + c[:, None]), total, mask)


@triton.jit(do_not_specialize=['N'])
def tokens_backward_kernel(
    qkv, matrix, factors, grad, sums, N,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Gradients of q and k of one head and BLOCK_T tokens of an image, and sums of those of q, k and v over them.

    Args:
        matrix, factors: From :func:`attention_backward_kernel`.
        grad (images, N, 3, HEADS, D): Its queries and keys are written, its values read.
        sums (images, blocks, 3, HEADS, D): Written, fp32.
    """
    C: tl.constexpr = HEADS * D
    blocks = tl.cdiv(N, BLOCK_T)
    head = tl.program_id(0) % HEADS
    block = tl.program_id(0) // HEADS  # of all images
    image = (block // blocks).to(tl.int64)
    start = block % blocks * BLOCK_T
    c = tl.arange(0, BLOCK_D)
    t = tl.arange(0, BLOCK_T)
    mask = (start + t < N)[:, None] & (c < D)[None, :]
    place = (image * N + start) * (3 * C) + head * D + (t[:, None] * (3 * C) + c[None, :])
    q = tl.load(qkv + place, mask, 0.0)
    k = tl.load(qkv + place + C, mask, 0.0)
    by_v = tl.load(grad + place + 2 * C, mask, 0.0)
    program = image * HEADS + head
    square = (c < D)[:, None] & (c < D)[None, :]
    e = tl.load(matrix + program * (D * D) + (c[:, None] * D + c[None, :]), square, 0.0)
    f = tl.load(factors + program * (3 * D) + c, c < D, 0.0)[None, :]
    g = tl.load(factors + program * (3 * D) + D + c, c < D, 0.0)[None, :]
    size = tl.load(factors + program * (3 * D) + 2 * D)
    by_q = tl.dot(k, tl.trans(e), input_precision='ieee') * size + q.to(tl.float32) * f
    tl.store(grad + place, by_q.to(grad.dtype.element_ty), mask)
    by_k = tl.dot(q, e, input_precision='ieee') * size + k.to(tl.float32) * g
    tl.store(grad + place + C, by_k.to(grad.dtype.element_ty), mask)
    place = block.to(tl.int64) * (3 * C) + head * D + c
    tl.store(sums + place, tl.sum(by_q, 0), c < D)
    tl.store(sums + place + C, tl.sum(by_k, 0), c < D)
    tl.store(sums + place + 2 * C, tl.sum(by_v.to(tl.float32), 0), c < D)


def _tile(d: int, dtype: torch.dtype, **sizes: int) -> Dict[str, int]:
    """Of a head's d channels, padded to a power of two for tensor cores, by other sizes, of which fp32 gets a quarter.

    fp32 without tf32 runs on the ordinary units, whose operands take registers as well.
    """
    block, share = max(16, power_of_2(d)), 1 if dtype in HALF else 4
    tile = {name: size // share for name, size in sizes.items()}
    return dict(D=d, BLOCK_D=block, num_warps=4, **tile)


def chunks_of(programs: int, N: int) -> int:
    """Parts that the N tokens of an image are divided into, where each is the work of so many programs.

    As many as fill a GPU, of 128 tokens at least; and so many that no fp32 sum is over more than 8192 tokens.
    """
    return max(1, min(-(-N // 128), PROGRAMS // 2 // programs), -(-N // 8192))


def attention(
    qkv: Tensor, temperature: Tensor, stores: bool = False
) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    """softmax(temperature q̂ k̂^T) of tokens (B, N, 3C), contiguous.

    Args:
        temperature (Tensor): (heads, 1, 1).
        stores (bool): Also return what the backward pass needs.

    Returns:
        tuple: (B, heads, d, d), in the type of qkv; and in fp32 q̂ k̂^T, of the same shape, and one over the norms of
        q and k, (B, heads, 2, d).
    """
    B, N, heads = *qkv.shape[:2], len(temperature)
    d = qkv.shape[2] // 3 // heads
    tile = _tile(d, qkv.dtype, BLOCK_T=64)
    step = tile['BLOCK_T']
    chunk = triton.cdiv(triton.cdiv(N, chunks_of(B * heads, N)), step) * step
    chunks = triton.cdiv(N, chunk)
    gram = qkv.new_empty(chunks, B, heads, d, d, dtype=torch.float32)
    squares = qkv.new_empty(chunks, B, heads, 2, d, dtype=torch.float32)
    attn = qkv.new_empty(B, heads, d, d)
    cosine, inverse = (torch.empty_like(gram[0]), torch.empty_like(squares[0])) if stores else (gram, squares)
    with on(qkv):
        gram_kernel[(B * heads, chunks)](qkv, gram, squares, N, chunk, heads, num_stages=3, **tile)
        attention_kernel[(B * heads,)](
            gram, squares, temperature, attn, cosine, inverse, chunks,
            heads, d, tile['BLOCK_D'], stores, num_warps=8,
        )  # fmt: skip
    return (attn, cosine, inverse) if stores else (attn, None, None)


def _matrix(attn: Tensor, weight: Tensor) -> Tensor:
    """blockdiag(attn^T) weight^T for each image, (B, heads, d, d) and (C, C) -> (B, C, C), in the type of both."""
    B, heads, d, _ = attn.shape
    C = heads * d
    matrix = attn.new_empty(B, C, C)
    tile = _tile(d, attn.dtype, BLOCK_N=128)
    with on(attn):
        map_kernel[(B * heads, triton.cdiv(C, tile['BLOCK_N']))](attn, weight, matrix, heads, **tile)
    return matrix


def forward(
    x: Tensor, weights: List[Tensor], keep: Optional[Tensor], eps: float, dtype: torch.dtype, keeps: bool
) -> List[Tensor]:
    """x + keep gamma XCA(LN(x)); see :mod:`~xcit_mm.ops.triton.operators`.

    Kept are the statistics of the layer norm; q, k and v, (B, N, 3C); and what :func:`attention` returns.

    Args:
        weights (list[Tensor]): Of the layer norm; of queries, keys and values (3C, C) and (3C), of the projection
            (C, C) and (C); temperature (heads, 1, 1); gamma (C).
    """
    norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, temperature, gamma = weights
    x, (_, N, C) = x.contiguous(), x.shape
    normed, mean, rstd = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype)
    qkv = F.linear(normed, qkv_weight.to(dtype), qkv_bias.to(dtype))
    del normed
    attn, *kept = attention(qkv, temperature, keeps)
    matrix = _matrix(attn, proj_weight.to(dtype).contiguous())
    out = matmul(qkv[..., 2 * C :], matrix, proj_bias, x.dtype, 'residual', x, gamma, keep, N)
    return [out, mean, rstd, qkv, attn, *kept] if keeps else [out]  # type: ignore[list-item]  # kept has tensors then


def like(x, weights, keep, eps, dtype, keeps) -> List[Tensor]:
    if not keeps:
        return norm.like(x, keeps)
    (B, N, C), heads = x.shape, len(weights[6])
    d = C // heads
    qkv, attn = x.new_empty(B, N, 3 * C, dtype=dtype), x.new_empty(B, heads, d, d, dtype=dtype)
    inverse = x.new_empty(B, heads, 2, d, dtype=torch.float32)
    return [*norm.like(x, keeps), qkv, attn, torch.empty_like(attn, dtype=torch.float32), inverse]


plain = xca.plain  # both forms compute the same


def backward(grad, kept, x, weights, keep, eps, dtype, *_) -> List[Tensor]:
    """Gradients for that of the result of :func:`forward`."""
    norm_weight, norm_bias, qkv_weight, _, proj_weight, proj_bias, temperature, gamma = weights
    mean, rstd, qkv, *attention_kept = kept
    x, grad = x.contiguous(), grad.contiguous()
    by_branch, total = norm.branch_gradient(grad, keep, dtype)
    scaled, size = layer_scale.split(gamma)
    scaled_weight = layer_scale.scaled_rows(proj_weight, scaled, dtype)
    by_qkv, by_qkv_bias, by_temperature, *product = _backward(
        by_branch, scaled_weight, temperature, qkv, *attention_kept
    )
    last = layer_scale.last_layer(product[0], total, proj_weight, proj_bias, gamma, product[1])
    normed = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype)[0]
    by_qkv_weight = over_tokens(by_qkv.view(1, -1, by_qkv.shape[2]), normed.view(1, -1, x.shape[2]))[0]
    del normed
    first, by_temperature = [by_qkv_weight, by_qkv_bias], by_temperature.view_as(temperature)
    torch._foreach_mul_([*first, by_temperature], size)
    by_x, by_norm = norm.backward(by_qkv @ qkv_weight.to(dtype), x, mean, rstd, norm_weight, size, grad)
    return [by_x, by_norm, *first, *last[:2], by_temperature, last[2]]


def _backward(
    grad: Tensor, weight: Tensor, temperature: Tensor, qkv: Tensor, attn: Tensor, cosine: Tensor, inverse: Tensor
) -> Tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Back through the projection and the attention.

    Args:
        grad (Tensor): Gradient of the tokens before LayerScale, (B, N, C).
        weight (Tensor): Of the projection times LayerScale, (C, C), contiguous.
        attn, cosine, inverse (Tensor): What :func:`attention` returns.

    Returns:
        tuple: Gradients of q, k and v, (B, N, 3C); and in fp32 their sum over tokens, that of the temperature (heads),
        and the projection's without LayerScale, in parts (parts, C, C), when multiplied by the number that comes last.
    """
    B, N, C = grad.shape
    heads, d = attn.shape[1:3]
    # Of random signs, a sum over N tokens is about sqrt(N) of its terms, which are in the range of fp16.
    scale = N**-0.5
    product = qkv.new_empty(B, C, C).baddbmm_(qkv[..., 2 * C :].transpose(1, 2), grad, beta=0, alpha=scale)
    by_qkv = torch.empty_like(qkv)
    torch.bmm(grad, _matrix(attn, weight).transpose(1, 2), out=by_qkv[..., 2 * C :])
    matrix, factors = torch.empty_like(attn), qkv.new_empty(B, heads, 3, d, dtype=torch.float32)
    by_temperature = qkv.new_empty(B, heads, dtype=torch.float32)
    columns = _tile(d, qkv.dtype, BLOCK_N=64)
    across = triton.cdiv(C, columns['BLOCK_N'])
    group = triton.cdiv(B, max(1, min(B, PROGRAMS // (heads * across))))
    groups = triton.cdiv(B, group)
    partial = qkv.new_empty(groups, C, C, dtype=torch.float32)
    tokens = _tile(d, qkv.dtype, BLOCK_T=64)
    blocks = B * triton.cdiv(N, tokens['BLOCK_T'])
    sums = qkv.new_empty(blocks, 3 * C, dtype=torch.float32)
    with on(qkv):
        attention_backward_kernel[(B * heads,)](
            cosine, inverse, temperature, weight, product, scale, matrix, factors, by_temperature, heads, **columns
        )
        projection_backward_kernel[(heads * across, groups)](attn, product, partial, B, group, heads, **columns)
        tokens_backward_kernel[(blocks * heads,)](qkv, matrix, factors, by_qkv, sums, N, heads, **tokens)
    return by_qkv, over_parts(sums.unsqueeze(0))[0], by_temperature.sum(0), partial, 1 / scale
