"""XCiT-S12/16 on ImageNet-1k at 224x224, from scratch, 400 epochs: 26.25 M parameters.

8 GPUs x 128 images. Published: top-1 82.0 % (full crop), 81.87 % (--protocol mmpretrain).

    tools/dist_train.sh configs/xcit_s12_16_in1k.py 8
    tools/test.py configs/xcit_s12_16_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p16_224.pth
"""

_base_ = './_base_/xcit_in1k.py'

model = dict(
    backbone=dict(arch='s12', patch_size=16, drop_path_rate=0.05),
    head=dict(in_channels=384),
)
