"""ImageNet-1k as DINO's k-NN test reads it: short side resized to 256, centre crop of 224, in training images too."""

_base_ = './imagenet.py'

bicubic = dict(backend='pillow', interpolation='bicubic')
features_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', **bicubic),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
in_order = dict(drop_last=False, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=False))
train_dataloader = dict(**in_order, dataset=dict(pipeline=features_pipeline))
val_dataloader = dict(dataset=dict(pipeline=features_pipeline))
test_dataloader = val_dataloader
