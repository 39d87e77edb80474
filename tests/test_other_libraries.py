"""MMPose and MMRotate with this backbone, through the registry alone and without compiled operators."""

import importlib.util

import pytest
import torch
from mmcv_operators import operators
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

from xcit_mm import config_path
from xcit_mm.mmcv_ops import ext

pytestmark = pytest.mark.slow


def needs(library):
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f'needs {library}: docs/other_libraries.md says how to install it')


def train_a_step_and_predict(model, library, batch):
    init_default_scope(library)
    model = MODELS.build(model)
    model.init_weights()
    before = {name: value.clone() for name, value in model.backbone.named_parameters()}
    with operators(ext):
        losses = model.train().train_step(batch(), OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3)))
        assert all(torch.isfinite(value).all() for value in losses.values()), losses
        assert any(not torch.equal(value, before[name]) for name, value in model.backbone.named_parameters())
        with torch.no_grad():
            return model.eval().test_step(batch())


@needs('mmpose')
@pytest.mark.parametrize('method', ['topdown_heatmap/coco/td-hm', 'simcc/coco/simcc'])
def test_mmpose(method, tiny):
    from mmpose.testing import get_packed_inputs

    torch.manual_seed(0)
    model = Config.fromfile(config_path(f'mmpose::body_2d_keypoint/{method}_res50_8xb64-210e_coco-256x192.py')).model
    model.backbone = dict(type='xcit_mm.XCiT', arch=tiny, patch_size=16, out_type='featmap', out_indices=(-1,))
    if 'simcc' in method:
        model.head.update(in_channels=32, in_featuremap_size=(12, 16))
    else:  # stride 16 instead of 32: one deconvolution less
        model.head.update(in_channels=32, deconv_out_channels=(256, 256), deconv_kernel_sizes=(4, 4))
    ratio = model.head.decoder.get('simcc_split_ratio', 2.0)
    samples = train_a_step_and_predict(model, 'mmpose', lambda: get_packed_inputs(2, simcc_split_ratio=ratio))
    for sample in samples:
        assert sample.pred_instances.keypoints.shape == (1, 17, 2)


MMROTATE = (
    'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota',
    'oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota',
    'r3det/r3det-oc_r50_fpn_1x_dota',  # alignment of features
    's2anet/s2anet-le135_r50_fpn_1x_dota',  # rotated filters
    'rotated_reppoints/rotated-reppoints-qbox_r50_fpn_1x_dota',  # overlaps of point sets, smallest rectangles
    'oriented_reppoints/oriented-reppoints-qbox_r50_fpn_1x_dota',
    'cfa/cfa-qbox_r50_fpn_1x_dota',
    'rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota',  # differentiable IoU
)


@needs('mmrotate')
@pytest.mark.parametrize('config', MMROTATE)
def test_mmrotate(config, tiny):
    from mmdet.structures import DetDataSample
    from mmrotate.structures.bbox import QuadriBoxes, RotatedBoxes

    torch.manual_seed(0)
    model = Config.fromfile(config_path(f'mmrotate::{config}.py')).model
    model.backbone = dict(type='xcit_mm.XCiT', arch=tiny, patch_size=16, out_type='pyramid', out_indices=(0, 1, 2, 3))
    model.neck.in_channels = [32] * 4
    quadrilaterals = 'qbox' in config
    size = (128, 160)

    def batch():
        samples = []
        for angle in (0.3, -1.2):
            boxes = RotatedBoxes(torch.tensor([[60.0, 50, 40, 20, angle], [90, 100, 60, 30, -angle]]))
            boxes = boxes.convert_to('qbox') if quadrilaterals else boxes
            assert isinstance(boxes, QuadriBoxes if quadrilaterals else RotatedBoxes)
            sample = DetDataSample(
                metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
            )
            sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 4]))
            sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.tensor([]).long())
            samples.append(sample)
        return dict(
            inputs=[torch.randint(0, 255, (3, *size), dtype=torch.uint8) for _ in samples], data_samples=samples
        )

    for sample in train_a_step_and_predict(model, 'mmrotate', batch):
        predicted = sample.pred_instances
        assert predicted.bboxes.shape == (len(predicted.scores), predicted.bboxes.shape[1])
        assert predicted.bboxes.shape[1] in ((5, 8) if quadrilaterals else (5,))
        assert torch.isfinite(predicted.scores).all()
