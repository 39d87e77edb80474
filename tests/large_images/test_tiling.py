"""Tiles and how their results are merged."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from pycocotools import mask as coco_mask

from xcit_mm.errors import UsageError
from xcit_mm.large_images.tiling import Detections, Maps, Tiles


@pytest.mark.parametrize('height, width, size, overlap', [(100, 100, 40, 0.25), (37, 250, 64, 0.5), (30, 20, 50, 0.0)])
def test_tiles_cover_the_image(height, width, size, overlap):
    windows = Tiles(size, overlap).windows(height, width)
    covered, cores = np.zeros((height, width), int), np.zeros((height, width), int)
    for window in windows:
        assert (window.bottom - window.top, window.right - window.left) == (min(size, height), min(size, width))
        covered[window.part] += 1
        left, top, right, bottom = window.core
        assert window.left <= left < right <= window.right and window.top <= top < bottom <= window.bottom
        cores[top:bottom, left:right] += 1
    assert covered.min() >= 1 and (cores == 1).all()
    lefts = sorted({window.left for window in windows})
    assert all(later - earlier <= max(1, size * (1 - overlap)) for earlier, later in zip(lefts, lefts[1:]))


def test_senseless_tiles():
    for arguments, text in (((0,), 'above 0 pixels, got 0'), ((10, 1.0), 'below 1, got 1.0')):
        with pytest.raises(UsageError, match=text):
            Tiles(*arguments).check()


def merged(objects, tiles, shape, with_masks=True):
    """What a detector that finds every part of objects (x1, y1, x2, y2, label) gives."""
    found = Detections(shape)
    for window in tiles.windows(*shape):
        boxes, labels, masks = [], [], []
        for x1, y1, x2, y2, label in objects:
            x1, x2 = (min(max(x, window.left), window.right) - window.left for x in (x1, x2))
            y1, y2 = (min(max(y, window.top), window.bottom) - window.top for y in (y1, y2))
            if x1 < x2 and y1 < y2:
                boxes.append([x1, y1, x2, y2])
                labels.append(label)
                masks.append(np.zeros((window.bottom - window.top, window.right - window.left), bool))
                masks[-1][y1:y2, x1:x2] = True
        instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.long),
            scores=torch.full((len(boxes),), 0.9),
        )
        if with_masks:
            instances.masks = torch.from_numpy(np.array(masks).reshape(len(masks), *np.shape(masks)[1:] or (1, 1)))
        found.add(window, DetDataSample(pred_instances=instances))
    return found.result()['pred_instances']


def test_objects_in_several_tiles_are_found_once_and_whole():
    """Objects as large as the overlap, at every place: no half of one is left over, in the image's pixels."""
    tiles, shape = Tiles(40, 0.5), (90, 110)
    for x in range(0, 90, 7):
        objects = [(x, x // 2, x + 18, x // 2 + 15, 3), (x, 70, x + 15, 88, 1)]
        found = merged(objects, tiles, shape)
        assert sorted(map(tuple, found.bboxes.int().tolist())) == sorted(one[:4] for one in objects)
        for box, mask in zip(found.bboxes.int().tolist(), found.masks):
            whole = np.zeros(shape, bool)
            whole[box[1] : box[3], box[0] : box[2]] = True
            assert (coco_mask.decode(mask).astype(bool) == whole).all()


def test_a_part_is_left_out_only_for_another_of_its_class():
    """A small thing cut by an edge stays beside a large one of another class, and one that no edge cuts stays too."""
    shape, tiles = (40, 70), Tiles(40, 0.25)
    found = merged([(32, 10, 40, 20, 0), (31, 5, 69, 35, 1)], tiles, shape, with_masks=False)
    assert (0, [32, 10, 40, 20]) in [(label, box) for label, box in zip(found.labels.tolist(), found.bboxes.tolist())]
    assert 'masks' not in found and not hasattr(found, 'is_cut')


def test_a_soft_nms_keeps_its_scores():
    found = Detections((10, 10), dict(type='soft_nms', iou_threshold=0.3))
    (window,) = Tiles(10).windows(10, 10)
    boxes = torch.tensor([[0.0, 0, 8, 8], [1, 0, 8, 8]])
    instances = InstanceData(bboxes=boxes, labels=torch.zeros(2).long(), scores=torch.tensor([0.9, 0.8]))
    found.add(window, DetDataSample(pred_instances=instances))
    scores = found.result()['pred_instances'].scores.tolist()
    assert scores[0] == pytest.approx(0.9) and 0 < scores[1] < 0.5


def test_label_maps_are_put_together():
    truth = torch.arange(50 * 70).reshape(50, 70) % 300
    found = Maps((50, 70))
    for window in Tiles(32, 0.3).windows(50, 70):
        labels = truth[window.part].clone()
        labels[0 if window.top else slice(0, 0)] = 7  # what a model says at an inner edge does not count
        found.add(window, DetDataSample(pred_sem_seg=PixelData(data=labels[None])))
    assert (found.result()['pred_sem_seg'].data[0] == truth).all()
