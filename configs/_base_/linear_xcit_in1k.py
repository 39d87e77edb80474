"""What the four linear configs share: DINO's linear evaluation, 100 epochs of SGD on frozen features."""

_base_ = ['./datasets/imagenet.py', './runtime_cls.py']

model = dict(
    type='xcit_mm.LinearProbe',
    data_preprocessor=dict(
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(type='xcit_mm.XCiT', arch='s12', patch_size=16, bn_norm_cfg=dict(type='xcit_mm.SyncBN')),
    num_last_blocks=1,
    average_patches=False,
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),
        loss=dict(type='CrossEntropyLoss'),
    ),
)

train_pipeline = [
    dict(type='xcit_mm.LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bilinear'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
# Crop ratio 0.875: 224 of 256.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
# 8 GPUs x 128 images.
train_dataloader = dict(
    drop_last=True,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

epochs = 100
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001 * 1024 / 256, momentum=0.9, weight_decay=0.0)
)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=epochs, eta_min=0.0, by_epoch=True, begin=0, end=epochs)]
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=1024)
custom_hooks = [
    *_base_.custom_hooks[:-1],  # without the average of the weights
    dict(type='xcit_mm.LinearHeadHook'),
]
