"""Non-maximum suppression and overlaps of upright boxes."""

from typing import List

import numpy as np
import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .registration import operator, wide


@operator('torchvision')
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (K,) of the boxes to keep, best first.

    Args:
        boxes (Tensor): (N, 4), x1, y1, x2, y2.
        scores (Tensor): (N,).
        iou_threshold (float): Boxes whose IoU with a better one is above it are removed.
        offset (int): 1 if x2 and y2 are the last pixel instead of the end: a width is x2 - x1 + offset.
    """
    boxes, scores = wide(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # Sort as mmcv does, so that ties come in the same order.
    order = scores.sort(0, descending=True)[1]
    ranks = torch.arange(len(order), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[torch.ops.torchvision.nms(boxes[order], ranks, float(iou_threshold))]


@operator('PyTorch')
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft NMS (Bodla et al., 2017): lower the scores of overlapping boxes instead of removing them.

    As mmcv's, on the CPU and in the same order: the best box left comes to the front, and one that falls below
    ``min_score`` is replaced by the last.

    Args:
        boxes, scores (Tensor): (N, 4) and (N,).
        dets (Tensor): (N, 5), of which the first K rows are filled with boxes and new scores.
        method (int): 0 sets scores of overlapping boxes to 0, 1 scales them by 1 - IoU, 2 by exp(-IoU² / sigma).

    Returns:
        Tensor: Indices (K,) into ``boxes``.
    """
    x1, y1, x2, y2 = (column.copy() for column in boxes.detach().float().cpu().numpy().T)
    # One row for each quantity, so that a swap is one assignment.
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    rows = np.stack([x1, y1, x2, y2, scores.detach().float().cpu().numpy(), areas])
    index, count, i = np.arange(rows.shape[1]), rows.shape[1], 0
    while i < count:
        best = i + int(rows[4, i:count].argmax())
        rows[:, [i, best]], index[[i, best]] = rows[:, [best, i]], index[[best, i]]
        x1, y1, x2, y2, _, area = rows[:, i]
        rest = rows[:, i + 1 : count]
        width = np.maximum(0, np.minimum(x2, rest[2]) - np.maximum(x1, rest[0]) + offset)
        height = np.maximum(0, np.minimum(y2, rest[3]) - np.maximum(y1, rest[1]) + offset)
        inter = width * height
        with np.errstate(divide='ignore', invalid='ignore'):
            iou = inter / (area + rest[5] - inter)
        if method == 2:
            rest[4] *= np.exp(-(iou * iou) / np.float32(sigma))
        else:
            rest[4] *= np.where(iou >= np.float32(iou_threshold), 1 - iou if method == 1 else 0, 1).astype(np.float32)
        kept = ~(rest[4] < np.float32(min_score))
        total = int(kept.sum())
        order = np.arange(total)
        holes = np.flatnonzero(~kept[:total])
        order[holes] = (total + np.flatnonzero(kept[total:]))[::-1]  # the last ones fill the holes
        count = i + 1 + total
        rows[:, i + 1 : count], index[i + 1 : count] = rest[:, order], index[i + 1 :][order]
        i += 1
    dets[:count] = torch.from_numpy(rows[:5, :count].T.copy()).to(dets)
    return torch.from_numpy(index[:count].copy()).to(boxes.device)


@operator('PyTorch')
def nms_match(dets: Tensor, iou_threshold: float) -> List[List[int]]:
    """Groups of boxes: each kept one, followed by those that it suppressed, best first.

    Args:
        dets (Tensor): (N, 5), x1, y1, x2, y2, score.
        iou_threshold (float): A box belongs to a better one if their IoU is at least this.
    """
    order = dets[:, 4].sort(descending=True)[1].cpu().numpy()
    x1, y1, x2, y2 = dets[:, :4].detach().float().cpu().numpy().T
    areas, groups = (x2 - x1) * (y2 - y1), []
    while len(order):
        best, rest = order[0], order[1:]
        width = np.maximum(0, np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]))
        inter = width * np.maximum(0, np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]))
        with np.errstate(divide='ignore', invalid='ignore'):
            suppressed = inter / (areas[best] + areas[rest] - inter) >= np.float32(iou_threshold)
        groups.append([int(best), *rest[suppressed].tolist()])
        order = rest[~suppressed]
    return groups


@operator('PyTorch')
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Fill ``ious`` with the overlaps of (N, 4) and (M, 4) boxes: (N, M), or (N,) if ``aligned``.

    Args:
        mode (int): 0 divides by the union, 1 by the first box.
        offset (int): As for :func:`nms`.
    """
    first, second = wide(bboxes1, bboxes2)
    if not aligned:
        first, second = first[:, None], second[None]
    corner, end = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    inter = (end - corner + offset).clamp(min=0).prod(-1)
    area1, area2 = ((boxes[..., 2:] - boxes[..., :2] + offset).prod(-1) for boxes in (first, second))
    base = area1 if mode else area1 + area2 - inter
    ious.copy_((inter / base.clamp(min=float(offset))).view_as(ious))
