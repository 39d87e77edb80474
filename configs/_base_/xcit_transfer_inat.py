"""What the transfer configs for iNaturalist share: DeiT's fine-tuning of an ImageNet-1k model at 224x224.

As on ImageNet, with random erasing and stochastic depth of 0.1. To set: arch, patch_size, head.in_channels, load_from,
and the year with its number of classes.
"""

_base_ = [
    './models/xcit_classifier.py',
    './datasets/imagenet.py',
    './schedules/adamw_360e_transfer.py',
    './runtime_cls.py',
]

model = dict(backbone=dict(drop_path_rate=0.1))
train_pipeline = _base_.train_pipeline
train_pipeline[4].erase_prob = 0.1
# 8 GPUs x 96 images.
train_dataloader = dict(batch_size=96, dataset=dict(pipeline=train_pipeline))
