"""Linear evaluation of DINO's XCiT-M24/8 on ImageNet-1k at 384x384, 100 epochs. Published: linear top-1 80.9 %.

8 GPUs x 128 images. The settings of the published run are not at hand: they are those at 224 with larger images, tested
with the same crop ratio of 0.875.

    tools/dist_train.sh configs/linear_xcit_m24_8_384_in1k.py 8
    tools/test.py configs/linear_xcit_m24_8_384_in1k.py work_dirs/linear_xcit_m24_8_384_in1k/linear_head.pth
"""

_base_ = './linear_xcit_m24_8_in1k.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 384
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 438
test_pipeline[2].crop_size = 384
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
