"""XCiT-L24/8 on ImageNet-1k at 224x224, distilled from RegNetY-16GF, 400 epochs: 188.93 M parameters.

8 GPUs x 128 images. Published: top-1 85.4 % (full crop), 85.14 % (--protocol mmpretrain).

    tools/dist_train.sh configs/xcit_l24_8_dist_in1k.py 8
    tools/test.py configs/xcit_l24_8_dist_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_large_24_p8_224_dist.pth
"""

_base_ = './_base_/xcit_dist_in1k.py'

model = dict(
    backbone=dict(arch='l24', patch_size=8, drop_path_rate=0.25),
    head=dict(in_channels=768),
)
