"""Features for rotated boxes: RoIAlign, RiRoIAlign (ReDet, Han et al., 2021), the alignment of R3Det (Yang et al.,
2021) and the rotated filters of S2ANet (Han et al., 2021).

A rotated box is x and y of the centre, width, height and an angle in radians.
"""

import math
from typing import Iterator, Tuple

import torch
from torch import Tensor

from .registration import operator, wide
from .sampling import Grid, bag_sums, bilinear_taps, chunks


@operator('PyTorch')
def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Fill ``output`` (N, C, pooled_height, pooled_width) from maps (B, C, H, W) and RoIs (N, 6).

    Args:
        rois (Tensor): Index of the image and a rotated box, its angle clockwise or not.
        sampling_ratio, aligned: As for :func:`roi_align_forward`.
    """
    x, rois = wide(input, rois)
    maps = x.permute(0, 2, 3, 1).flatten(0, 2)
    for part, grid, index, weights in _rotated_samples(
        rois, x.shape, (pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned, clockwise
    ):
        sums = bag_sums(maps, index, weights, grid.counts) / grid.counts.clamp(min=1)[:, None]
        out = output.permute(0, 2, 3, 1)[part]
        out.copy_(sums.view_as(out))


@operator('PyTorch')
def roi_align_rotated_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Fill ``grad_input`` (B, C, H, W)."""
    grad, rois = wide(grad_output, rois)
    batch, channels, height, width = grad_input.shape
    total = grad.new_zeros(batch * height * width, channels)
    for part, grid, index, weights in _rotated_samples(
        rois, grad_input.shape, (pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned, clockwise
    ):
        own = grad[part].permute(0, 2, 3, 1).reshape(-1, channels) / grid.counts.clamp(min=1)[:, None]
        maps = total.new_zeros(total.shape).requires_grad_()  # the sums are linear in it
        with torch.enable_grad():
            sums = bag_sums(maps, index, weights, grid.counts)
        if sums.requires_grad:
            total += torch.autograd.grad(sums, maps, own)[0]
    grad_input.copy_(total.view(batch, height, width, channels).permute(0, 3, 1, 2))


def _rotated_samples(
    rois: Tensor, shape: torch.Size, size: Tuple[int, int], scale: float, ratio: int, aligned: bool, clockwise: bool
) -> Iterator[Tuple[slice, Grid, Tensor, Tensor]]:
    """Parts of the RoIs, with their samples and the pixels and weights of each."""
    height, width = shape[2:]
    for part in chunks(rois, size, ratio, scale):
        angle = -rois[part, 5] if clockwise else rois[part, 5]
        grid = Grid.rotated(rois[part], size, scale, ratio, aligned, angle)
        taps, weights = bilinear_taps(grid.y, grid.x, height, width)
        yield part, grid, taps + (grid.image * height * width)[:, None], weights


@operator('PyTorch')
def riroi_align_rotated_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    num_samples: int,
    num_orientations: int,
    clockwise: bool,
) -> None:
    """As :func:`roi_align_rotated_forward`, the orientations of each channel rolled by the angle of the RoI.

    Args:
        features (Tensor): (B, C * num_orientations, H, W), orientations of a channel next to each other.
        output (Tensor): (N, C * num_orientations, pooled_height, pooled_width).
        num_samples (int): ``sampling_ratio``.
    """
    size = (pooled_height, pooled_width)
    pooled = torch.empty_like(wide(output)[0])
    roi_align_rotated_forward(features, rois, pooled, *size, spatial_scale, num_samples, False, clockwise)
    pooled = pooled.unflatten(1, (-1, num_orientations))
    rolled = torch.zeros_like(pooled)
    for index, weight in _orientations(rois, pooled):
        rolled += weight * pooled.gather(2, index)
    output.copy_(rolled.view_as(output))


@operator('PyTorch')
def riroi_align_rotated_backward(
    top_grad: Tensor,
    rois: Tensor,
    bottom_grad: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    num_samples: int,
    num_orientations: int,
    clockwise: bool,
) -> None:
    """Fill ``bottom_grad`` (B, C * num_orientations, H, W)."""
    size = (pooled_height, pooled_width)
    grad = wide(top_grad)[0].unflatten(1, (-1, num_orientations))
    pooled = torch.zeros_like(grad)
    for index, weight in _orientations(rois, grad):
        pooled.scatter_add_(2, index, weight * grad)
    pooled = pooled.flatten(1, 2)
    roi_align_rotated_backward(pooled, rois, bottom_grad, *size, spatial_scale, num_samples, False, clockwise)


