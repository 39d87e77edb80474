"""MMDetection's Mask2Former with an XCiT backbone in the place of its ResNet-50."""

_base_ = ['mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py']

xcit = 'https://dl.fbaipublicfiles.com/xcit/xcit_nano_12_p16_384_dist.pth'
model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=dict(
        _delete_=True,
        type='xcit_mm.XCiT',
        arch='n12',
        patch_size=16,
        out_type='pyramid',
        init_cfg=dict(type='Pretrained', checkpoint=xcit),
    ),
    panoptic_head=dict(
        in_channels=[128] * 4,
        num_queries=50,
        num_things_classes=10,
        loss_cls=dict(class_weight=[1.0] * 10 + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=10),
)

data_root = 'data/digits/coco/'
classes = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
train_pipeline = [
    dict(type='LoadImageFromFile', to_float32=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', to_float32=True),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
data = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(batch_size=4, dataset=dict(**data, pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, dataset=dict(**data, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

# Its learning rate of the backbone is a tenth of the heads'; norms and embeddings have no weight decay.
max_iters = 1500
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100)]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
