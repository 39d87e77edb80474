"""XCiT-L24/8 on ImageNet-1k at 224x224, from scratch, 400 epochs: 188.93 M parameters.

8 GPUs x 128 images. Published: top-1 84.4 % (full crop), 84.23 % (--protocol mmpretrain).

    tools/dist_train.sh configs/xcit_l24_8_in1k.py 8
    tools/test.py configs/xcit_l24_8_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_large_24_p8_224.pth
"""

_base_ = './_base_/xcit_in1k.py'

model = dict(
    backbone=dict(arch='l24', patch_size=8, drop_path_rate=0.25),
    head=dict(in_channels=768),
)
