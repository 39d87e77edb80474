"""XCiT-N12/8 on ImageNet-1k at 224x224, distilled from RegNetY-16GF, 400 epochs: 3.05 M parameters.

8 GPUs x 128 images. Published: top-1 76.3 % (full crop), 76.17 % (--protocol mmpretrain).

    tools/dist_train.sh configs/xcit_n12_8_dist_in1k.py 8
    tools/test.py configs/xcit_n12_8_dist_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_nano_12_p8_224_dist.pth
"""

_base_ = './_base_/xcit_dist_in1k.py'

model = dict(
    backbone=dict(arch='n12', patch_size=8, drop_path_rate=0.0),
    head=dict(in_channels=128),
)
