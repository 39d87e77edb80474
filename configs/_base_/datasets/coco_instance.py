"""COCO instances with the training views of DETR: flip, then resize, or resize, crop and resize. Test at 1333x800."""

_base_ = 'mmdet::_base_/datasets/coco_instance.py'

short_sides = dict(type='RandomChoiceResize', scales=[(short, 1333) for short in range(480, 801, 32)], keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [short_sides],
            [
                dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                short_sides,
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
# 8 GPUs x 2 images; --auto-scale-lr adapts the learning rate to another number.
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(enable=False, base_batch_size=16)
