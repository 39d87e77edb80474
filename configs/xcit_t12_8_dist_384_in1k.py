"""XCiT-T12/8 on ImageNet-1k at 384x384, the distilled 224-pixel model fine-tuned for 30 epochs: 6.71 M parameters.

16 GPUs x 32 images. Published: top-1 82.4 % (full crop), 82.46 % (--protocol mmpretrain).
The release does not state how it tuned this model; the settings are DeiT's.

    NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST tools/dist_train.sh configs/xcit_t12_8_dist_384_in1k.py 8
    tools/test.py configs/xcit_t12_8_dist_384_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_tiny_12_p8_384_dist.pth
"""

_base_ = './_base_/xcit_dist_384_in1k.py'

model = dict(
    backbone=dict(arch='t12', patch_size=8, drop_path_rate=0.0),
    head=dict(in_channels=192),
)
load_from = 'https://dl.fbaipublicfiles.com/xcit/xcit_tiny_12_p8_224_dist.pth'
