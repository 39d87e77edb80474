"""MMDetection's RetinaNet with an XCiT backbone in the place of its ResNet-50."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
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
        out_strides=(8, 16, 32),  # where RetinaNet's own neck begins; a map that nobody uses is not made
        init_cfg=dict(type='Pretrained', checkpoint=xcit),
    ),
    neck=dict(in_channels=[128] * 3, start_level=0),
    bbox_head=dict(num_classes=10),
)

train_dataloader = _base_.digits_train
val_dataloader = _base_.digits_val
test_dataloader = _base_.digits_val
val_evaluator = _base_.digits_evaluator
val_evaluator['metric'] = 'bbox'
test_evaluator = val_evaluator

optim_wrapper = _base_.digits_optim_wrapper
param_scheduler = _base_.digits_schedule
train_cfg = _base_.digits_loop
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
