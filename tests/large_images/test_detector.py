"""Detectors on images much larger than those of the training."""

import pickle

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import encode_mask_results
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from processes import ROOT

from xcit_mm.engine.large_images import trained_size, use_large_images
from xcit_mm.large_images.detector import LargeImages

HEIGHT, WIDTH = 128, 160


@pytest.fixture(scope='module')
def model(small_models):
    """A small Mask R-CNN of untrained weights, which finds something anywhere."""
    cfg = Config.fromfile(small_models['detector'][0])
    use_large_images(cfg)
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return revert_sync_batchnorm(MODELS.build(cfg.model)).eval()


@pytest.fixture(scope='module')
def inputs():
    return torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def predict(model, inputs, ori_shape=(251, 333)):
    samples = []
    for _ in inputs:
        meta = dict(img_shape=(HEIGHT, WIDTH), ori_shape=ori_shape, batch_input_shape=(HEIGHT, WIDTH))
        meta['scale_factor'] = (WIDTH / ori_shape[1], HEIGHT / ori_shape[0])
        samples.append(DetDataSample(metainfo=meta))
    with torch.no_grad():
        return [sample.pred_instances for sample in model.predict(inputs, samples)]


def test_masks_of_large_images_are_those_of_mmdetection_encoded(model, inputs, monkeypatch):
    monkeypatch.setitem(model.test_cfg, 'trained_size', None)
    (dense,) = predict(model, inputs[:1])
    monkeypatch.setattr(model, 'most_mask_bytes', 0)
    monkeypatch.setattr(model, 'chunk', 7)
    (encoded,) = predict(model, inputs[:1])
    assert isinstance(dense.masks, torch.Tensor) and dense.masks.any() and len(dense) > 14
    assert encode_mask_results(dense.masks.numpy()) == encoded.masks
    assert torch.equal(dense.bboxes, encoded.bboxes) and torch.equal(dense.scores, encoded.scores)
    both = predict(model, inputs)
    assert len(both) == 2 and both[0].masks == encoded.masks  # a batch is taken apart


def test_usual_images_are_left_to_mmdetection(model, inputs, monkeypatch):
    def fail(*_):
        raise AssertionError('a usual image')

    monkeypatch.setattr(LargeImages, '_predict', fail)
    monkeypatch.setitem(model.test_cfg, 'trained_size', (HEIGHT, WIDTH * 2 // 3))  # 1.5 times the area
    assert len(predict(model, inputs)) == 2


def test_the_budget_follows_the_area(model, inputs, monkeypatch):
    """Four times the area, four times the proposals and detections; --cfg-options turns it off."""
    seen = {}
    usual = type(model.roi_head).predict_bbox

    def predict_bbox(self, x, metas, proposals, rcnn_test_cfg, rescale=False):
        seen.update(proposals=len(proposals[0]), nms_pre=model.rpn_head.test_cfg.nms_pre)
        return usual(self, x, metas, proposals, rcnn_test_cfg, rescale)

    monkeypatch.setattr(type(model.roi_head), 'predict_bbox', predict_bbox)
    for head, key, number in ((model.rpn_head, 'max_per_img', 20), (model.roi_head, 'max_per_img', 10)):
        monkeypatch.setitem(head.test_cfg, key, number)
    monkeypatch.setitem(model.rpn_head.test_cfg, 'nms_pre', 50)
    found = {}
    for size in ((HEIGHT // 2, WIDTH // 2), None):
        monkeypatch.setitem(model.test_cfg, 'trained_size', size)
        found[size] = (len(predict(model, inputs[:1])[0]), *seen.values())
    assert list(found.values()) == [(40, 80, 200), (10, 20, 50)]
    assert model.rpn_head.test_cfg.max_per_img == 20  # as before
    monkeypatch.setattr(model, 'most', 30)
    monkeypatch.setitem(model.test_cfg, 'trained_size', (HEIGHT // 2, WIDTH // 2))
    assert len(predict(model, inputs[:1])[0]) == 30 and seen == dict(proposals=30, nms_pre=50)


def test_memory_does_not_grow_with_the_number_of_detections(model, inputs, monkeypatch):
    """Masks of 24 megapixels, 1.4 GB if they were dense."""
    monkeypatch.setitem(model.test_cfg, 'trained_size', None)
    monkeypatch.setitem(model.roi_head.test_cfg, 'max_per_img', 60)
    monkeypatch.setattr(LargeImages, 'most_mask_bytes', 2**30)
    (found,) = predict(model, inputs[:1], (4000, 6000))
    assert len(found) > 50 and found.masks[0]['size'] == [4000, 6000]
    assert sum(len(mask['counts']) for mask in found.masks) < 2**24


def test_trained_sizes_come_from_the_training_pipeline():
    for name, area in (('mask_rcnn_xcit_s12_8_3x_coco', 1333 * 800), ('faster_rcnn_xcit_n12_8_digits', 160 * 160)):
        cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
        use_large_images(cfg)
        assert cfg.model.type == ('xcit_mm.MaskRCNN' if 'mask' in name else 'xcit_mm.FasterRCNN')
        assert np.prod(cfg.model.test_cfg.trained_size) == area
    cfg.pop('train_dataloader')
    assert trained_size(cfg) is None
    segmentor = Config.fromfile(ROOT / 'configs/sem_fpn_xcit_n6_8_digits.py')
    use_large_images(segmentor)
    assert 'trained_size' not in (segmentor.model.test_cfg or {})


def test_the_tool_tests_draws_and_writes_encoded_masks(small_models, small_digits, run_tool, tmp_path, monkeypatch):
    """Dense or encoded, the numbers are the same."""
    config, checkpoint = small_models['detector']
    arguments = [config, checkpoint, '--data-root', small_digits / 'coco', '--show-dir', tmp_path / 'pictures']
    options = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    options += ['model.test_cfg.rcnn.score_thr=0.0', 'test_dataloader.batch_size=1']
    written = {}
    for kind, limit in (('dense', 2**30), ('encoded', 0)):
        monkeypatch.setattr(LargeImages, 'most_mask_bytes', limit)
        path = tmp_path / f'{kind}.pkl'
        run_tool(ROOT / 'tools/test.py', *arguments, '--out', str(path), '--cfg-options', *options)
        written[kind] = pickle.loads(path.read_bytes())
    for dense, encoded in zip(written['dense'], written['encoded']):
        assert dense['pred_instances']['masks'] == encoded['pred_instances']['masks'] != []
    assert len(list((tmp_path / 'pictures').rglob('*.jpg'))) == 4
