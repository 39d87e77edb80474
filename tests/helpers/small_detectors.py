"""Small detectors with scores between 0 and 1, as files: what export and serving are tested with."""

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from processes import ROOT

CHANNELS = 32
PYRAMID = dict(
    type='FPN',
    in_channels=[CHANNELS] * 4,
    out_channels=32,
    add_extra_convs='on_output',
    num_outs=5,
)
ONE_STAGE = dict(num_classes=10, in_channels=32, stacked_convs=1, feat_channels=32)
RETINA = dict(
    type='RetinaHead',
    anchor_generator=dict(
        type='AnchorGenerator',
        octave_base_scale=4,
        scales_per_octave=3,
        ratios=[0.5, 1.0, 2.0],
        strides=[4, 8, 16, 32, 64],
    ),
    bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
    **ONE_STAGE,
)
FCOS = dict(type='FCOSHead', strides=[4, 8, 16, 32, 64], **ONE_STAGE)
TEST_CFG = dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


def detector_config(kind):
    """The digits detector with a tiny backbone; or one of the others in its place."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{"faster" if kind == "faster" else "mask"}_rcnn_xcit_n12_8_digits.py')
    cfg.model.backbone.update(arch=dict(embed_dims=CHANNELS, depth=2, num_heads=4), out_indices=(0, 0, 1, 1))
    cfg.merge_from_dict(
        {
            'model.neck': dict(in_channels=[CHANNELS] * 4, out_channels=CHANNELS),
            'model.rpn_head': dict(in_channels=CHANNELS, feat_channels=CHANNELS),
            'model.roi_head.bbox_roi_extractor.out_channels': CHANNELS,
            'model.roi_head.bbox_head': dict(in_channels=CHANNELS, fc_out_channels=64),
        }
    )
    if kind != 'faster':
        cfg.model.roi_head.mask_roi_extractor.out_channels = CHANNELS
        cfg.model.roi_head.mask_head.update(in_channels=CHANNELS, conv_out_channels=CHANNELS)
    if kind == 'by_class':  # boxes and masks of each class, and RoIAlign with as many samples as fit, as for COCO
        cfg.model.roi_head.bbox_head.reg_class_agnostic = False
        cfg.model.roi_head.mask_head.class_agnostic = False
        for extractor in (cfg.model.roi_head.bbox_roi_extractor, cfg.model.roi_head.mask_roi_extractor):
            extractor.roi_layer.sampling_ratio = 0
    if kind in ('retina', 'fcos'):
        parts = dict(retina=('RetinaNet', RETINA), fcos=('FCOS', FCOS))
        cfg.model = dict(
            type=parts[kind][0],
            data_preprocessor=cfg.model.data_preprocessor,
            backbone=cfg.model.backbone,
            neck=PYRAMID,
            bbox_head=parts[kind][1],
            test_cfg=TEST_CFG,
        )
    return cfg


def write_detector(cfg, folder):
    """A config and a checkpoint, of start values but for the last layers, whose scores lie between 0 and 1."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(('rpn_cls.weight', 'fc_cls.weight', 'retina_cls.weight', 'conv_cls.weight')):
                weights.normal_(0, 0.2)
            elif name.endswith(('rpn_reg.weight', 'fc_reg.weight', 'conv_logits.weight')):
                weights.normal_(0, 0.05)
            elif name.endswith(('retina_cls.bias', 'conv_cls.bias')):
                weights.fill_(-1)
    cfg.dump(folder / 'config.py')
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, folder / 'weights.pth')
    return str(folder / 'config.py'), str(folder / 'weights.pth')
