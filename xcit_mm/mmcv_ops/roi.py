"""RoIAlign (He et al., 2017) by torchvision; its maximum, RoIPool and deformable RoI pooling in PyTorch."""

from typing import Tuple

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .registration import operator, wide
from .sampling import Grid, bag_sums, bilinear_taps, chunks


@operator('torchvision')
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output`` (N, C, aligned_height, aligned_width) from maps (B, C, H, W) and RoIs (N, 5).

    Args:
        rois (Tensor): Index of the image, x1, y1, x2, y2.
        argmax_y, argmax_x (Tensor): Shaped as ``output``; filled with the place of each maximum if ``pool_mode`` is 0.
        sampling_ratio (int): Samples of a bin along each axis; 0 for one per pixel of a bin, rounded up.
        pool_mode (int): 0 for the maximum of the samples, 1 for their mean.
        aligned (bool): Whether pixel (0, 0) has its centre at (0.5, 0.5).
    """
    x, rois = wide(input, rois)
    size = (aligned_height, aligned_width)
    if pool_mode == 1:
        output.copy_(torch.ops.torchvision.roi_align(x, rois, spatial_scale, *size, sampling_ratio, aligned))
        return
    maps, (height, width) = x.permute(0, 2, 3, 1).flatten(0, 2), x.shape[2:]
    outputs = [out.permute(0, 2, 3, 1) for out in (output, argmax_y, argmax_x)]
    for part in chunks(rois, size, sampling_ratio, spatial_scale):
        grid = Grid.upright(rois[part], size, spatial_scale, sampling_ratio, aligned)
        taps, weights = bilinear_taps(grid.y, grid.x, height, width)
        values = bag_sums(maps, taps + (grid.image * height * width)[:, None], weights)
        bins = grid.bin[:, None].expand_as(values)
        best = values.new_full((grid.bins, values.shape[1]), -10000.0)  # mmcv's initial value
        best = best.scatter_reduce(0, bins, values, 'amax')
        # The first sample that reaches the maximum, as in a loop over them.
        numbers = torch.arange(len(values), device=x.device)[:, None].expand_as(values)
        numbers = torch.where(values == best[grid.bin], numbers, len(values))
        first = torch.full_like(best, len(values), dtype=torch.long).scatter_reduce(0, bins, numbers, 'amin')
        ys, xs = (torch.cat([place, place.new_full((1,), -1)])[first] for place in (grid.y, grid.x))
        for out, value in zip(outputs, (best, ys, xs)):
            out[part] = value.view_as(out[part]).to(out)


@operator('torchvision')
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``grad_input`` (B, C, H, W); arguments as for :func:`roi_align_forward`."""
    grad, rois = wide(grad_output, rois)
    shape = grad_input.shape
    if pool_mode == 1:
        size = (aligned_height, aligned_width)
        geometry = (spatial_scale, *size, *shape, sampling_ratio, aligned)
        grad_input.copy_(torch.ops.torchvision._roi_align_backward(grad.contiguous(), rois, *geometry))
        return
    y, x = wide(argmax_y, argmax_x)
    taps, weights = bilinear_taps(y, x, *shape[2:])
    weights = weights * (y != -1)[..., None]  # no sample, no gradient
    planes = rois[:, :1].long() * shape[1] + torch.arange(shape[1], device=grad.device)
    places = taps + (planes * shape[2] * shape[3])[..., None, None, None]
    flat = grad.new_zeros(grad_input.numel())
    flat.scatter_add_(0, places.flatten(), (weights * grad[..., None]).flatten())
    grad_input.copy_(flat.view(shape))


@operator('PyTorch')
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill ``output`` (N, C, pooled_height, pooled_width) with the maxima of whole pixels, and ``argmax`` with places.

    mmcv's bins are not torchvision's: RoIs are not rounded, and x2, y2 are the last pixel.

    Args:
        input (Tensor): (B, C, H, W).
        rois (Tensor): (N, 5), index of the image, x1, y1, x2, y2.
        argmax (Tensor): int32, shaped as ``output``; y * W + x, or -1 where a bin is empty.
    """
    x, rois = wide(input, rois)
    height, width = x.shape[2:]
    start, end = rois[:, 1:3] * spatial_scale, (rois[:, 3:5] + 1) * spatial_scale
    extent = end - start
    edges = []
    for axis, (bins, limit) in enumerate(((pooled_width, width), (pooled_height, height))):
        step, first = extent[:, axis, None] / bins, start[:, axis, None]
        number = torch.arange(bins, device=x.device)
        edges.append((number * step + first).floor().clamp(0, limit).long())
        edges.append(((number + 1) * step + first).ceil().clamp(0, limit).long())
    malformed = (extent <= 0).any(1).tolist()
    argmax.fill_(-1)
    for n, (image, x1, x2, y1, y2) in enumerate(zip(rois[:, 0].long().tolist(), *edges)):
        if malformed[n]:  # left zero
            continue
        # First over the columns of each bin, then over its rows: the first maximum in row-major order.
        rows, columns = _maxima(x[image], x1, x2)
        best, row = _maxima(rows.transpose(1, 2), y1, y2)  # (C, pooled_width, pooled_height)
        column = columns.transpose(1, 2).gather(2, row.clamp(min=0))
        place = torch.where((row < 0) | (column < 0), -1, row * width + column)
        output[n] = torch.where(place < 0, 0, best).transpose(1, 2)
        argmax[n] = place.transpose(1, 2)


@operator('PyTorch')
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradients to ``grad_input`` (B, C, H, W) at the places of the maxima."""
    (grad,) = wide(grad_output)
    channels, pixels = grad_input.shape[1], grad_input.shape[2] * grad_input.shape[3]
    planes = rois[:, :1].long() * channels + torch.arange(channels, device=grad.device)
    places = (planes * pixels)[..., None, None] + argmax.long().clamp(min=0)
    flat = grad.new_zeros(grad_input.numel())
    flat.scatter_add_(0, places.flatten(), (grad * (argmax >= 0)).flatten())
    grad_input.copy_(flat.view_as(grad_input))


