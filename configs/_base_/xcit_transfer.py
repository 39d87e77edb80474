"""What the transfer configs for CIFAR, Flowers and Cars share: DeiT's fine-tuning of an ImageNet-1k model at 224x224.

As on ImageNet, without random erasing and stochastic depth. To set: arch, patch_size, head.in_channels, load_from, and
the data set with its number of classes.
"""

_base_ = [
    './models/xcit_classifier.py',
    './datasets/imagenet.py',
    './schedules/sgd_1000e_transfer.py',
    './runtime_cls.py',
]

train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'xcit_mm.RandomErasing']
# 8 GPUs x 96 images.
train_dataloader = dict(batch_size=96)
