"""Overlaps and suppression of rotated boxes and of quadrilaterals.

A rotated box is x and y of the centre, width, height and an angle in radians, clockwise in the image. A quadrilateral
is x and y of each of its corners, in order.
"""

import math
from typing import Callable, Optional, Union

import numpy as np
import torch
from torch import Tensor

from .registration import operator, wide

# Pairs of boxes whose intersection is computed in one chunk; this bounds the memory.
PAIRS = 1 << 17
# Boxes in a block of the greedy suppression.
BLOCK = 256


class Shapes:
    """N convex quadrilaterals, in one of two parametrisations."""

    def __init__(self, boxes: Tensor):
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, index: Union[Tensor, slice]) -> 'Shapes':
        return type(self)(self.boxes[index])

    def centre(self) -> Tensor:
        """(N, 2)."""
        raise NotImplementedError

    def corners(self, origin: Tensor) -> Tensor:
        """(N, 4, 2), in order, relative to ``origin`` (N, 2)."""
        raise NotImplementedError

    def area(self) -> Tensor:
        """(N,)."""
        raise NotImplementedError

    def radius(self) -> Tensor:
        """(N,), of a circle around the centre that contains the corners."""
        raise NotImplementedError

    def inside(self, points: Tensor, corners: Tensor) -> Tensor:
        """Whether each of the points (N, n, 2) lies between corners (N, 4, 2): (N, n)."""
        raise NotImplementedError


class Rotated(Shapes):
    """Boxes (N, 5), in single precision unless they are double."""

    def __init__(self, boxes: Tensor):
        super().__init__(*wide(boxes))

    def centre(self) -> Tensor:
        return self.boxes[:, :2]

    def corners(self, origin: Tensor) -> Tensor:
        angle = self.boxes[:, 4].double()
        cos, sin = (angle.cos().to(self.boxes) * 0.5)[:, None], (angle.sin().to(self.boxes) * 0.5)[:, None]
        centre, width, height = self.boxes[:, :2] - origin, self.boxes[:, 2:3], self.boxes[:, 3:4]
        across, down = torch.cat([cos * width, sin * width], 1), torch.cat([-sin * height, cos * height], 1)
        first, second = centre + down - across, centre - down - across
        return torch.stack([first, second, 2 * centre - first, 2 * centre - second], 1)

    def area(self) -> Tensor:
        return self.boxes[:, 2] * self.boxes[:, 3]

    def radius(self) -> Tensor:
        return self.boxes[:, 2:4].norm(dim=1) / 2

    def inside(self, points: Tensor, corners: Tensor) -> Tensor:
        first = corners[:, :1]
        result = torch.ones_like(points[..., 0], dtype=torch.bool)
        for side in (corners[:, 1:2] - first, corners[:, 3:4] - first):
            along, length = ((points - first) * side).sum(-1), (side * side).sum(-1)
            result &= (along >= 0) & (along <= length)
        return result


class Quadrilaterals(Shapes):
    """Convex ones (N, 8), in double precision; mmcv takes them for rectangles, so that its overlaps are exact for these
    alone."""

    def __init__(self, boxes: Tensor):
        super().__init__(boxes.double())

    def centre(self) -> Tensor:
        return self.boxes.unflatten(1, (4, 2)).mean(1)

    def corners(self, origin: Tensor) -> Tensor:
        return self.boxes.unflatten(1, (4, 2)) - origin[:, None]

    def area(self) -> Tensor:
        sides = self.corners(self.boxes[:, :2])
        return cross(sides[:, 1:-1], sides[:, 2:]).abs().sum(1) / 2

    def radius(self) -> Tensor:
        return self.corners(self.centre()).norm(dim=2).amax(1)

    def inside(self, points: Tensor, corners: Tensor) -> Tensor:
        return in_convex(points, corners)