@operator('PyTorch')
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """As :func:`roi_align_forward` with the mean and ``aligned``, each bin moved by an offset (Dai et al., 2017).

    Args:
        offset (Tensor): (N, 2, pooled_height, pooled_width), x first, in extents of the RoI times ``gamma``; or empty.
    """
    x, rois, offset = wide(input, rois, offset)
    geometry = (x.shape, (pooled_height, pooled_width), spatial_scale, sampling_ratio, gamma)
    maps = x.permute(0, 2, 3, 1).flatten(0, 2)
    for part in chunks(rois, geometry[1], sampling_ratio, spatial_scale):
        out = output.permute(0, 2, 3, 1)[part]
        out.copy_(_moved_bins(maps, rois[part], offset[part], *geometry).view_as(out))


@operator('PyTorch')
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fill ``grad_input`` (B, C, H, W) and ``grad_offset``, shaped as ``offset``.

    A sample outside the map gives its offset no gradient; mmcv gives it one as if the map continued.
    """
    grad, x, rois, offset = wide(grad_output, input, rois, offset)
    geometry = (x.shape, (pooled_height, pooled_width), spatial_scale, sampling_ratio, gamma)
    maps = x.permute(0, 2, 3, 1).flatten(0, 2).detach().requires_grad_()
    total = torch.zeros_like(maps)
    for part in chunks(rois, geometry[1], sampling_ratio, spatial_scale):
        moves = offset[part].detach().requires_grad_()
        with torch.enable_grad():
            sums = _moved_bins(maps, rois[part], moves, *geometry)
        own = grad[part].permute(0, 2, 3, 1).reshape(sums.shape)
        grads = torch.autograd.grad(sums, [maps, moves], own, allow_unused=True)
        total += grads[0]
        if offset.numel():
            grad_offset[part] = grads[1].to(grad_offset)
    grad_input.copy_(total.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2))


def _moved_bins(
    maps: Tensor,
    rois: Tensor,
    offset: Tensor,
    shape: torch.Size,
    size: Tuple[int, int],
    scale: float,
    ratio: int,
    gamma: float,
) -> Tensor:
    """Means of samples, (N * height * width, C), of flattened maps (B * H * W, C)."""
    grid = Grid.upright(rois, size, scale, ratio, True)
    y, x = grid.y, grid.x
    if offset.numel():
        extent = (rois[:, 3:5] - rois[:, 1:3]) * (scale * gamma)
        moves = (offset * extent[..., None, None]).transpose(0, 1).flatten(1)
        y, x = y + moves[1, grid.bin], x + moves[0, grid.bin]
    taps, weights = bilinear_taps(y, x, *shape[2:])
    index = taps + (grid.image * shape[2] * shape[3])[:, None]
    return bag_sums(maps, index, weights, grid.counts) / grid.counts.clamp(min=1)[:, None]


def _maxima(values: Tensor, starts: Tensor, ends: Tensor) -> tuple:
    """Maximum over [start, end) of the last axis, and where the first one is.

    Args:
        values (Tensor): (C, R, L).
        starts, ends (Tensor): (K,).

    Returns:
        tuple[Tensor]: Both (C, R, K); -inf and -1 where a range is empty.
    """
    longest = max(int((ends - starts).max()), 1)
    index = starts[:, None] + torch.arange(longest, device=values.device)
    inside = index < ends[:, None]
    gathered = values[..., index.clamp(max=values.shape[-1] - 1)].masked_fill(~inside, float('-inf'))
    best, offset = gathered.max(-1)
    return best, torch.where(ends > starts, offset + starts, -1).expand_as(best)
