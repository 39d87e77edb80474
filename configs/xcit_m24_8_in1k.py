"""XCiT-M24/8 on ImageNet-1k at 224x224, from scratch, 400 epochs: 84.32 M parameters.

8 GPUs x 128 images. Published: top-1 83.7 % (full crop), 83.61 % (--protocol mmpretrain).

    tools/dist_train.sh configs/xcit_m24_8_in1k.py 8
    tools/test.py configs/xcit_m24_8_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_medium_24_p8_224.pth
"""

_base_ = './_base_/xcit_in1k.py'

model = dict(
    backbone=dict(arch='m24', patch_size=8, drop_path_rate=0.15),
    head=dict(in_channels=512),
)
