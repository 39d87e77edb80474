"""XCiT-T12/8 on ImageNet-1k at 224x224, from scratch, 400 epochs: 6.71 M parameters.

8 GPUs x 128 images. Published: top-1 79.7 % (full crop), 79.75 % (--protocol mmpretrain).

    tools/dist_train.sh configs/xcit_t12_8_in1k.py 8
    tools/test.py configs/xcit_t12_8_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_tiny_12_p8_224.pth
"""

_base_ = './_base_/xcit_in1k.py'

model = dict(
    backbone=dict(arch='t12', patch_size=8, drop_path_rate=0.0),
    head=dict(in_channels=192),
)
