"""XCiT-T12/16 on ImageNet-1k at 224x224, distilled from RegNetY-16GF, 400 epochs: 6.72 M parameters.

8 GPUs x 128 images. Published: top-1 78.6 % (full crop), 78.70 % (--protocol mmpretrain).

    tools/dist_train.sh configs/xcit_t12_16_dist_in1k.py 8
    tools/test.py configs/xcit_t12_16_dist_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_tiny_12_p16_224_dist.pth
"""

_base_ = './_base_/xcit_dist_in1k.py'

model = dict(
    backbone=dict(arch='t12', patch_size=16, drop_path_rate=0.0),
    head=dict(in_channels=192),
)
