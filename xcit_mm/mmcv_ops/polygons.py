"""Point sets and polygons for detectors such as RepPoints: hulls, their overlaps with quadrilaterals, distances.

A point set is x and y of nine points, a polygon x and y of the four corners of a convex quadrilateral, in order.
Computed in double precision, as mmcv does.
"""

import math
from typing import Iterator

import torch
from torch import Tensor

from .registration import operator, wide
from .rotated import cross, direction, in_convex, intersection

# Point sets, or pairs of a point set and a polygon, in a chunk; this bounds the memory.
SETS = 1 << 13


@operator('PyTorch')
def convex_iou(pointsets: Tensor, polygons: Tensor, ious: Tensor) -> None:
    """Fill ``ious`` (N, K) with the IoU of the hulls of point sets (N, 18) and polygons (K, 8)."""
    points, quads = pointsets.double().unflatten(1, (9, 2)), polygons.double().unflatten(1, (4, 2))
    hulls = torch.cat([points, *(_take(points[part], hull(points[part])) for part in _parts(points))])[len(points) :]
    area1, area2 = _area(hulls), _area(quads)
    apart = (hulls.amin(1)[:, None] > quads.amax(1)) | (hulls.amax(1)[:, None] < quads.amin(1))
    i, j = (~apart.any(2) & (area1 > 0)[:, None] & (area2 > 0)).nonzero(as_tuple=True)
    ious.zero_()
    for part in _parts(i):
        n, k = i[part], j[part]
        inter = intersection(hulls[n], quads[k], in_convex)
        ious[n, k] = (inter / (area1[n] + area2[k] - inter)).to(ious)


@operator('PyTorch')
def convex_giou(pointsets: Tensor, polygons: Tensor, output: Tensor) -> None:
    """Fill ``output`` (N, 19) with the generalized IoU of point sets and polygons, after its gradients (N, 18)."""
    for part in _parts(pointsets):
        points = pointsets[part].double().unflatten(1, (9, 2)).requires_grad_()
        quads = polygons[part].double().unflatten(1, (4, 2))
        with torch.enable_grad():
            own, both = _take(points, hull(points)), torch.cat([points, quads], 1)
            inter, enclosing = intersection(own, quads, in_convex), _area(_take(both, hull(both)))
            union = _area(own) + _area(quads) - inter
            giou = inter / union - (enclosing - union) / enclosing
        (grad,) = torch.autograd.grad(giou, points, torch.ones_like(giou))
        output[part] = torch.cat([grad.flatten(1), giou.detach()[:, None]], 1).to(output)


@operator('PyTorch')
def min_area_polygons(pointsets: Tensor, polygons: Tensor) -> None:
    """Fill ``polygons`` (N, 8) with the smallest rectangles around point sets (N, 18)."""
    for part in _parts(pointsets):
        points = pointsets[part].double().unflatten(1, (9, 2))
        corners = _take(points, hull(points))
        x, y = (corners.roll(-1, 1) - corners).unbind(2)
        angle = torch.atan2(y, x).remainder(math.pi / 2)  # of each edge: one side of the smallest lies on one
        axes = torch.stack([torch.stack([angle.cos(), angle.sin()], 2), torch.stack([-angle.sin(), angle.cos()], 2)], 2)
        along = torch.einsum('neax,npx->neap', axes, corners)
        low, high = along.amin(3), along.amax(3)
        degenerate = (x == 0) & (y == 0)  # the padding of a hull's corners
        best = (high - low).prod(2).masked_fill(degenerate, math.inf).argmin(1)[:, None, None]
        low, high = (bound.gather(1, best.expand(-1, 1, 2))[:, 0] for bound in (low, high))
        axes = axes.gather(1, best[..., None].expand(-1, 1, 2, 2))[:, 0]
        ends = torch.stack([high[:, 0], low[:, 0], low[:, 0], high[:, 0]], 1), low[:, [1]], high[:, [1]]
        places = torch.stack([ends[0], torch.cat([ends[1], ends[1], ends[2], ends[2]], 1)], 2)
        polygons[part] = (places @ axes).flatten(1).to(polygons)


@operator('PyTorch')
def points_in_polygons_forward(points: Tensor, polygons: Tensor, output: Tensor) -> None:
    """Fill ``output`` (B, M) with 1 where points (B, 2) are in polygons (M, 8), else 0; on a border, either."""
    px, py = (value[:, None] for value in points.unbind(1))
    inside = torch.zeros_like(output, dtype=torch.bool)
    corners = polygons.unflatten(1, (4, 2))
    for start, end in zip(corners.unbind(1), corners.roll(-1, 1).unbind(1)):
        (sx, sy), (tx, ty) = start.T, end.T
        crossed = (sy < py) != (ty < py)
        inside ^= crossed & (sx + (py - sy) * (tx - sx) / torch.where(ty == sy, 1, ty - sy) > px)
    output.copy_(inside)


