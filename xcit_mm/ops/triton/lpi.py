"""Local patch interaction (paper, section 3.3) with its layer norm, LayerScale and residual, in three kernels.

Unfused it is 13 passes over the tokens, read or written. Here it is seven: the layer norm (one read, one written),
conv1 with GELU after it (the same), conv2 with the batch norm before it and LayerScale and residual after it (two read,
one written).
"""

from functools import partial
from types import SimpleNamespace
from typing import Any, List, Optional

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from . import layer_scale, norm
from .depthwise import convolve, convolve_backward
from .launch import on

MERGE = dict(BLOCK_P=64, BLOCK_C=32, num_warps=4)
GRADIENTS = dict(BLOCK_C=32, num_warps=1)


def forward(
    x: Tensor,
    weights: List[Tensor],
    keep: Optional[Tensor],
    eps: float,
    dtype: torch.dtype,
    keeps: bool,
    height: int,
    bn_eps: float,
    bn_mean: Optional[Tensor],
    bn_var: Optional[Tensor],
    group: Any = None,
) -> List[Tensor]:
    """x + keep gamma conv2(BN(GELU(conv1(LN(x))))); see :mod:`~xcit_mm.ops.triton.operators`.

    Kept are the statistics of the layer norm and GELU's output (B, N, C); everything else is computed again. Without
    ``bn_mean`` and ``bn_var``, BN has the statistics of the batch, which come last, (4, C): mean, variance, unbiased
    variance and number of places.

    Args:
        weights (list[Tensor]): Of the layer norm, conv1 (C, 1, 3, 3) and (C), BN and conv2; gamma (C).
        height (int): Rows of an image.
        group (ProcessGroup, optional): Processes whose images are one batch for BN.
    """
    norm_weight, norm_bias, conv1_weight, conv1_bias, bn_weight, bn_bias, conv2_weight, conv2_bias, gamma = weights
    x = x.contiguous()
    normed, mean, rstd = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype)
    image, normed = (t.unflatten(1, (height, -1)) for t in (x, normed))
    hidden, parts = convolve(normed, conv1_weight, conv1_bias, dtype, gelu=True, moments=bn_mean is None)
    moments = [] if parts is None else [_over_processes(merged(parts), group, bn_eps)]
    batch_norm = (bn_mean, bn_var) if parts is None else moments[0][:2]
    out, _ = convolve(
        hidden, conv2_weight, conv2_bias, x.dtype, (*batch_norm, bn_weight, bn_bias), bn_eps,
        residual=image, gamma=gamma, keep=keep,
    )  # fmt: skip
    out = out.flatten(1, 2)
    return [out, mean, rstd, hidden.flatten(1, 2), *moments] if keeps else [out, *moments]


def like(x, weights, keep, eps, dtype, keeps, height, bn_eps, bn_mean, bn_var) -> List[Tensor]:
    hidden = [torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)] if keeps else []
    moments = [x.new_empty(4, x.shape[2], dtype=torch.float32)] if bn_mean is None else []
    return [*norm.like(x, keeps), *hidden, *moments]


def plain(x, weights, keep, eps, dtype, keeps, height, bn_eps, bn_mean, bn_var) -> Tensor:
    *first, conv2_weight, conv2_bias, gamma = weights
    last = bn_mean, bn_var, bn_eps, conv2_weight, conv2_bias, gamma, height, keep
    return reference.add_lpi(x, *first[:2], eps, *first[2:], *last)


def backward(
    grad, kept, x, weights, keep, eps, dtype, keeps, height, bn_eps, bn_mean, bn_var, group=None
) -> List[Tensor]:
    """Gradients for that of the result of :func:`forward`."""
    norm_weight, norm_bias, conv1_weight, conv1_bias, bn_weight, bn_bias, conv2_weight, conv2_bias, gamma = weights
    mean, rstd, hidden, *moments = kept
    x, grad = x.contiguous(), grad.contiguous()
    scaled, size = layer_scale.split(gamma)
    normed = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype)[0]
    normed, hidden, grad_image = (t.unflatten(1, (height, -1)) for t in (normed, hidden, grad))
    batch_norm = *(moments[0][:2] if moments else (bn_mean, bn_var)), bn_weight, bn_bias
    by_hidden = torch.empty_like(hidden)
    second = convolve_backward(
        grad_image, conv2_weight, hidden, batch_norm, bn_eps, by_hidden, True, keep=keep, gamma=scaled
    )
    bn_sums = _sum_over_processes(second[9:11], group, size, batch_norm[1], bn_eps) if moments else None
    bn_count = moments[0][3] if moments else None
    first = convolve_backward(
        normed, conv1_weight, hidden, batch_norm, bn_eps, by_hidden, False,
        bias=conv1_bias, bn_sums=bn_sums, bn_count=bn_count,
    )  # fmt: skip
    by_normed, _ = convolve(by_hidden, conv1_weight, None, hidden.dtype, flipped=True)
    by_x, by_norm = norm.backward(by_normed, x, mean, rstd, norm_weight, size, grad)
    grads = [torch.empty(weight.shape, dtype=torch.float32, device=x.device) for weight in weights[2:]]
    C = len(gamma)
    with on(x):
        gradients_kernel[(triton.cdiv(C, GRADIENTS['BLOCK_C']),)](
            first, second, conv2_weight, conv2_bias, gamma, size, *grads, C, **GRADIENTS
        )
    return [by_x, by_norm, *grads]


