"""Detectors of mmdet on XCiT that use mmcv's operators, with those of torchvision and PyTorch in their place."""

import pytest
import torch

pytest.importorskip('mmdet')
from mmcv_operators import operators  # noqa: E402
from mmdet.testing import demo_mm_inputs  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402

from xcit_mm import config_path  # noqa: E402
from xcit_mm.mmcv_ops import ext  # noqa: E402

CONFIGS = (
    'retinanet/retinanet_r50_fpn_1x_coco',
    pytest.param('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', marks=pytest.mark.slow),  # operators of RetinaNet's
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
    'solov2/solov2_r50_fpn_1x_coco',
    'vfnet/vfnet_r50_fpn_1x_coco',  # deformable convolution in its head
    'guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco',  # masked convolution
)


@pytest.mark.parametrize('config', CONFIGS)
def test_detector_trains_a_step_and_predicts(config, tiny):
    """Losses are numbers, every weight of the backbone that is used gets a gradient, and predictions come out."""
    torch.manual_seed(0)
    model = Config.fromfile(config_path(f'mmdet::{config}.py')).model
    model.backbone = dict(type='xcit_mm.XCiT', arch=tiny, patch_size=16, out_type='pyramid', out_indices=(0, 1, 2, 3))
    model.get('neck', model.get('panoptic_head')).in_channels = [32] * 4
    model.data_preprocessor.batch_augments = None  # Mask2Former's pads to 1024x1024
    init_default_scope('mmdet')
    model = MODELS.build(model)
    model.init_weights()  # some weights of Deformable DETR are whatever the memory held before
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4))
    batch = demo_mm_inputs(2, [[3, 128, 160], [3, 160, 128]], num_items=[3, 4], with_mask=True)
    with operators(ext):
        before = {name: value.clone() for name, value in model.backbone.named_parameters()}
        losses = model.train().train_step(batch, optimizer)
        assert torch.isfinite(losses['loss']) and losses['loss'] > 0
        assert any(not torch.equal(value, before[name]) for name, value in model.backbone.named_parameters())
        batch = demo_mm_inputs(1, [[3, 128, 160]], num_items=[3], with_mask=True)
        with torch.no_grad():
            (prediction,) = model.eval().test_step(batch)
    instances = prediction.pred_instances
    assert torch.isfinite(instances.scores).all() and len(instances.labels) == len(instances.scores)
