"""The embedded digits for segmentors, with a schedule for two CPU cores; a config takes the parts that it names.

Eleven classes, background and ten digits, in the folders of ADE20K.
"""

size = (160, 160)
classes = (
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
)
digits = dict(
    type='BaseSegDataset',
    data_root='data/digits/ade/',
    reduce_zero_label=True,
    metainfo=dict(classes=classes),
)
digits_train_pipeline = [
    dict(type='xcit_mm.LoadImageFromFile'),
    dict(type='xcit_mm.LoadSegMap', reduce_zero_label=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    # The hands of the training set are few: slanted as others write, they give 4 points of mIoU.
    dict(type='RandomRotate', prob=0.7, degree=12.0, pad_val=110, seg_pad_val=0),
    dict(type='PackSegInputs'),
]
digits_test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
digits_train = dict(batch_size=4, num_workers=1, dataset=dict(**digits, pipeline=digits_train_pipeline))
digits_val = dict(batch_size=8, num_workers=1, dataset=dict(**digits, pipeline=digits_test_pipeline))

# Nine of ten pixels are background, and most errors lie on the edges of strokes.
digits_loss = [
    dict(type='CrossEntropyLoss', loss_weight=1.0, class_weight=[0.6] + [1.0] * 10),
    dict(type='DiceLoss', use_sigmoid=False, loss_weight=3.0),
]

digits_iters = 3800
digits_schedule = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=digits_iters, T_max=digits_iters),
]
