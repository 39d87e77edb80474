# ruff: noqa: F403, F405 (names come from the base config)
"""The published Mask R-CNN in MMEngine's pure-Python style, its data, classes and schedule changed."""

from mmengine.config import read_base

with read_base():
    from xcit_mm.configs.mask_rcnn_xcit_t12_16_3x_coco.config import *

from mmdet.datasets.transforms import PackDetInputs
from mmengine.optim import OptimWrapper

data_root = 'data/digits/coco/'
classes = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
model['roi_head']['bbox_head'].update(num_classes=10)
model['roi_head']['mask_head'].update(num_classes=10)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type=PackDetInputs),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
data = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader.update(batch_size=4, num_workers=2)
train_dataloader['dataset'].update(**data, pipeline=train_pipeline)
val_dataloader.update(batch_size=4, num_workers=2)
val_dataloader['dataset'].update(**data, pipeline=test_pipeline)
test_dataloader = val_dataloader
val_evaluator.update(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

optim_wrapper.update(type=OptimWrapper)
optim_wrapper['optimizer'].update(lr=2e-4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', begin=0, end=3, T_max=3, convert_to_iter_based=True),
]
train_cfg.update(max_epochs=3)
