"""Your data in ADE20K's folders, your classes, and a short schedule; for the configs of segmentors."""

size = (160, 160)
classes = ('background', 'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
palette = [[25 * i, 255 - 25 * i, (80 * i) % 256] for i in range(11)]
dataset = dict(
    type='BaseSegDataset',
    data_root='data/digits/ade/',
    reduce_zero_label=True,
    metainfo=dict(classes=classes, palette=palette),
)
digits_train = dict(
    batch_size=4,
    num_workers=2,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
            dict(type='Resize', scale=size, keep_ratio=True),
            dict(type='PackSegInputs'),
        ],
        **dataset,
    ),
)
digits_val = dict(
    batch_size=4,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=size, keep_ratio=True),
            dict(type='LoadAnnotations', reduce_zero_label=True),
            dict(type='PackSegInputs'),
        ],
        **dataset,
    ),
)
digits_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
digits_optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
max_iters = 1500
digits_schedule = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=0, end=max_iters),
]
digits_loop = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=500)
digits_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=500))
digits_preprocessor = dict(size=size)
