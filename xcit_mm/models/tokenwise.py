"""The parts of a block that treat every token alike, over chunks of tokens, forward and backward.

The MLP's hidden values are four times as large as the tokens, and each pointwise step is a pass over memory. A chunk of
them stays in a CPU's cache and is then forgotten. For the backward pass only the tokens and the output of the
MLP's first layer are kept; layer norms and GELU are computed again. All of it is exact: the same sums in chunks.
"""

from functools import lru_cache, partial
from typing import Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .products import (
    HAS_OPERATORS,
    ONEDNN,
    ONEDNN_BF16,
    ROW,
    affine,
    affine_backward,
    by_columns,
    compute_dtype,
    is_exported,
    is_large_in_fp32,
    is_traced,
    joined,
    linear,
    linear_backward,
    linear_gelu,
    prepared_linear,
    product_over_tokens,
    register,
    suits_onednn,
    without_autocast,
)

# Values: so few that they fit into a CPU's cache, so many that a product is worth its preparations (5461 tokens of 384
# channels); and enough to keep another device busy.
CHUNK_SIZES = {'cpu': 2**21, 'other': 2**24}

LEAST_VALUES = 2**16  # of tokens in inference: fewer are faster as whole layers


def pays_in_chunks(x: Tensor) -> bool:
    """Whether chunks are worth their while: for many tokens (B, N, C), or a backward pass, for which they keep less."""
    return torch.is_grad_enabled() or x.numel() >= LEAST_VALUES


def compiles_in_chunks(x: Tensor) -> bool:
    """Whether torch.compile gets the functions of this module as operators: inference on a CPU in fp32 or bf16.

    Elsewhere the compiler joins norms and pointwise steps of whole layers as well as chunks can, or better. There is no
    autocast in an operator.
    """
    if not HAS_OPERATORS or torch.is_grad_enabled() or compute_dtype(x) != x.dtype:
        return False
    in_bf16 = ONEDNN_BF16 and x.device.type == 'cpu' and x.dtype == torch.bfloat16 and not is_exported()
    return in_bf16 or is_large_in_fp32(x)


