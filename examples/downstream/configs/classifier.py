"""MMPretrain's linear head on the class token of XCiT, with layer-wise learning rates.

The constructor asks the backbone how deep a parameter lies: the last blocks learn at the full rate, each one below at
0.8 of the next. Norms, biases, LayerScale, the class token and the temperature have no weight decay.
"""

_base_ = ['mmpretrain::_base_/default_runtime.py', './_base_/digits_imagenet.py']

xcit = 'https://dl.fbaipublicfiles.com/xcit/xcit_nano_12_p16_384_dist.pth'
data_preprocessor = _base_.digits_preprocessor
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='xcit_mm.XCiT',
        arch='n12',
        patch_size=16,
        out_type='cls_token',
        init_cfg=dict(type='Pretrained', checkpoint=xcit),
    ),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=128, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)
    ),
)

train_dataloader = _base_.digits_train
val_dataloader = _base_.digits_val
test_dataloader = _base_.digits_val
val_evaluator = _base_.digits_evaluator
test_evaluator = _base_.digits_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.8,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.temperature': dict(decay_mult=0.0)},
    ),
)
param_scheduler = _base_.digits_schedule
train_cfg = _base_.digits_loop
val_cfg = dict()
test_cfg = dict()
