"""Local patch interaction (paper, section 3.3) with its layer norm, LayerScale and residual, in three kernels.

Unfused it is 13 passes over the tokens, read or written. Here it is seven: the layer norm (one read, one written),
conv1 with GELU after it (the same), conv2 with the batch norm before it and LayerScale and residual after it (two read,
one written).
"""

from functools import lru_cache
from typing import Any, Optional, Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..reference import residual
from ..second_order import twice_differentiable
from . import norm
from .depthwise import FORWARD, convolve, convolve_backward
from .launch import strip


def add_lpi(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    bn_mean: Tensor,
    bn_var: Tensor,
    bn_eps: float,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
    gamma: Tensor,
    height: int,
    keep: Optional[Tensor] = None,
    dtype: Optional[torch.dtype] = None,
) -> Tensor:
    """x + keep gamma conv2(BN(GELU(conv1(LN(x))))), without a backward pass and with BN's running statistics.

    Args:
        x (Tensor): Tokens (B, N, C) of images of that many rows.
        conv1_weight, conv2_weight (Tensor): (C, 1, 3, 3).
        keep (Tensor, optional): Stochastic depth, (B, 1, 1).
        dtype (torch.dtype, optional): Between the convolutions; defaults to that of x. All sums are fp32.

    Returns:
        Tensor: (B, N, C), in the type of x.
    """
    x = x.contiguous()
    normed, _, _ = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype or x.dtype)
    image, normed = (t.unflatten(1, (height, -1)) for t in (x, normed))
    hidden, _ = convolve(normed, conv1_weight, conv1_bias, normed.dtype, gelu=True)
    out, _ = convolve(
        hidden, conv2_weight, conv2_bias, x.dtype, (bn_mean, bn_var, bn_weight, bn_bias), bn_eps,
        residual=image, gamma=gamma, keep=None if keep is None else keep.flatten(),
    )  # fmt: skip
    return out.flatten(1, 2)


def add_lpi_training(
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
    dtype: Optional[torch.dtype] = None,
    group: Any = None,
) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    """:func:`add_lpi` with a backward pass; without ``bn_mean`` and ``bn_var``, BN has the statistics of the batch.

    Args:
        group (ProcessGroup, optional): Processes whose images are one batch for BN.

    Returns:
        tuple: Tokens (B, N, C), and of the batch mean and unbiased variance, (C) in fp32, if they were needed.
    """
    found = x.new_empty(2, x.shape[2], dtype=torch.float32) if bn_mean is None else None
    out = AddLpi.apply(
        x, norm_weight, norm_bias, eps, conv1_weight, conv1_bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps,
        conv2_weight, conv2_bias, gamma, height, keep, dtype or x.dtype, group, found,
    )  # fmt: skip
    mean, var = (None, None) if found is None else found
    return out, mean, var