@triton.jit
def gradients_kernel(
    first, second, conv2_weight, conv2_bias, gamma, size,
    by_conv1_weight, by_conv1_bias, by_bn_weight, by_bn_bias, by_conv2_weight, by_conv2_bias, by_gamma,
    C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of the weights from the sums of :func:`~.depthwise.backward_kernel`, (12, C) each, and LayerScale."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    factor = tl.load(size)
    scale = tl.load(gamma + c, real, 0.0).to(tl.float32)
    along = tl.zeros((BLOCK_C,), tl.float32)
    for tap in tl.static_range(9):
        tl.store(by_conv1_weight + c * 9 + tap, tl.load(first + tap * C + c, real, 0.0) * factor, real)
        value = tl.load(second + tap * C + c, real, 0.0)
        tl.store(by_conv2_weight + c * 9 + tap, value * scale, real)
        along += value * tl.load(conv2_weight + c * 9 + tap, real, 0.0).to(tl.float32)
    tl.store(by_conv1_bias + c, tl.load(first + 9 * C + c, real, 0.0) * factor, real)
    tl.store(by_bn_bias + c, tl.load(second + 9 * C + c, real, 0.0) * factor, real)
    tl.store(by_bn_weight + c, tl.load(second + 10 * C + c, real, 0.0) * factor, real)
    total = tl.load(second + 11 * C + c, real, 0.0)
    tl.store(by_conv2_bias + c, total * scale, real)
    tl.store(by_gamma + c, along + total * tl.load(conv2_bias + c, real, 0.0).to(tl.float32), real)


@triton.jit(do_not_specialize=['parts'])
def merge_kernel(moments, out, parts, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """See :func:`merged`, for a block of channels; in two passes, the second over deviations from the mean of all."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P).to(tl.int64)
    count = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, parts, BLOCK_P):
        mask = (start + p < parts)[:, None] & (c < C)[None, :]
        place = moments + ((start + p)[:, None] * (3 * C) + c[None, :])
        places = tl.load(place + 2 * C, mask, 0.0)
        count += places
        total += places * tl.load(place, mask, 0.0)
    number = tl.sum(count, 0)
    mean = tl.sum(total, 0) / number
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, parts, BLOCK_P):
        mask = (start + p < parts)[:, None] & (c < C)[None, :]
        place = moments + ((start + p)[:, None] * (3 * C) + c[None, :])
        deviation = tl.load(place, mask, 0.0) - mean[None, :]
        squares += tl.load(place + C, mask, 0.0) + tl.load(place + 2 * C, mask, 0.0) * deviation * deviation
    square = tl.sum(squares, 0)
    tl.store(out + c, mean, c < C)
    tl.store(out + C + c, square / number, c < C)
    tl.store(out + 2 * C + c, square / (number - 1.0), c < C)
    tl.store(out + 3 * C + c, number, c < C)


def merged(moments: Tensor) -> Tensor:
    """Statistics of everything from those of its parts, without cancellation (Chan et al.).

    Args:
        moments (Tensor): Mean, sum of squared deviations and number of places of each part, (parts, 3, C).

    Returns:
        Tensor: Mean, variance, unbiased variance and number of places, (4, C).
    """
    parts, _, C = moments.shape
    out = moments.new_empty(4, C)
    with on(moments):
        merge_kernel[(triton.cdiv(C, MERGE['BLOCK_C']),)](moments, out, parts, C, **MERGE)
    return out


def synchronised(group: Any) -> SimpleNamespace:
    """This module for a batch norm with the statistics of several processes, which has no second derivatives."""

    def no_plain(*_) -> Tensor:
        raise NotImplementedError('SyncBN of several processes has no second derivatives')

    return SimpleNamespace(
        forward=partial(forward, group=group), backward=partial(backward, group=group), plain=no_plain
    )


# Between processes the messages are those of torch.nn.SyncBatchNorm, so that a process which does not run the kernels
# (a hook, another GPU) can take part.


def _over_processes(moments: Tensor, group: Any, eps: float) -> Tensor:
    """:func:`merged` over the processes of a group; each tells its mean, 1 / sqrt(variance + eps) and number."""
    if group is None:
        return moments
    mean, var, _, count = moments
    own = torch.cat((mean, (var + eps).rsqrt(), count[:1]))
    everybody = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everybody, own, group)
    C = len(mean)
    means, inv_stds, counts = torch.stack(everybody).split((C, C, 1), 1)
    squares = (inv_stds.pow(-2) - eps).clamp_min(0) * counts
    return merged(torch.stack((means, squares, counts.expand(-1, C)), 1))


def _sum_over_processes(sums: Tensor, group: Any, size: Tensor, var: Tensor, eps: float) -> Tensor:
    """Sums (2, C) of BN's gradients, and of these times its normalised input, over the processes of a group.

    Told are the sums without LayerScale's factor ``size``, the second of them before division by the deviation.
    """
    if group is None:
        return sums
    factors = torch.stack((torch.ones_like(var), (var + eps).sqrt())) * size
    told = sums * factors
    dist.all_reduce(told, group=group)
    return told / factors