def chunk_size(x: Tensor) -> int:
    """Tokens (..., C) of a chunk."""
    return max(1, CHUNK_SIZES.get(x.device.type, CHUNK_SIZES['other']) // x.shape[-1])


def mlp_chunk_size(x: Tensor, weight: Tensor) -> int:
    """Tokens (M, C) of a chunk in an MLP with such weights: fewer, for its hidden values are four times as many."""
    return max(1, chunk_size(x) * 2 // weight.element_size())


def evenly(total: int, size: int, multiple: int = 1) -> Iterator[slice]:
    """Cut so many into parts of about a size, all alike but the last: a small rest takes longer than its share."""
    count = max(1, -(-total // max(1, size)))
    step = max(1, -(-total // count))
    step = -(-step // multiple) * multiple if count > 1 else step
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def pieces(x: Tensor, size: Optional[int] = None) -> Iterator[Tuple[slice, slice]]:
    """Cut tokens (B, N, C) into parts of an image or several whole ones: slices of images and of tokens.

    Args:
        size (int, optional): Tokens of a part; defaults to those of a chunk.
    """
    B, N, _ = x.shape
    size = size or chunk_size(x)
    for images in evenly(B, size // max(1, N)):
        for part in evenly(N, size):
            yield images, part


def gram_step(x: Tensor) -> int:
    """Width of the blocks of x^T x. By symmetry k (k + 1) / 2 of k x k blocks are enough.

    oneDNN prefers fewer and larger products than MKL, and other devices than CPUs a single one.
    """
    C = x.shape[-1]
    if x.device.type != 'cpu':
        return C
    return max(192, -(-C // 4)) if suits_onednn(x) else max(96, -(-C // 4))


@lru_cache(maxsize=None)
def multiplies_into_fp32(dtype: torch.dtype, kind: str) -> bool:
    """Whether a device keeps the fp32 sums of a product of this half type: CUDA from PyTorch 2.8 on."""
    tokens = torch.ones(1, 1, 1, dtype=dtype, device=kind)
    try:
        return torch.bmm(tokens, tokens, out_dtype=torch.float32).item() == 1
    except (TypeError, RuntimeError, NotImplementedError):
        return False


def add_gram(total: Tensor, x: Tensor, first: bool = False) -> None:
    """Add x^T x to ``total`` in fp32, on a CPU to its upper triangle of blocks: the rest follows from symmetry.

    Sums rounded to a half type would overflow, or lose the directions in which the tokens vary little.

    Args:
        total (Tensor): (B, C, C), fp32; finished by :func:`mirrored`.
        x (Tensor): (B, n, C), any floating type.
        first (bool): Write over what is there.
    """
    wide = multiplies_into_fp32(x.dtype, x.device.type)
    x = x if wide else x.float()
    step, onednn = gram_step(x), suits_onednn(x[0])
    for i in range(0, x.shape[2], step):
        # Contiguous here, since a convolution would copy rows and columns of the last block each.
        columns = x[..., i:].contiguous() if onednn else x[..., i:]
        block, rows = total[:, i : i + step, i:], columns[..., :step]
        if not wide and not onednn:
            block.baddbmm_(rows.transpose(1, 2), columns, beta=0 if first else 1)
            continue
        if wide:
            product = torch.bmm(rows.transpose(1, 2), columns, out_dtype=torch.float32)
        else:
            product = joined([product_over_tokens(*image) for image in zip(rows, columns)])
        block.copy_(product) if first else block.add_(product)


def gram(x: Tensor) -> Tensor:
    """x^T x of tokens (B, N, C) of any floating type, fp32, (B, C, C): differentiable, and fit to be traced."""
    # The compiler knows neither oneDNN's products for this nor, for half precision, those that keep fp32 sums.
    faster = ONEDNN if x.device.type == 'cpu' else x.dtype in (torch.float16, torch.bfloat16)
    if faster and HAS_OPERATORS and is_traced() and not is_exported():
        return torch.ops.xcit_mm.gram(x)
    x = x.float()
    C = x.shape[2]
    step = gram_step(x)
    rows = [x[..., i : i + step].transpose(1, 2) @ x[..., i:] for i in range(0, C, step)]
    return mirrored(torch.cat([F.pad(row, (C - row.shape[2], 0)) for row in rows], dim=1))


def _gram(x: Tensor) -> Tensor:
    total = x.new_empty(len(x), x.shape[2], x.shape[2], dtype=torch.float32)
    for piece in pieces(x):
        add_gram(total[piece[0]], x[piece], first=piece[1].start == 0)
    return mirrored(total)


def _gram_backward(ctx, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    # On a CPU in fp32, like the sums.
    dtype = torch.float32 if x.device.type == 'cpu' else x.dtype
    return (x.to(dtype) @ (grad + grad.transpose(1, 2)).to(dtype)).to(x.dtype)


def mirrored(total: Tensor) -> Tensor:
    """(..., C, C) with an upper triangle -> symmetric. Elsewhere than on a CPU it is so already."""
    if total.device.type != 'cpu':
        return total
    return total.triu() + total.triu(1).transpose(-2, -1)


def in_reach(dtype: torch.dtype, gamma: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
    """LayerScale as a matrix of this type may take it, and the factor that is then left for the results, if any.

    fp16 has hardly any numbers for a matrix times LayerScale at its published start of 1e-5.
    """
    if dtype != torch.float16:
        return gamma, None
    size = gamma.detach().float().abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    return gamma / size, size


def normed_moments(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """Second moments and mean of the layer-normed tokens: (B, N, C) -> (B, C, C) / N and (B, 1, C), both fp32."""
    B, N, C = x.shape
    moments = x.new_empty(B, C, C, dtype=torch.float32)
    mean = x.new_empty(B, 1, C, dtype=torch.float32)
    dtype = compute_dtype(weight)
    dtype = dtype if multiplies_into_fp32(dtype, x.device.type) else x.dtype
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
    return mirrored(moments).div_(N), mean.div_(N)


def adds_to_memory(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether products of tokens (n, C) in this type come from a library that adds them to memory, and that pays: MKL.

    On a GPU, to prepare the matrix takes longer than a sum.
    """
    return x.device.type == 'cpu' and x.dtype == dtype == torch.float32 and not suits_onednn(x)


def without_offset(weight: Tensor, bias: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """The matrix M' of an affine map of layer-normed tokens that is a product alone, LN(x) M + m = (n + 1) M'.

    n is what the layer norm multiplies with its weights w and adds its bias b to. It sums to zero over the channels,
    so that n + 1 sums to C, and a number added to a whole column of M' adds C times as much to all results:

        M'_ij = w_i M_ij + (m_j + sum_k b_k M_kj - sum_k w_k M_kj) / C

    Args:
        weight, bias (Tensor): w and b, (C).
        matrix (Tensor): M, (..., C, D).
        offset (Tensor): m, (..., 1, D).
    """
    scaled = matrix * weight[:, None]
    missing = offset + (bias @ matrix).unsqueeze(-2) - scaled.sum(-2, keepdim=True)
    return scaled + missing / len(weight)


def normed_plus_one(x: Tensor, eps: float) -> Tensor:
    """n + 1 of :func:`without_offset`: (..., C) -> (..., C)."""
    return F.layer_norm(x, x.shape[-1:], None, x.new_ones(x.shape[-1]), eps)


def normed_affine(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, matrix: Tensor, offset: Tensor, gamma: Tensor, out: Tensor
) -> None:
    """out = x + gamma (LN(x) P + p), with one map for each image; out may be x.

    Args:
        x (Tensor): (B, N, C).
        weight, bias (Tensor): Of the layer norm, (C).
        matrix, offset (Tensor): P (B, C, C) and p (B, 1, C), fp32.
        gamma (Tensor): (C) or (B, 1, C).
    """
    dtype = compute_dtype(weight)
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    with without_autocast(x):
        if adds_to_memory(x[:1], dtype):
            matrix = by_columns(without_offset(weight, bias, matrix * gamma, offset * gamma))
            for piece in pieces(x):
                torch.baddbmm(x[piece], normed_plus_one(x[piece], eps), matrix[piece[0]], out=out[piece])
            return
        matrix, offset = by_columns(matrix.to(dtype)), offset.to(dtype)
        for piece in pieces(x):
            normed = F.layer_norm(x[piece], x.shape[-1:], weight, bias, eps)
            branch = affine(normed.to(dtype), matrix[piece[0]], offset[piece[0]])
            torch.addcmul(x[piece], branch, _of(gamma, piece[0]), out=out[piece])


def _of(gamma: Tensor, images: slice) -> Tensor:
    """That of some images, where it is not one for all."""
    return gamma if gamma.dim() == 1 else gamma[images]


def add_normed_affine(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, matrix: Tensor, offset: Tensor, gamma: Tensor
) -> None:
    """:func:`normed_affine` in place, without a backward pass."""
    normed_affine(x, weight, bias, eps, matrix, offset, gamma, out=x)


def add_normed_mlp(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor
) -> None:
    """x += gamma (GELU(LN(x) W1^T + b1) W2^T + b2) in place, without a backward pass: (M, C), gamma (C)."""
    dtype = compute_dtype(w1)
    w1, b1, w2, b2 = (t.to(dtype) for t in (w1, b1, w2, b2))
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    parts = list(evenly(len(x), mlp_chunk_size(x, w1), ROW))
    size = parts[0].stop if parts else 0
    with without_autocast(x):
        if len(parts) > 1 and adds_to_memory(x, dtype):
            first, second = without_offset(weight, bias, w1.t(), b1[None]), w2.t() * gamma
            hidden, offset = x.new_empty(size, len(w1)), b2 * gamma
            for part in parts:
                tokens = x[part]
                h = torch.mm(normed_plus_one(tokens, eps), first, out=hidden[: len(tokens)])
                tokens.add_(offset).addmm_(torch.ops.aten.gelu_(h), second)
            return
        if len(parts) > 1:
            fc1, fc2 = prepared_linear(w1, b1, size, gelu=True), prepared_linear(w2, b2, size)
        else:  # to prepare takes longer than oneDNN's own preparation for one call
            fc1, fc2 = partial(linear_gelu, weight=w1, bias=b1), partial(linear, weight=w2, bias=b2)
        for part in parts:
            # The last goes over some tokens again, to be of the size that the matrices are prepared for.
            whole = slice(part.stop - size, part.stop)
            normed = F.layer_norm(x[whole], x.shape[-1:], weight, bias, eps).to(dtype)
            x[part].addcmul_(fc2(fc1(normed))[part.start - whole.start :], gamma)


class NormedMoments(torch.autograd.Function):
    """:func:`normed_moments` with a backward pass."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.save_for_backward(x, weight, bias)
        ctx.eps, ctx.dtype = eps, compute_dtype(x)
        return normed_moments(x, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_moments, grad_mean):
        x, weight, bias = ctx.saved_tensors
        _, N, C = x.shape
        grad_x = grad_weight = grad_bias = None
        with without_autocast(x):
            slope = by_columns(((grad_moments + grad_moments.transpose(1, 2)) / N).to(ctx.dtype))
            shift = (grad_mean / N).to(ctx.dtype)
            for piece in pieces(x):
                normed, mean, rstd = torch.native_layer_norm(x[piece], (C,), weight, bias, ctx.eps)
                grad = affine(normed.to(ctx.dtype), slope[piece[0]], shift[piece[0]]).to(x.dtype)
                grads = _norm_backward(grad, x[piece], mean, rstd, weight, bias)
                if grads[0].shape == x.shape:
                    grad_x = grads[0]
                else:
                    grad_x = torch.empty_like(x) if grad_x is None else grad_x
                    grad_x[piece] = grads[0]
                grad_weight, grad_bias = _sum(grad_weight, grads[1]), _sum(grad_bias, grads[2])
        return grad_x, grad_weight, grad_bias, None


class NormedAffine(torch.autograd.Function):
    """:func:`normed_affine` with a backward pass."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, matrix, offset, gamma):
        ctx.save_for_backward(x, weight, bias, matrix, offset, gamma)
        ctx.eps, ctx.dtype = eps, compute_dtype(x)
        out = torch.empty_like(x)
        normed_affine(x, weight, bias, eps, matrix, offset, gamma, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, weight, bias, matrix, offset, gamma = ctx.saved_tensors
        grad_x, grad_weight, grad_bias, product = torch.empty_like(x), None, None, None
        scale, size = in_reach(ctx.dtype, gamma)
        with without_autocast(x):
            scaled = by_columns((matrix * scale).to(ctx.dtype))
            for piece in pieces(x):
                normed, mean, rstd = torch.native_layer_norm(x[piece], x.shape[-1:], weight, bias, ctx.eps)
                grads = affine_backward(grad_out[piece].to(ctx.dtype), normed.to(ctx.dtype), scaled[piece[0]])
                product = _sum_at(product, piece, grads[1], matrix.shape)
                grad = grads[0].to(x.dtype) if size is None else grads[0].to(x.dtype) * size
                grads = _norm_backward(grad, x[piece], mean, rstd, weight, bias)
                torch.add(grad_out[piece], grads[0], out=grad_x[piece])
                grad_weight, grad_bias = _sum(grad_weight, grads[1]), _sum(grad_bias, grads[2])
        total = grad_out.sum(1, keepdim=True, dtype=torch.float32)
        grad_gamma = torch.addcmul((product * matrix).sum(1, keepdim=True), total, offset)
        grad_gamma = grad_gamma if gamma.dim() == 3 else grad_gamma.sum((0, 1))
        return grad_x, grad_weight, grad_bias, None, product * gamma, total * gamma, grad_gamma


class NormedMlp(torch.autograd.Function):
    """x + s gamma (GELU(LN(x) W1^T + b1) W2^T + b2): (B, N, C) -> the same.

    Gamma is (C), and s None or one factor for each image, (B, 1, 1).
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps, w1, b1, w2, b2, gamma, scale):
        ctx.eps, ctx.dtype = eps, compute_dtype(x)
        hidden = []
        out = torch.empty_like(x)
        v1, c1, v2, c2 = (t.to(ctx.dtype) for t in (w1, b1, w2, b2))
        factor = gamma if scale is None else gamma * scale
        with without_autocast(x):
            for piece in pieces(x, mlp_chunk_size(x, v1)):
                normed = F.layer_norm(x[piece], x.shape[-1:], weight, bias, eps).to(ctx.dtype)
                hidden.append(linear(normed.flatten(0, 1), v1, c1))
                branch = linear(F.gelu(hidden[-1]), v2, c2).view_as(normed)
                torch.addcmul(x[piece], branch, _of(factor, piece[0]), out=out[piece])
        ctx.save_for_backward(x, weight, bias, w1, w2, b2, gamma, scale, *hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, weight, bias, w1, w2, b2, gamma, scale, *hidden = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.empty_like(x), None, None
        grad_w1 = grad_b1 = product = total = None
        factor, size = in_reach(ctx.dtype, gamma)
        v1, v2 = w1.to(ctx.dtype), (w2 * factor[:, None]).to(ctx.dtype)
        with without_autocast(x):
            for piece, h in zip(pieces(x, mlp_chunk_size(x, v1)), hidden):
                normed, mean, rstd = torch.native_layer_norm(x[piece], x.shape[-1:], weight, bias, ctx.eps)
                grad = grad_out[piece].to(ctx.dtype)
                if scale is not None:
                    grad = grad * scale[piece[0]].to(ctx.dtype)
                grads = linear_backward(grad.flatten(0, 1), F.gelu(h), v2)
                product, total = _sum(product, grads[1]), _sum(total, grads[2])
                grad = grads[0] if size is None else grads[0] * size
                grads = linear_backward(torch.ops.aten.gelu_backward(grad, h), normed.flatten(0, 1).to(ctx.dtype), v1)
                grad_w1, grad_b1 = _sum(grad_w1, grads[1]), _sum(grad_b1, grads[2])
                grads = _norm_backward(grads[0].view_as(normed).to(x.dtype), x[piece], mean, rstd, weight, bias)
                torch.add(grad_out[piece], grads[0], out=grad_x[piece])
                grad_weight, grad_bias = _sum(grad_weight, grads[1]), _sum(grad_bias, grads[2])
        grad_gamma = torch.addcmul((product * w2).sum(1), total, b2)
        grad_w2, grad_b2 = product * gamma[:, None], total * gamma
        return grad_x, grad_weight, grad_bias, None, grad_w1, grad_b1, grad_w2, grad_b2, grad_gamma, None


def _sum(total: Optional[Tensor], part: Tensor) -> Tensor:
    """Sums over chunks are kept in fp32, whatever the weights are; autograd casts them."""
    return part.to(torch.promote_types(part.dtype, torch.float32)) if total is None else total.add_(part)


def _sum_at(total: Optional[Tensor], piece: Tuple[slice, slice], part: Tensor, shape: torch.Size) -> Tensor:
    """Sums over the tokens of each image, of that shape; without a copy if there is one piece."""
    if total is None and part.shape == shape:
        return part
    images, tokens = piece
    total = part.new_empty(shape) if total is None else total
    total[images].copy_(part) if tokens.start == 0 else total[images].add_(part)
    return total


def _norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor):
    """Gradients of a layer norm by its input, weight and bias."""
    return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, weight, bias, [True] * 3)


def _register_operators() -> None:
    """Operators that torch.compile calls and does not look into."""

    def moments_like(x, *_):
        return x.new_empty(len(x), x.shape[2], x.shape[2], dtype=torch.float32)

    def mean_like(x, *_):
        return x.new_empty(len(x), 1, x.shape[2], dtype=torch.float32)

    register(normed_moments, lambda *inputs: (moments_like(*inputs), mean_like(*inputs)))
    register(add_normed_affine, lambda *_: None, mutates=('x',))
    register(add_normed_mlp, lambda *_: None, mutates=('x',))
    register(_gram, moments_like, name='gram').register_autograd(
        _gram_backward,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )


if HAS_OPERATORS:
    _register_operators()
