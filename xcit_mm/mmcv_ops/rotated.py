"""Overlaps and suppression of rotated boxes, and RoIAlign for them.

A rotated box is x and y of the centre, width, height and an angle in radians, clockwise in the image.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .registration import operator, wide
from .sampling import Grid, bag_sums, bilinear_taps, chunks

# Pairs of boxes whose intersection is computed together, a bound on the memory.
PAIRS = 1 << 17
# Boxes whose suppression of each other is resolved together.
BLOCK = 256


@operator('PyTorch')
def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Fill ``ious`` (N * M,), or (N,) if ``aligned``, with the overlaps of boxes (N, 5) and (M, 5).

    Args:
        mode_flag (int): 0 divides by the union, 1 by the first box.
    """
    first, second = wide(boxes1, boxes2)
    ious.zero_()
    if aligned:
        ious.copy_(_overlaps(first, second, mode_flag))
        return
    rows = max(1, (PAIRS << 4) // max(1, len(second)))
    table = ious.view(len(first), len(second))
    for start in range(0, len(first), rows):
        i, j = _near(first[start : start + rows], second).nonzero(as_tuple=True)
        table[start + i, j] = _overlaps(first[start + i], second[j], mode_flag).to(ious)


@operator('PyTorch')
def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Indices (K,) of the boxes to keep, best first.

    Args:
        dets (Tensor): (N, 5), or (N, 6) with the label last if ``multi_label``: labels do not suppress each other.
            (mmcv's CUDA code does so; its CPU code suppresses across labels.)
        order, dets_sorted, labels (Tensor): What the compiled operator needs for CUDA, not used here.
        iou_threshold (float): A box goes whose IoU with a better one reaches it (on CUDA, as mmcv: is above it).
    """
    order = scores.sort(0, descending=True)[1]
    (boxes,) = wide(dets[order])
    boxes, label = boxes[:, :5], boxes[:, -1]
    alive, kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device), []

    def removals(better: Tensor, worse: Tensor) -> tuple:
        """Pairs of indices into (A,) and (B,) boxes where the first removes the second."""
        if iou_threshold > 0:  # else boxes far from each other count as well
            candidates = _near(boxes[better], boxes[worse], iou_threshold)
        else:
            candidates = torch.ones(len(better), len(worse), dtype=torch.bool, device=boxes.device)
        if multi_label:
            candidates &= label[better, None] == label[worse]
        i, j = candidates.nonzero(as_tuple=True)
        iou = _overlaps(boxes[better[i]], boxes[worse[j]], 0)
        removed = iou > iou_threshold if boxes.is_cuda else iou >= iou_threshold
        return i[removed], j[removed]

    while alive.any():
        block = alive.nonzero()[:BLOCK, 0]
        keep, removed = np.ones(len(block), dtype=bool), np.zeros((len(block), len(block)), dtype=bool)
        removed[tuple(index.cpu().numpy() for index in removals(block, block))] = True
        for i in range(len(block)):
            if keep[i]:
                keep[i + 1 :] &= ~removed[i, i + 1 :]
        kept.append(block[torch.from_numpy(keep).to(block.device)])
        alive[block] = False
        rest = alive.nonzero()[:, 0]
        for part in rest.split((PAIRS << 4) // BLOCK):
            alive[part[removals(kept[-1], part)[1]]] = False
    return order[torch.cat(kept)] if kept else order


def _near(first: Tensor, second: Tensor, iou: float = 0.0) -> Tensor:
    """False where boxes (N, 5) and (M, 5) cannot have a positive IoU, or one of ``iou``: (N, M).

    The circles around them meet, and the smaller area is at least ``iou`` of the larger. A box with NaN is near all.
    """
    (x1, y1), (x2, y2) = first[:, :2].T, second[:, :2].T
    radius1, radius2 = (boxes[:, 2:4].norm(dim=1) / 2 * (1 + 1e-5) for boxes in (first, second))
    apart = (x1[:, None] - x2).square_().add_((y1[:, None] - y2).square_())
    near = ~(apart > (radius1[:, None] + radius2).square_())
    if iou > 0:
        log1, log2 = (boxes[:, 2:4].prod(1).log() for boxes in (first, second))
        near &= ~((log1[:, None] - log2).abs_() > 1e-3 - math.log(iou))
    return near


def _overlaps(boxes1: Tensor, boxes2: Tensor, mode: int) -> Tensor:
    """IoU, or share of the first box, of each pair of boxes (P, 5) and (P, 5): (P,)."""
    parts = [_pair_overlaps(*part, mode) for part in zip(boxes1.split(PAIRS), boxes2.split(PAIRS))]
    return torch.cat(parts) if parts else boxes1.new_zeros(0)


def _pair_overlaps(boxes1: Tensor, boxes2: Tensor, mode: int) -> Tensor:
    middle = (boxes1[:, :2] + boxes2[:, :2]) / 2  # coordinates around it round less
    area1, area2 = boxes1[:, 2] * boxes1[:, 3], boxes2[:, 2] * boxes2[:, 3]
    inter = _intersection(_corners(boxes1, middle), _corners(boxes2, middle))
    base = area1 if mode else area1 + area2 - inter
    return torch.where((area1 < 1e-14) | (area2 < 1e-14), torch.zeros_like(inter), inter / base)


def _corners(boxes: Tensor, middle: Tensor) -> Tensor:
    """Corners of boxes (P, 5), in order: (P, 4, 2)."""
    angle = boxes[:, 4].double()
    cos, sin = (angle.cos().to(boxes) * 0.5)[:, None], (angle.sin().to(boxes) * 0.5)[:, None]
    centre, width, height = boxes[:, :2] - middle, boxes[:, 2:3], boxes[:, 3:4]
    across, down = torch.cat([cos * width, sin * width], 1), torch.cat([-sin * height, cos * height], 1)
    first, second = centre + down - across, centre - down - across
    return torch.stack([first, second, 2 * centre - first, 2 * centre - second], 1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - b[..., 0] * a[..., 1]


def _intersection(corners1: Tensor, corners2: Tensor) -> Tensor:
    """Area common to two rectangles: (P,) of (P, 4, 2) and (P, 4, 2).

    As in mmcv, the polygon's corners are where edges cross and the corners of either in the other; here they are
    ordered by their direction from the middle of them.
    """
    edges1, edges2 = corners1.roll(-1, 1) - corners1, corners2.roll(-1, 1) - corners2
    det = _cross(edges2[:, None], edges1[:, :, None])
    between = corners2[:, None] - corners1[:, :, None]
    along1, along2 = _cross(edges2[:, None], between) / det, _cross(edges1[:, :, None], between) / det
    crossing = (det.abs() > 1e-14) & (along1 >= 0) & (along1 <= 1) & (along2 >= 0) & (along2 <= 1)
    crossings = corners1[:, :, None] + edges1[:, :, None] * along1[..., None]
    valid = torch.cat([crossing.flatten(1), _inside(corners1, corners2), _inside(corners2, corners1)], 1)
    points = torch.cat([crossings.flatten(1, 2), corners1, corners2], 1)

    # A polygon with repeated corners has the same area: the place of an invalid point takes the first valid one.
    first = points.gather(1, valid.byte().argmax(1)[:, None, None].expand(-1, 1, 2))
    points = torch.where(valid[..., None], points, first)
    count = valid.sum(1, keepdim=True)
    middle = torch.where(valid[..., None], points, 0).sum(1, keepdim=True) / count.clamp(min=1)[..., None]
    points = points - middle
    x, y = points.unbind(-1)
    slope = y / (x.abs() + y.abs()).clamp(min=torch.finfo(points.dtype).tiny)
    turn = torch.where(x < 0, 2 - slope, slope)  # grows with the angle
    points = points.gather(1, turn.argsort(1)[..., None].expand(-1, -1, 2))
    area = _cross(points, points.roll(-1, 1)).sum(1).abs() / 2
    return torch.where(count[:, 0] > 2, area, torch.zeros_like(area))


def _inside(points: Tensor, rectangle: Tensor) -> Tensor:
    """Whether each of the points (P, 4, 2) lies in the rectangle (P, 4, 2)."""
    origin = rectangle[:, :1]
    result = torch.ones_like(points[..., 0], dtype=torch.bool)
    for side in (rectangle[:, 1:2] - origin, rectangle[:, 3:4] - origin):
        along, length = ((points - origin) * side).sum(-1), (side * side).sum(-1)
        result &= (along >= 0) & (along <= length)
    return result


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


def _rotated_samples(rois: Tensor, shape: tuple, size: tuple, scale: float, ratio: int, aligned: bool, clockwise: bool):
    """Parts of the RoIs, with their samples and the pixels and weights of each."""
    height, width = shape[2:]
    for part in chunks(rois, size, ratio, scale):
        angle = -rois[part, 5] if clockwise else rois[part, 5]
        grid = Grid.rotated(rois[part], size, scale, ratio, aligned, angle)
        taps, weights = bilinear_taps(grid.y, grid.x, height, width)
        yield part, grid, taps + (grid.image * height * width)[:, None], weights