@operator('PyTorch')
def chamfer_distance_forward(
    xyz1: Tensor, xyz2: Tensor, dist1: Tensor, dist2: Tensor, idx1: Tensor, idx2: Tensor
) -> None:
    """Fill ``dist1`` and ``idx1`` (B, N) with the squared distance of each point (B, N, 2) to the nearest of (B, M, 2)
    and which that is, and ``dist2`` and ``idx2`` (B, M) the other way."""
    first, second = wide(xyz1, xyz2)
    distances = (first[:, :, None] - second[:, None]).square().sum(3)
    for dim, dist, idx in ((2, dist1, idx1), (1, dist2, idx2)):
        for target, value in zip((dist, idx), distances.min(dim)):
            target.copy_(value)


@operator('PyTorch')
def chamfer_distance_backward(
    xyz1: Tensor,
    xyz2: Tensor,
    idx1: Tensor,
    idx2: Tensor,
    grad_dist1: Tensor,
    grad_dist2: Tensor,
    grad_xyz1: Tensor,
    grad_xyz2: Tensor,
) -> None:
    """Add the gradients to ``grad_xyz1`` (B, N, 2) and ``grad_xyz2`` (B, M, 2)."""
    for own, other, idx, grad, grad_own, grad_other in (
        (xyz1, xyz2, idx1, grad_dist1, grad_xyz1, grad_xyz2),
        (xyz2, xyz1, idx2, grad_dist2, grad_xyz2, grad_xyz1),
    ):
        nearest = idx.long()[..., None].expand(-1, -1, 2)
        change = 2 * grad[..., None] * (own - other.gather(1, nearest))
        grad_own.add_(change)
        grad_other.scatter_add_(1, nearest, -change)


@operator('PyTorch')
def diff_iou_rotated_sort_vertices_forward(vertices: Tensor, mask: Tensor, num_valid: Tensor) -> Tensor:
    """Indices (B, N, 9) of the corners of intersections, in order, the first again after the last, then invalid ones.

    Args:
        vertices (Tensor): (B, N, 24, 2), around their middle; the last 16 are where edges cross.
        mask (Tensor): (B, N, 24), those that count.
        num_valid (Tensor): (B, N), how many these are; of more than eight, some of which coincide, eight are taken.
    """
    invalid = 8 + mask[..., 8:].byte().argmin(2, keepdim=True)
    order = torch.where(mask, direction(vertices), math.inf).argsort(2)
    count = num_valid.long()[..., None]
    taken = count.clamp(max=8)
    place = torch.arange(9, device=mask.device).expand(*mask.shape[:2], 9)
    ring = torch.where(place == taken, 0, place) * count // taken.clamp(min=1)
    index = order.gather(2, ring.clamp(max=mask.shape[2] - 1))
    return torch.where((place <= taken) & (count > 2), index, invalid).int()


def hull(points: Tensor) -> Tensor:
    """Indices (P, n) of the corners of the convex hulls of points (P, n, 2), counterclockwise in x and y; the
    first one pads the rest."""
    points = points.detach()
    number = points.shape[1]
    ways = points[:, None] - points[:, :, None]  # from i to j
    length = ways.norm(dim=3)
    unit = ways / length.clamp(min=torch.finfo(points.dtype).tiny)[..., None]
    # Seen from a corner, no point lies to the right of the next one; of collinear ones it is the farthest.
    rightmost = cross(unit[:, :, :, None], unit[:, :, None]).amin(3)
    following = torch.where((rightmost >= -1e-9) & (length > 0), length, -1).argmax(2)
    lowest = points[..., 1] == points[..., 1].amin(1, keepdim=True)
    start = torch.where(lowest, points[..., 0], math.inf).argmin(1, keepdim=True)
    corners, closed = [start], torch.zeros_like(start, dtype=torch.bool)
    for _ in range(number - 1):
        corner = following.gather(1, corners[-1])
        closed = closed | (length.gather(1, start[..., None].expand(-1, 1, number))[:, 0].gather(1, corner) == 0)
        corners.append(torch.where(closed, start, corner))
    return torch.cat(corners, 1)


def _take(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(1, index[..., None].expand(-1, -1, 2))


def _area(corners: Tensor) -> Tensor:
    """Area (P,) of polygons (P, n, 2)."""
    corners = corners - corners[:, :1]
    return cross(corners, corners.roll(-1, 1)).sum(1).abs() / 2


def _parts(items: Tensor) -> Iterator[slice]:
    return (slice(start, start + SETS) for start in range(0, len(items), SETS))