@operator('PyTorch')
def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Fill ``ious`` (N * M,), or (N,) if ``aligned``, with the overlaps of boxes (N, 5) and (M, 5).

    Args:
        mode_flag (int): 0 divides by the union, 1 by the first box.
    """
    _fill_overlaps(Rotated(boxes1), Rotated(boxes2), ious, mode_flag, aligned)


@operator('PyTorch')
def box_iou_quadri(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """As :func:`box_iou_rotated`, of convex quadrilaterals (N, 8) and (M, 8)."""
    _fill_overlaps(Quadrilaterals(boxes1), Quadrilaterals(boxes2), ious, mode_flag, aligned)


def _fill_overlaps(first: Shapes, second: Shapes, ious: Tensor, mode: int, aligned: bool) -> None:
    ious.zero_()
    if aligned:
        ious.copy_(_overlaps(first, second, mode))
        return
    rows = max(1, (PAIRS << 4) // max(1, len(second)))
    table = ious.view(len(first), len(second))
    for start in range(0, len(first), rows):
        i, j = _near(first.take(slice(start, start + rows)), second).nonzero(as_tuple=True)
        table[start + i, j] = _overlaps(first.take(start + i), second.take(j), mode).to(ious)


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
        iou_threshold (float): Boxes whose IoU with a better one reaches it are removed (on CUDA, as mmcv: exceeds it).
    """
    return _suppress(Rotated(dets[:, :5]), scores, iou_threshold, dets[:, 5] if multi_label else None)


@operator('PyTorch')
def nms_quadri(
    dets: Tensor, scores: Tensor, order: Tensor, dets_sorted: Tensor, iou_threshold: float, multi_label: bool
) -> Tensor:
    """As :func:`nms_rotated`, of convex quadrilaterals (N, 8), or (N, 9) with the label."""
    return _suppress(Quadrilaterals(dets[:, :8]), scores, iou_threshold, dets[:, 8] if multi_label else None)


