"""MMSegmentation's UperNet with an XCiT backbone in the place of its ResNet-50."""

_base_ = [
    __import__('xcit_mm').config_path('mmseg::_base_/models/upernet_r50.py'),
    __import__('xcit_mm').config_path('mmseg::_base_/default_runtime.py'),
    './_base_/digits_ade.py',
]

xcit = 'https://dl.fbaipublicfiles.com/xcit/xcit_nano_12_p16_384_dist.pth'
norm_cfg = dict(type='xcit_mm.SyncBN', requires_grad=True)  # batch norm in one process, on a CPU too
model = dict(
    data_preprocessor=_base_.digits_preprocessor,
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='xcit_mm.XCiT',
        arch='n12',
        patch_size=16,
        out_type='pyramid',
        init_cfg=dict(type='Pretrained', checkpoint=xcit),
    ),
    decode_head=dict(in_channels=[128] * 4, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=128, num_classes=11, norm_cfg=norm_cfg),
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
default_hooks = _base_.digits_hooks
