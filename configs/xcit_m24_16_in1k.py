"""XCiT-M24/16 on ImageNet-1k at 224x224, from scratch, 400 epochs: 84.40 M parameters.

8 GPUs x 128 images. Published: top-1 82.7 % (full crop), 82.56 % (--protocol mmpretrain).

    tools/dist_train.sh configs/xcit_m24_16_in1k.py 8
    tools/test.py configs/xcit_m24_16_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_medium_24_p16_224.pth
"""

_base_ = './_base_/xcit_in1k.py'

model = dict(
    backbone=dict(arch='m24', patch_size=16, drop_path_rate=0.15),
    head=dict(in_channels=512),
)
