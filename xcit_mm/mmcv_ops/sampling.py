"""Bilinear samples of feature maps, many at once, summed or compared bin by bin."""

from typing import Iterator, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Samples in a chunk; this bounds the memory.
SAMPLES = 1 << 20


class Grid(NamedTuple):
    """Samples of RoIs, S in all, ordered by bin."""

    y: Tensor  # (S,), in pixels of the map
    x: Tensor  # (S,)
    image: Tensor  # (S,), of the batch
    bin: Tensor  # (S,), n * height * width + row * width + column
    bins: int
    counts: Tensor  # (bins,), samples of each bin

    @classmethod
    def upright(cls, rois: Tensor, size: Tuple[int, int], scale: float, ratio: int, aligned: bool) -> 'Grid':
        """For RoIs (N, 5) of index, x1, y1, x2, y2."""
        box = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
        extent = box[:, 2:] - box[:, :2]
        extent = extent if aligned else extent.clamp(min=1)
        return cls._sample(rois[:, 0].long(), box[:, :2], extent, size, ratio)

    @classmethod
    def rotated(
        cls, rois: Tensor, size: Tuple[int, int], scale: float, ratio: int, aligned: bool, angle: Tensor
    ) -> 'Grid':
        """For RoIs (N, 6) of index, x and y of the centre, width, height; ``angle`` (N,), counterclockwise, replaces
        the last."""
        centre, extent = rois[:, 1:3] * scale - (0.5 if aligned else 0.0), rois[:, 3:5] * scale
        extent = extent if aligned else extent.clamp(min=1)
        grid = cls._sample(rois[:, 0].long(), -extent / 2, extent, size, ratio)
        roi = grid.bin // (size[0] * size[1])
        cos, sin = angle.cos()[roi], angle.sin()[roi]
        y = grid.y * cos - grid.x * sin + centre[roi, 1]
        x = grid.y * sin + grid.x * cos + centre[roi, 0]
        return grid._replace(y=y, x=x)

    @classmethod
    def _sample(cls, image: Tensor, start: Tensor, extent: Tensor, size: Tuple[int, int], ratio: int) -> 'Grid':
        height, width = size
        step = extent / extent.new_tensor([width, height])
        number = _per_bin(extent, size, ratio)  # of samples of a bin, (N, 2), x first
        counts = number.prod(1).repeat_interleave(height * width)
        bins = torch.repeat_interleave(torch.arange(len(counts), device=image.device), counts)
        within = torch.arange(len(bins), device=image.device) - (counts.cumsum(0) - counts)[bins]
        roi, row, column = bins // (height * width), bins // width % height, bins % width
        across = number[roi, 0]

        def place(axis: int, index: Tensor, sample: Tensor) -> Tensor:
            bin_size = step[roi, axis]
            return start[roi, axis] + index * bin_size + (sample + 0.5) * bin_size / number[roi, axis]

        y, x = place(1, row, within // across), place(0, column, within % across)
        return cls(y, x, image[roi], bins, len(counts), counts)


def _per_bin(extent: Tensor, size: Tuple[int, int], ratio: int) -> Tensor:
    if ratio > 0:
        return torch.full_like(extent, ratio, dtype=torch.long)
    return (extent / extent.new_tensor([size[1], size[0]])).ceil().clamp(min=0).long()


def chunks(rois: Tensor, size: Tuple[int, int], ratio: int, scale: float) -> Iterator[slice]:
    """Split N RoIs (upright or rotated) so that each part has about :data:`SAMPLES` samples at most."""
    extent = (rois[:, 3:5] - rois[:, 1:3] if rois.shape[1] == 5 else rois[:, 3:5]).abs() * scale
    samples = (_per_bin(extent, size, ratio) + 1).prod(1) * size[0] * size[1]
    part = (samples.cumsum(0) // SAMPLES).tolist()
    start = 0
    for end in range(1, len(part) + 1):
        if end == len(part) or part[end] != part[start]:
            yield slice(start, end)
            start = end


def bilinear_taps(y: Tensor, x: Tensor, height: int, width: int) -> Tuple[Tensor, Tensor]:
    """Pixels (..., 4) as y * width + x, and their weights, of samples at (y, x).

    A sample more than a pixel outside weighs nothing; nearer ones, and those beyond the last pixel's centre, are moved
    onto the border.
    """
    outside = (y < -1) | (y > height) | (x < -1) | (x > width) | y.isnan() | x.isnan()
    y, x = y.clamp(0, height - 1).nan_to_num(), x.clamp(0, width - 1).nan_to_num()
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    low_y, low_x = y - top, x - left
    high_y, high_x = 1 - low_y, 1 - low_x
    taps = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right], -1)
    weights = torch.stack([high_y * high_x, high_y * low_x, low_y * high_x, low_y * low_x], -1)
    return taps, weights.masked_fill(outside[..., None], 0)


def bag_sums(rows: Tensor, index: Tensor, weights: Tensor, counts: Optional[Tensor] = None) -> Tensor:
    """Weighted sums of rows, none of which is copied.

    Args:
        rows (Tensor): (R, C).
        index, weights (Tensor): (S, K).
        counts (Tensor, optional): (M,): sum over that many successive samples. None: over each sample alone.

    Returns:
        Tensor: (M, C), or (S, C).
    """
    if counts is None:
        offsets = torch.arange(len(index), device=rows.device) * index.shape[1]
    else:
        offsets = (counts.cumsum(0) - counts) * index.shape[1]
    if not len(offsets) or not index.numel() or not rows.shape[1]:
        return rows.new_zeros(len(offsets), rows.shape[1])
    return F.embedding_bag(
        index.flatten(), rows.contiguous(), offsets, mode='sum', per_sample_weights=weights.flatten().to(rows)
    )