def _orientations(rois: Tensor, pooled: Tensor) -> Tuple[Tuple[Tensor, Tensor], Tuple[Tensor, Tensor]]:
    """The two orientations that each of ``pooled`` (N, C, O, h, w) is interpolated from: index, shaped so, weight."""
    number = pooled.shape[2]
    turn = rois[:, 5].to(pooled) * (number / (2 * math.pi))
    whole = turn.floor()
    right = (turn - whole)[:, None, None, None, None]
    index = torch.arange(number, device=pooled.device) - whole.long()[:, None]

    def spread(index: Tensor) -> Tensor:
        return (index % number)[:, None, :, None, None].expand_as(pooled)

    return (spread(index), 1 - right), (spread(index + 1), right)


@operator('PyTorch')
def rotated_feature_align_forward(
    features: Tensor, best_bboxes: Tensor, output: Tensor, spatial_scale: float, points: int
) -> None:
    """Fill ``output`` (B, C, H, W) with ``features`` plus samples of them at the box of each pixel.

    Args:
        best_bboxes (Tensor): (B, H, W, 5), or flattened, rotated boxes; as in mmcv, y of one comes before x.
        points (int): 1 for the centre, 5 for the corners as well.
    """
    x, boxes = wide(features, best_bboxes)
    maps = x.permute(0, 2, 3, 1).flatten(0, 2)
    sums = bag_sums(maps, *_box_samples(boxes, x.shape, spatial_scale, points))
    output.copy_((maps + sums).view_as(output.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@operator('PyTorch')
def rotated_feature_align_backward(
    top_grad: Tensor, best_bboxes: Tensor, bottom_grad: Tensor, spatial_scale: float, points: int
) -> None:
    """Fill ``bottom_grad`` (B, C, H, W)."""
    grad, boxes = wide(top_grad, best_bboxes)
    index, weights = _box_samples(boxes, grad.shape, spatial_scale, points)
    grad = grad.permute(0, 2, 3, 1).flatten(0, 2)
    total = grad.clone()
    for tap in range(index.shape[1]):
        total.index_add_(0, index[:, tap], weights[:, tap, None] * grad)
    bottom_grad.copy_(total.view_as(bottom_grad.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _box_samples(boxes: Tensor, shape: torch.Size, scale: float, points: int) -> Tuple[Tensor, Tensor]:
    """Pixels (B * H * W, 4 * points) of the flattened maps, and their weights, that the box of each pixel samples."""
    batch, _, height, width = shape
    boxes = boxes.reshape(batch * height * width, 1, 5)
    y, x, w, h = (boxes[..., :4] * scale).unbind(-1)
    if points > 1:
        cos, sin = boxes[..., 4].cos() / 2, boxes[..., 4].sin() / 2
        across, down = boxes.new_tensor([0, 1, -1, -1, 1]), boxes.new_tensor([0, 1, 1, -1, -1])
        y, x = y + sin * w * across + cos * h * down, x + cos * w * across - sin * h * down
    taps, weights = bilinear_taps(y, x, height, width)
    first = torch.arange(batch, device=boxes.device).repeat_interleave(height * width) * height * width
    return (taps + first[:, None, None]).flatten(1), weights.flatten(1)


@operator('PyTorch')
def active_rotated_filter_forward(input: Tensor, indices: Tensor, output: Tensor) -> None:
    """Fill ``output`` (O * R, I * orientations, kH, kW) with R rotations of ``input`` (O, I, orientations, kH, kW).

    Args:
        indices (Tensor): (orientations, kH, kW, R): 1 + the place in a rotated filter that each value goes to.
    """
    values, places = _rotations(output, input, indices)
    values.scatter_(3, places, input.flatten(2)[:, None].expand_as(places))


@operator('PyTorch')
def active_rotated_filter_backward(grad_out: Tensor, indices: Tensor, grad_in: Tensor) -> None:
    """Fill ``grad_in`` (O, I, orientations, kH, kW)."""
    values, places = _rotations(grad_out.contiguous(), grad_in, indices)
    grad_in.copy_(values.gather(3, places).sum(1).view_as(grad_in))


def _rotations(rotated: Tensor, filters: Tensor, indices: Tensor) -> Tuple[Tensor, Tensor]:
    """A view (O, R, I, values) of rotated filters, and where in it each value of ``filters`` goes."""
    places = indices.flatten(0, 2).T.long() - 1
    rotated = rotated.view(len(filters), len(places), filters.shape[1], -1)
    return rotated, places[None, :, None].expand_as(rotated)
