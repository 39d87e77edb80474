"""Your data in ImageNet's folders, your classes, and a short schedule; for the configs of classifiers."""

size = 64
classes = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
digits_preprocessor = dict(num_classes=10, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
dataset = dict(type='CustomDataset', metainfo=dict(classes=classes), with_label=True)
digits_train = dict(
    batch_size=32,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_root='data/digits/imagenet/train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.7, 1.0)),
            dict(type='PackInputs'),
        ],
        **dataset,
    ),
)
digits_val = dict(
    batch_size=100,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_root='data/digits/imagenet/val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=size, edge='short'),
            dict(type='CenterCrop', crop_size=size),
            dict(type='PackInputs'),
        ],
        **dataset,
    ),
)
digits_evaluator = dict(type='Accuracy', topk=(1,))
max_epochs = 10
digits_schedule = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=max_epochs, convert_to_iter_based=True),
]
digits_loop = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
