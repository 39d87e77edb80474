"""Prediction tile by tile of images too large for a model, merged into one result in the image's pixels."""

from itertools import islice
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseTTAModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from ..errors import UsageError
from ..registry import MODELS
from .masks import MOST_PIXELS, crop_of, encode_crop

EDGE = 0.01  # of a tile's side: a box this near to its edge counts as cut
COVERED = 0.5  # share of a cut detection that another covers: it is a part of that
SURE = 0.5  # lowest score of the other, as a share of that of the cut one
NMS = dict(type='nms', iou_threshold=0.5)  # of models that have none of their own


class Window(NamedTuple):
    """A tile of an image, in pixels. ``core`` is the part that is farther from its edges than in any other tile.

    Attributes:
        left, top, right, bottom (int): The tile; right and bottom are exclusive.
        core (tuple[int, int, int, int]): The same for the core. The cores of all tiles cover the image once.
    """

    left: int
    top: int
    right: int
    bottom: int
    core: Tuple[int, int, int, int]

    @property
    def part(self) -> Tuple[slice, slice]:
        """Rows and columns of the tile in an array of the image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Tiles(NamedTuple):
    """How images are cut.

    Attributes:
        size (int): Side of a tile in pixels of the image.
        overlap (float): Overlap of neighbouring tiles, as a share of the size. Make it at least as large as the
            objects, so that each is whole in one tile.
    """

    size: int
    overlap: float = 0.25

    def check(self) -> 'Tiles':
        """Return these tiles if size and overlap are in range.

        Raises:
            UsageError: If size or overlap is out of range.
        """
        if self.size < 1:
            raise UsageError(f'the size of the tiles must be above 0 pixels, got {self.size}')
        if not 0 <= self.overlap < 1:
            raise UsageError(f'the overlap of the tiles must be at least 0 and below 1, got {self.overlap}')
        return self

    def windows(self, height: int, width: int) -> List[Window]:
        """The tiles of an image, row by row; all of one size, with at least the overlap."""
        rows, columns = self._along(height), self._along(width)
        return [
            Window(left, top, right, bottom, (core_left, core_top, core_right, core_bottom))
            for top, bottom, core_top, core_bottom in rows
            for left, right, core_left, core_right in columns
        ]

    def _along(self, side: int) -> List[Tuple[int, int, int, int]]:
        """Begin and end of each tile and of its core, along one axis."""
        size = min(self.size, side)
        step = max(1, int(size * (1 - self.overlap)))
        starts = [round(at) for at in np.linspace(0, side - size, -(-(side - size) // step) + 1)]
        middles = [(start + size + following) // 2 for start, following in zip(starts, starts[1:])]
        return [(at, at + size, low, high) for at, low, high in zip(starts, [0, *middles], [*middles, side])]


class Detections:
    """Merge the detections of tiles.

    MMDetection merges by NMS (``mmdet.utils.large_image``), which leaves the parts of objects that a tile's edge cuts.
    An NMS may even prefer such a part to the whole. So before it, a detection that touches an inner edge is left out if
    a larger one of its class, from another tile and with at least half its score, covers more than half of it.

    Args:
        shape (tuple[int, int]): Height and width of the image.
        nms (dict): Settings of MMCV's ``batched_nms``.
    """

    def __init__(self, shape: Tuple[int, int], nms: Optional[dict] = None):
        self.shape, self.nms = tuple(shape), dict(nms or NMS)
        self.found: List[InstanceData] = []

    def add(self, window: Window, sample: BaseDataElement) -> None:
        """Add the predictions of one tile, in its pixels."""
        height, width = self.shape
        found = sample.pred_instances.cpu()
        boxes, offset = found.bboxes, found.bboxes.new_tensor([window.left, window.top] * 2)
        sides = boxes.new_tensor([window.right - window.left, window.bottom - window.top] * 2)
        inner = torch.tensor([window.left > 0, window.top > 0, window.right < width, window.bottom < height])
        near = torch.cat([boxes[:, :2], sides[2:] - boxes[:, 2:]], dim=1) <= sides * EDGE
        if 'masks' in found:
            masks = (crop_of(mask) for mask in found.masks)
            if height * width <= MOST_PIXELS:
                found.masks = [encode_crop(m, x + window.left, y + window.top, height, width) for m, x, y in masks]
            else:
                del found.masks
        found.bboxes = boxes + offset
        found.set_field((near & inner).any(dim=1), 'is_cut', dtype=Tensor)
        found.set_field(torch.full((len(found),), len(self.found)), 'tile', dtype=Tensor)
        self.found.append(found)

    def result(self) -> Dict[str, InstanceData]:
        """'pred_instances' of the whole image, best first."""
        from mmcv.ops import batched_nms

        found = InstanceData.cat(self.found)
        found = found[~self._parts(found)]
        if len(found):
            boxes, keep = batched_nms(found.bboxes.float(), found.scores.float(), found.labels, self.nms)
            found = found[keep]
            found.scores = boxes[:, -1]  # which a soft NMS changes
        del found.is_cut, found.tile
        return dict(pred_instances=found)

    @staticmethod
    def _parts(found: InstanceData) -> Tensor:
        """(N,) bool: True if a detection is a part of another."""
        is_part = torch.zeros(len(found), dtype=torch.bool)
        for label in found.labels[found.is_cut].unique():
            same = (found.labels == label).nonzero().flatten()
            boxes, scores, tile = (found.get(key)[same] for key in ('bboxes', 'scores', 'tile'))
            area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(dim=1)
            for i in found.is_cut[same].nonzero().flatten().tolist():
                others = ((tile != tile[i]) & (area > area[i]) & (scores >= SURE * scores[i])).nonzero().flatten()
                corner, end = torch.max(boxes[i, :2], boxes[others, :2]), torch.min(boxes[i, 2:], boxes[others, 2:])
                is_part[same[i]] = bool(((end - corner).clamp_min(0).prod(dim=1) > COVERED * area[i]).any())
        return is_part


class Maps:
    """Merge label maps: every pixel takes its class from the tile in whose core it lies.

    Args:
        shape (tuple[int, int]): Height and width of the image.
    """

    def __init__(self, shape: Tuple[int, int]):
        self.labels = torch.zeros(1, *shape, dtype=torch.uint8)

    def add(self, window: Window, sample: BaseDataElement) -> None:
        """Add the prediction of one tile."""
        labels = sample.pred_sem_seg.data.cpu()
        if self.labels.dtype == torch.uint8 and int(labels.max()) > 255:
            self.labels = self.labels.int()
        left, top, right, bottom = window.core
        part = labels[:, top - window.top : bottom - window.top, left - window.left : right - window.left]
        self.labels[:, top:bottom, left:right] = part.to(self.labels.dtype)

    def result(self) -> Dict[str, PixelData]:
        """'pred_sem_seg'."""
        return dict(pred_sem_seg=PixelData(data=self.labels))


def predict_tiles(
    model: nn.Module, tiles: Iterable[Tuple[Window, dict]], shape: Tuple[int, int], batch_size: int = 1
) -> Dict[str, BaseDataElement]:
    """Predict an image tile by tile; no more than a batch of tiles is in memory.

    Args:
        model (nn.Module): A detector or a segmentor.
        tiles (iterable): Each window with what the test pipeline packs of it.
        shape (tuple[int, int]): Height and width of the image.
        batch_size (int): Tiles that are computed together.

    Returns:
        dict: 'pred_instances' or 'pred_sem_seg' of the whole image, on the CPU.

    Raises:
        UsageError: If the model is neither a detector nor a segmentor.
    """
    merged, tiles = None, iter(tiles)
    for batch in iter(lambda: list(islice(tiles, batch_size)), []):
        with torch.no_grad():
            samples = model.test_step(pseudo_collate([packed for _, packed in batch]))
        for (window, _), sample in zip(batch, samples):
            if merged is None:
                merged = _merger(model, sample, shape)
            merged.add(window, sample)
    return merged.result()


def _merger(model: nn.Module, sample: BaseDataElement, shape: Tuple[int, int]):
    if 'pred_sem_seg' in sample:
        return Maps(shape)
    if 'pred_instances' not in sample or 'bboxes' not in sample.pred_instances:
        raise UsageError('tiles are for detectors of boxes and for segmentors')
    test_cfg = getattr(model, 'test_cfg', None) or {}
    return Detections(shape, (test_cfg.get('rcnn') or test_cfg).get('nms'))


class TiledImage:
    """An image of a data set, to be predicted tile by tile.

    Args:
        results (dict): Output of the loading step of the test pipeline, with 'img' (H, W) or (H, W, channels).
        sample (BaseDataElement): Data sample of the whole image, with its annotations.
        tiles (Tiles): How it is cut.
        rest (callable): The steps of the test pipeline after loading, without those for annotations.
    """

    def __init__(self, results: dict, sample: BaseDataElement, tiles: Tiles, rest):
        self.results, self.sample, self.tiles, self.rest = results, sample, tiles, rest

    def __iter__(self) -> Iterator[Tuple[Window, dict]]:
        image = self.results['img']
        for window in self.tiles.windows(*image.shape[:2]):
            yield window, self.rest(cut(self.results, image[window.part]))


def cut(results: dict, part: np.ndarray) -> dict:
    """The results of a pipeline for an image, changed to one tile of it."""
    part = np.ascontiguousarray(part)
    return dict(results, img=part, img_shape=part.shape[:2], ori_shape=part.shape[:2])


@MODELS.register_module()
class TiledModel(BaseTTAModel):
    """A detector or a segmentor that is tested tile by tile, on batches of :class:`TiledImage`.

    Args:
        module (dict): The model.
        data_preprocessor (dict, optional): For a model that has none of its own.
        batch_size (int): Tiles that are computed together.
    """

    def __init__(self, module: dict, data_preprocessor: Optional[dict] = None, batch_size: int = 1):
        super().__init__(module, data_preprocessor)
        self.batch_size = batch_size

    def test_step(self, data: List[TiledImage]) -> List[BaseDataElement]:
        """Images -> their samples with predictions."""
        for image in data:
            found = predict_tiles(self.module, image, image.results['img'].shape[:2], self.batch_size)
            image.sample.set_data(found)
        return [image.sample for image in data]

    def merge_preds(self, data_samples_list):
        """Not used: images have different numbers of tiles."""
        raise NotImplementedError
