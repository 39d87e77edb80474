"""XCiT-T24/8 on ImageNet-1k at 384x384, the distilled 224-pixel model fine-tuned for 30 epochs: 12.11 M parameters.

16 GPUs x 32 images. Published: top-1 83.7 % (full crop), 83.77 % (--protocol mmpretrain).
The release does not state how it tuned this model; the settings are DeiT's.

    NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST tools/dist_train.sh configs/xcit_t24_8_dist_384_in1k.py 8
    tools/test.py configs/xcit_t24_8_dist_384_in1k.py \\
        https://dl.fbaipublicfiles.com/xcit/xcit_tiny_24_p8_384_dist.pth
"""

_base_ = './_base_/xcit_dist_384_in1k.py'

model = dict(
    backbone=dict(arch='t24', patch_size=8, drop_path_rate=0.05),
    head=dict(in_channels=192),
)
load_from = 'https://dl.fbaipublicfiles.com/xcit/xcit_tiny_24_p8_224_dist.pth'
