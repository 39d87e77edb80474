"""ImageNet-1k without labels: 2 large views at 224x224 and 10 small ones at 96x96 of each image, as DINO makes them."""

data_root = 'data/imagenet'
bicubic = dict(backend='pillow', interpolation='bicubic')
flip_and_colours = [
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandomApply',
        transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)],
        prob=0.8,
    ),
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
]
blur = dict(type='GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf')
large_view = [dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.25, 1.0), **bicubic), *flip_and_colours]
small_view = [dict(type='RandomResizedCrop', scale=96, crop_ratio_range=(0.05, 0.25), **bicubic), *flip_and_colours]
train_pipeline = [
    dict(type='xcit_mm.LoadImageFromFile'),
    dict(
        type='MultiView',
        num_views=[1, 1, 10],
        transforms=[
            [*large_view, dict(**blur, prob=1.0)],
            [*large_view, dict(**blur, prob=0.1), dict(type='Solarize', thr=128, prob=0.2)],
            [*small_view, dict(**blur, prob=0.5)],
        ],
    ),
    dict(type='PackInputs'),
]
# 16 GPUs x 64 images.
train_dataloader = dict(
    batch_size=64,
    num_workers=10,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ImageNet', data_root=data_root, split='train', pipeline=train_pipeline),
)
