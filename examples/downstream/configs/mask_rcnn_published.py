"""The published Mask R-CNN with XCiT-T12/16, its data, classes and schedule changed.

`_base_` is evaluated before anything of the config is, so the path of the installed config is asked for in one
expression. Everything that is not named here is as published.
"""

_base_ = __import__('xcit_mm').config_path('mask_rcnn_xcit_t12_16_3x_coco')

data_root = 'data/digits/coco/'
classes = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
model = dict(roi_head=dict(bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
data = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(**data, pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(**data, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', begin=0, end=3, T_max=3, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=3)
