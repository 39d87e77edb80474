"""MMDetection's Cascade Mask R-CNN with an XCiT backbone in the place of its ResNet-50."""

_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    './_base_/digits_coco.py',
]

xcit = 'https://dl.fbaipublicfiles.com/xcit/xcit_nano_12_p16_384_dist.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='xcit_mm.XCiT',
        arch='n12',
        patch_size=16,
        out_type='pyramid',
        init_cfg=dict(type='Pretrained', checkpoint=xcit),
    ),
    neck=dict(in_channels=[128] * 4),
    roi_head=dict(
        bbox_head=[
            dict(
                type='Shared2FCBBoxHead',
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=10,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1 / k, 0.1 / k, 0.2 / k, 0.2 / k]
                ),
                reg_class_agnostic=True,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
            )
            for k in (1, 2, 3)
        ],
        mask_head=dict(num_classes=10),
    ),
)

train_dataloader = _base_.digits_train
val_dataloader = _base_.digits_val
test_dataloader = _base_.digits_val
val_evaluator = _base_.digits_evaluator
test_evaluator = _base_.digits_evaluator

optim_wrapper = _base_.digits_optim_wrapper
param_scheduler = _base_.digits_schedule
train_cfg = _base_.digits_loop
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
