"""1000 epochs of SGD at 0.01 for 768 images, warmed up for 5, down to 1e-5 by cosine; in mixed precision.

The settings that DeiT's authors gave for CIFAR-10 and Stanford Cars (github.com/facebookresearch/deit/issues/45); the
XCiT release states none for its transfer runs. The optimizer is timm's SGD, with Nesterov momentum of 0.9.
"""

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type='xcit_mm.EpochCosineLR', warmup_epochs=5, warmup_lr=1e-6, eta_min=1e-5, T_max=1000, begin=0, end=1000)
]
train_cfg = dict(by_epoch=True, max_epochs=1000, val_interval=10)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=768)