class AddLpi(torch.autograd.Function):
    """:func:`add_lpi_training`; the statistics of the batch are written into ``found``.

    Kept are x, 8 bytes for each of its tokens, and GELU's output; everything else is computed again.
    """

    @staticmethod
    def reference(
        x, norm_weight, norm_bias, eps, conv1_weight, conv1_bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps,
        conv2_weight, conv2_bias, gamma, height, keep, *_,
    ) -> Tensor:  # fmt: skip
        C = len(gamma)
        image = F.layer_norm(x, (C,), norm_weight, norm_bias, eps).unflatten(1, (height, -1)).permute(0, 3, 1, 2)
        image = F.gelu(F.conv2d(image, conv1_weight, conv1_bias, padding=1, groups=C))
        image = F.batch_norm(image, bn_mean, bn_var, bn_weight, bn_bias, bn_mean is None, eps=bn_eps)
        image = F.conv2d(image, conv2_weight, conv2_bias, padding=1, groups=C)
        return residual(x, image.flatten(2).transpose(1, 2), gamma, keep)

    @staticmethod
    def arguments(ctx: Any) -> tuple:
        if ctx.of_batch and _several(ctx.group):
            raise NotImplementedError('SyncBN of several processes has no second derivatives')
        x, _, _, *norm_weights, w1, b1, mean, var, bn_weight, bn_bias, _, w2, b2, gamma, keep = ctx.saved_tensors
        statistics = (None, None) if ctx.of_batch else (mean, var)
        return (
            x, *norm_weights, ctx.eps, w1, b1, bn_weight, bn_bias, *statistics, ctx.bn_eps,
            w2, b2, gamma, ctx.height, None if keep is None else keep.view(-1, 1, 1),
            ctx.dtype, None, None,
        )  # fmt: skip

    @staticmethod
    def forward(
        ctx, x, norm_weight, norm_bias, eps, conv1_weight, conv1_bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps,
        conv2_weight, conv2_bias, gamma, height, keep, dtype, group, found,
    ) -> Tensor:  # fmt: skip
        x = x.contiguous()
        normed, mean, rstd = norm.layer_norm(x, norm_weight, norm_bias, eps, dtype)
        image, normed = (t.unflatten(1, (height, -1)) for t in (x, normed))
        of_batch = bn_mean is None
        hidden, parts = convolve(normed, conv1_weight, conv1_bias, dtype, gelu=True, moments=of_batch)
        if of_batch:
            counts = _counts(*image.shape, x.device)
            bn_mean, squares, count = _over_processes(_merged(parts[:, 0], parts[:, 1], counts), group, bn_eps)
            bn_var, ctx.count = squares / count, count
            found[0], found[1] = bn_mean, squares / (count - 1)
        batch_norm = bn_mean, bn_var, bn_weight, bn_bias
        keep = None if keep is None else keep.flatten()
        out, _ = convolve(
            hidden, conv2_weight, conv2_bias, x.dtype, batch_norm, bn_eps,
            residual=image, gamma=gamma, keep=keep,
        )  # fmt: skip
        ctx.of_batch, ctx.group, ctx.height = of_batch, group, height
        ctx.dtype, ctx.eps, ctx.bn_eps = dtype, eps, bn_eps
        ctx.save_for_backward(
            x, mean, rstd, norm_weight, norm_bias, conv1_weight, conv1_bias, *batch_norm, hidden,
            conv2_weight, conv2_bias, gamma, keep,
        )  # fmt: skip
        return out.flatten(1, 2)

    @twice_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, mean, rstd, norm_weight, norm_bias, conv1_weight, conv1_bias = ctx.saved_tensors[:7]
        *batch_norm, hidden, conv2_weight, conv2_bias, gamma, keep = ctx.saved_tensors[7:]
        grad = grad.contiguous()
        normed = norm.layer_norm(x, norm_weight, norm_bias, ctx.eps, ctx.dtype)[0].view(hidden.shape)
        grad_image = grad.view(hidden.shape)
        size = norm.size_of(gamma)
        grad_hidden = torch.empty_like(hidden)
        by_tap, (by_bias, by_weight, total) = convolve_backward(
            grad_image, conv2_weight, hidden, batch_norm, ctx.bn_eps, grad_hidden, True,
            keep=keep, gamma=gamma / size,
        ).split((9, 3))  # fmt: skip
        averages = torch.stack((by_bias, by_weight))
        if ctx.of_batch:
            averages = _sum_over_processes(averages, ctx.group, size, batch_norm[1] + ctx.bn_eps) / ctx.count
        else:
            averages = torch.zeros_like(averages)
        by_tap1, (by_bias1, *_) = convolve_backward(
            normed, conv1_weight, hidden, batch_norm, ctx.bn_eps, grad_hidden, False,
            bias=conv1_bias, averages=averages,
        ).split((9, 3))  # fmt: skip
        by_norm, _ = convolve(grad_hidden, conv1_weight, None, hidden.dtype, flipped=True)
        grad_x, by_norm_weight, by_norm_bias = norm.backward(by_norm, x, mean, rstd, norm_weight, size, grad)
        by_gamma = (conv2_weight.flatten(1).t() * by_tap).sum(0) + conv2_bias * total
        return (
            grad_x, by_norm_weight, by_norm_bias, None,
            _as_taps(by_tap1 * size, conv1_weight), by_bias1 * size, by_weight * size, by_bias * size, None, None, None,
            _as_taps(by_tap * gamma, conv2_weight), total * gamma, by_gamma, None, None, None, None, None,
        )  # fmt: skip


def _as_taps(grad: Tensor, weight: Tensor) -> Tensor:
    """(9, C) -> (C, 1, 3, 3)."""
    return grad.t().reshape(weight.shape)


@lru_cache(maxsize=64)
def _counts(B: int, H: int, W: int, C: int, device: torch.device) -> Tensor:
    """Places in each program's part of a convolution's result, (programs, 1)."""
    columns = FORWARD['BLOCK_W']
    rows = strip(B, H, W, C, columns)
    down, across = (
        torch.tensor([min(size, end - i) for i in range(0, end, size)]) for size, end in ((rows, H), (columns, W))
    )
    return (down[:, None] * across).flatten().repeat(B)[:, None].to(device, torch.float32)


def _merged(means: Tensor, squares: Tensor, counts: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Mean and sum of squared deviations of everything from those of its parts, without cancellation (Chan et al.).

    Args:
        means, squares (Tensor): (parts, C).
        counts (Tensor): (parts, 1).

    Returns:
        tuple[Tensor, Tensor, Tensor]: (C), (C) and (1).
    """
    count = counts.sum(0)
    mean = (means * (counts / count)).sum(0)
    return mean, squares.sum(0) + (counts * (means - mean).square()).sum(0), count


def _several(group: Any) -> bool:
    return group is not None and dist.get_world_size(group) > 1


# Between processes the messages are those of torch.nn.SyncBatchNorm, so that a process which does not run the kernels
# (a hook, another GPU) can take part.


def _over_processes(moments: Tuple[Tensor, Tensor, Tensor], group: Any, eps: float) -> Tuple[Tensor, Tensor, Tensor]:
    """:func:`_merged` over the processes of a group; each tells its mean, 1 / sqrt(variance + eps) and count."""
    if not _several(group):
        return moments
    mean, squares, count = moments
    own = torch.cat((mean, (squares / count + eps).rsqrt(), count))
    everybody = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everybody, own, group)
    C = len(mean)
    means, inv_stds, counts = torch.stack(everybody).split((C, C, 1), 1)
    return _merged(means, (inv_stds.pow(-2) - eps).clamp_min(0) * counts, counts)


def _sum_over_processes(sums: Tensor, group: Any, size: Tensor, var: Tensor) -> Tensor:
    """Sums (2, C) of BN's gradients, and of these times its normalised input, over the processes of a group.

    Told are the sums without LayerScale's factor ``size``, the second of them before division by the deviation.
    """
    if not _several(group):
        return sums
    factors = torch.stack((torch.ones_like(var), var.sqrt())) * size
    told = sums * factors
    dist.all_reduce(told, group=group)
    return told / factors
