"""ImageNet-1k at 384x384, else as at 224x224."""

_base_ = './imagenet.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 384
# The full crop, as the paper tests; --protocol mmpretrain resizes to 384x384.
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 384
test_pipeline[2].crop_size = 384

# 16 GPUs x 32 images: an image takes three times the memory of one at 224.
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
