"""Semantic FPN with XCiT-N12/8 on the embedded digits, from random weights, for two CPU cores.

Eleven classes, background and ten digits; 1500 iterations of 4 images.

    python tools/make_digits.py data/digits
    python tools/train.py configs/sem_fpn_xcit_n12_8_digits.py
"""

_base_ = './sem_fpn_xcit_t12_8_80k_ade20k.py'

size = (160, 160)
norm_cfg = dict(type='xcit_mm.SyncBN')  # from random weights, the pyramid needs norms
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(arch='n12', init_cfg=None),
    neck=dict(in_channels=[128] * 4, out_channels=96, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[96] * 4, channels=64, num_classes=11),
)

# The folders of ADE20K under another root, and other classes.
dataset = dict(
    type='BaseSegDataset',
    data_root='data/digits/ade/',
    reduce_zero_label=True,
    metainfo=dict(
        classes=(
            'background',
            'zero',
            'one',
            'two',
            'three',
            'four',
            'five',
            'six',
            'seven',
            'eight',
            'nine',
        ),
        palette=[
            (0, 0, 0),
            (220, 20, 60),
            (60, 180, 75),
            (255, 225, 25),
            (0, 130, 200),
            (245, 130, 48),
            (145, 30, 180),
            (70, 240, 240),
            (240, 50, 230),
            (210, 245, 60),
            (170, 110, 40),
        ],
    ),
)
train_pipeline = [
    dict(type='xcit_mm.LoadImageFromFile'),
    dict(type='xcit_mm.LoadSegMap', reduce_zero_label=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 1500
optim_wrapper = dict(optimizer=dict(lr=7e-4), clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, T_max=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=4)
randomness = dict(seed=0)