def _suppress(shapes: Shapes, scores: Tensor, threshold: float, label: Optional[Tensor]) -> Tensor:
    """Greedy suppression in blocks of the best boxes that are left: the indices (K,) to keep, best first."""
    order = scores.sort(0, descending=True)[1]
    shapes, label = shapes.take(order), None if label is None else label[order]
    device = scores.device
    alive, kept = torch.ones(len(shapes), dtype=torch.bool, device=device), []

    def removals(better: Tensor, worse: Tensor) -> tuple:
        """Pairs of indices into (A,) and (B,) boxes where the first removes the second."""
        if threshold > 0:  # else boxes far from each other count as well
            candidates = _near(shapes.take(better), shapes.take(worse), threshold)
        else:
            candidates = torch.ones(len(better), len(worse), dtype=torch.bool, device=device)
        if label is not None:
            candidates &= label[better, None] == label[worse]
        i, j = candidates.nonzero(as_tuple=True)
        iou = _overlaps(shapes.take(better[i]), shapes.take(worse[j]), 0)
        removed = iou > threshold if iou.is_cuda else iou >= threshold
        return i[removed], j[removed]

    while alive.any():
        block = alive.nonzero()[:BLOCK, 0]
        keep, removed = np.ones(len(block), dtype=bool), np.zeros((len(block), len(block)), dtype=bool)
        removed[tuple(index.cpu().numpy() for index in removals(block, block))] = True
        for i in range(len(block)):
            if keep[i]:
                keep[i + 1 :] &= ~removed[i, i + 1 :]
        kept.append(block[torch.from_numpy(keep).to(device)])
        alive[block] = False
        rest = alive.nonzero()[:, 0]
        for part in rest.split((PAIRS << 4) // BLOCK):
            alive[part[removals(kept[-1], part)[1]]] = False
    return order[torch.cat(kept)] if kept else order


def _near(first: Shapes, second: Shapes, iou: float = 0.0) -> Tensor:
    """Mask (N, M): False where two shapes cannot have an IoU above 0 and of at least ``iou``.

    True if their circles meet and the smaller area is at least ``iou`` times the larger. A shape with NaN is near all.
    """
    (x1, y1), (x2, y2) = first.centre().T, second.centre().T
    radius1, radius2 = (shapes.radius() * (1 + 1e-5) for shapes in (first, second))
    apart = (x1[:, None] - x2).square_().add_((y1[:, None] - y2).square_())
    near = ~(apart > (radius1[:, None] + radius2).square_())
    if iou > 0:
        near &= ~((first.area().log()[:, None] - second.area().log()).abs_() > 1e-3 - math.log(iou))
    return near


def _overlaps(first: Shapes, second: Shapes, mode: int) -> Tensor:
    """IoU, or share of the first shape, of each pair of P and P shapes: (P,)."""
    parts = []
    for start in range(0, len(first), PAIRS):
        one, other = (shapes.take(slice(start, start + PAIRS)) for shapes in (first, second))
        middle = (one.centre() + other.centre()) / 2  # coordinates relative to it have smaller rounding errors
        inter, area1, area2 = (
            intersection(one.corners(middle), other.corners(middle), one.inside),
            one.area(),
            other.area(),
        )
        base = area1 if mode else area1 + area2 - inter
        parts.append(torch.where((area1 < 1e-14) | (area2 < 1e-14), torch.zeros_like(inter), inter / base))
    return torch.cat(parts) if parts else first.boxes.new_zeros(0)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross products (...) of vectors (..., 2)."""
    return a[..., 0] * b[..., 1] - b[..., 0] * a[..., 1]


def intersection(first: Tensor, second: Tensor, inside: Callable) -> Tensor:
    """Area common to two convex polygons: (P,) of corners (P, n, 2) and (P, m, 2), in order; some may be the same.

    As in mmcv, its corners are where edges cross and the corners of either in the other; here they are ordered by their
    direction from the middle of them. Differentiable.
    """
    edges1, edges2 = first.roll(-1, 1) - first, second.roll(-1, 1) - second
    det = cross(edges2[:, None], edges1[:, :, None])
    meet = det.abs() > 1e-14
    det = torch.where(meet, det, torch.ones_like(det))  # else the gradient of a quotient that is not used would be NaN
    between = second[:, None] - first[:, :, None]
    along1, along2 = cross(edges2[:, None], between) / det, cross(edges1[:, :, None], between) / det
    crossing = meet & (along1 >= 0) & (along1 <= 1) & (along2 >= 0) & (along2 <= 1)
    crossings = first[:, :, None] + edges1[:, :, None] * along1[..., None]
    valid = torch.cat([crossing.flatten(1), inside(first, second), inside(second, first)], 1)
    points = torch.cat([crossings.flatten(1, 2), first, second], 1)

    # A polygon with repeated corners has the same area: the place of an invalid point takes the first valid one.
    repeated = points.gather(1, valid.byte().argmax(1)[:, None, None].expand(-1, 1, 2))
    points = torch.where(valid[..., None], points, repeated)
    count = valid.sum(1, keepdim=True)
    middle = torch.where(valid[..., None], points, torch.zeros_like(points)).sum(1, keepdim=True)
    points = points - middle / count.clamp(min=1)[..., None]
    points = points.gather(1, direction(points.detach()).argsort(1)[..., None].expand(-1, -1, 2))
    area = cross(points, points.roll(-1, 1)).sum(1).abs() / 2
    return torch.where(count[:, 0] > 2, area, torch.zeros_like(area))


def direction(vectors: Tensor) -> Tensor:
    """A number in [-1, 3] that grows with the angle of vectors (..., 2), from that of (0, -1)."""
    x, y = vectors.unbind(-1)
    slope = y / (x.abs() + y.abs()).clamp(min=torch.finfo(vectors.dtype).tiny)
    return torch.where(x < 0, 2 - slope, slope)


def in_convex(points: Tensor, polygon: Tensor) -> Tensor:
    """Whether each of the points (P, n, 2) lies in the convex polygon (P, m, 2), its border included: (P, n)."""
    edges = polygon.roll(-1, 1) - polygon
    side = cross(edges[:, None], points[:, :, None] - polygon[:, None])
    return (side >= 0).all(2) | (side <= 0).all(2)
