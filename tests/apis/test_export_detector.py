"""Whole detectors and models with their pipeline inside, against what the libraries themselves say of an image."""

import json

import numpy as np
import pytest
import torch
from small_detectors import detector_config, write_detector

from xcit_mm.apis import export
from xcit_mm.apis.export_check import detections_apart
from xcit_mm.errors import UsageError

onnxruntime = pytest.importorskip('onnxruntime', reason='pip install onnx onnxruntime')
STANDARD = ('', 'ai.onnx')  # the domains of ONNX's own operators
# Those of opset 17 that the parser of TensorRT 10 lacks (docs/operators.md of onnx-tensorrt).
NOT_IN_TENSORRT = [
    'BitShift',
    'Compress',
    'ConcatFromSequence',
    'ConvInteger',
    'Det',
    'DFT',
    'DynamicQuantizeLinear',
    'MatMulInteger',
    'MaxRoiPool',
    'MaxUnpool',
    'Multinomial',
    'QLinearConv',
    'QLinearMatMul',
    'SequenceAt',
    'SequenceInsert',
    'SplitToSequence',
    'STFT',
    'Unique',
]


@pytest.mark.parametrize('kind', ['mask', 'by_class', 'faster', 'retina', 'fcos'])
def test_detectors_find_what_mmdetection_finds(kind, tmp_path):
    """In images of sizes other than the recorded one, also of sizes that are padded; by standard operators."""
    import onnx

    model = write_detector(detector_config(kind), tmp_path)
    deviations = export.export_model(*model, str(tmp_path / 'model.onnx'), size=(96, 128))
    assert all(d.relative < 1e-4 and d.unmatched < 0.02 and d.detections > 20 for d in deviations)
    assert len({deviation.shape for deviation in deviations}) == 3
    graph = onnx.load(str(tmp_path / 'model.onnx'))
    assert {node.domain for node in graph.graph.node} <= set(STANDARD)
    operators = {node.op_type for node in graph.graph.node}
    assert 'NonMaxSuppression' in operators and ('RoiAlign' in operators) == (kind in ('mask', 'by_class', 'faster'))
    assert not operators & set(NOT_IN_TENSORRT)
    assert [output.name for output in graph.graph.output][3:] == (['masks'] if kind in ('mask', 'by_class') else [])


def test_budgets_follow_the_area_of_the_image(tmp_path):
    """As the model's own, which gives large images more proposals and detections."""
    cfg = detector_config('faster')
    cfg.model.test_cfg.rpn.update(nms_pre=60, max_per_img=40)
    cfg.model.test_cfg.rcnn.max_per_img = 20
    cfg.model.type, cfg.model.test_cfg.trained_size = 'xcit_mm.FasterRCNN', (64, 64)
    deviations = export.export_model(*write_detector(cfg, tmp_path), str(tmp_path / 'model.onnx'), size=(64, 96))
    counts = [deviation.detections for deviation in deviations]
    assert all(deviation.relative < 1e-4 and deviation.unmatched < 0.02 for deviation in deviations)
    assert counts[0] == 20
    larger = export.export_model(*write_detector(cfg, tmp_path), str(tmp_path / 'model.onnx'), size=(128, 160))
    assert all(d.relative < 1e-4 and d.unmatched < 0.02 and d.detections > 40 for d in larger)


def test_an_image_without_detections(tmp_path):
    cfg = detector_config('mask')
    cfg.model.test_cfg.rcnn.score_thr = 0.9999
    model = write_detector(cfg, tmp_path)
    deviations = export.export_model(*model, str(tmp_path / 'model.onnx'), size=(64, 64))
    assert [deviation.detections for deviation in deviations] == [0, 0, 0]


def test_a_detector_from_pixels(tmp_path):
    """RGB pixels of any size in, boxes and masks in them out, as the test pipeline and the model give them."""
    cfg = detector_config('mask')
    cfg.model.data_preprocessor.bgr_to_rgb = False
    model = write_detector(cfg, tmp_path)
    target = str(tmp_path / 'model.onnx')
    deviations = export.export_model(*model, target, size=(120, 90), from_pixels=True)
    assert all(deviation.relative < 1e-4 for deviation in deviations) and any(d.detections > 20 for d in deviations)
    session = onnxruntime.InferenceSession(target)
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (said['input'], said['channel_order'], said['task']) == ('pixels', 'RGB', 'detection')
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    boxes, _, _, masks = session.run(None, {'pixels': pixels})
    assert masks.shape == (len(boxes), 200, 300) and boxes[:, 2].max() > 160  # the network saw 160 columns


@pytest.mark.parametrize('name, shape', [('classifier', (10,)), ('semantic_fpn', (97, 120)), ('upernet', (97, 120))])
def test_other_models_from_pixels(name, shape, small_models, tmp_path):
    target = str(tmp_path / 'model.onnx')
    deviations = export.export_model(*small_models[name], target, size=(70, 100), from_pixels=True)
    assert all(deviation.relative < 1e-3 for deviation in deviations)
    pixels = np.random.default_rng(0).integers(0, 256, (97, 120, 3), dtype=np.uint8)
    (found,) = onnxruntime.InferenceSession(target).run(None, {'pixels': pixels})
    assert found.shape == shape


def test_what_cannot_be_exported_is_named(small_models, tmp_path):
    target = str(tmp_path / 'model.onnx')
    cfg = detector_config('mask')
    cfg.model.test_cfg.rcnn.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(UsageError, match='this one has nms=.*soft_nms'):
        export.export_model(*write_detector(cfg, tmp_path), target)
    cfg = detector_config('mask')
    cfg.test_dataloader.dataset.pipeline.insert(2, dict(type='RandomFlip', prob=0.0))
    with pytest.raises(UsageError, match='also has RandomFlip'):
        export.export_model(*write_detector(cfg, tmp_path), target, from_pixels=True)
    with pytest.raises(UsageError, match='exported to ONNX and OpenVINO alone|needs PyTorch 2.6 or later'):
        export.export_model(*small_models['detector'], target.replace('.onnx', '.pt2'), 'torch')
    assert not list(tmp_path.glob('*.onnx'))


def test_detections_are_matched_by_class_and_overlap():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 10, 10]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 2, 2])
    masks = torch.zeros(3, 50, 50, dtype=torch.bool)
    order = torch.tensor([2, 0, 1])
    ours = [outputs[order] for outputs in (boxes, scores, labels, masks)]
    theirs = [boxes, scores, labels, masks]
    assert detections_apart(ours, theirs, 50) == (0, 0)
    moved = [ours[0] + 0.1, *ours[1:]]
    assert detections_apart(moved, theirs, 50) == (pytest.approx(0.002, rel=1e-3), 0)
    relabelled = [*ours[:2], ours[2] + 1, masks]
    assert detections_apart(relabelled, theirs, 50)[1] == pytest.approx(2 / 3)
    assert detections_apart([outputs[:2] for outputs in ours], theirs, 50)[1] == pytest.approx(1 / 3)
    assert detections_apart([outputs[:0] for outputs in ours], theirs, 50)[1] == 1
    masked = [*ours[:3], masks.clone()]
    masked[3][0, 0, :5] = True
    assert detections_apart(masked, theirs, 50)[0] == pytest.approx(0.8)  # 5 of 5 pixels, less the one that may differ
    masked[3][0, 0, 1:5] = False
    assert detections_apart(masked, theirs, 50)[0] == 0
