"""Semantic FPN with XCiT-T12/16 on ADE20K, 80k iterations: 8.90 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: mIoU 38.1.

    tools/dist_train.sh configs/sem_fpn_xcit_t12_16_80k_ade20k.py 8
    tools/test.py configs/sem_fpn_xcit_t12_16_80k_ade20k.py \\
        https://dl.fbaipublicfiles.com/xcit/ade/sem_fpn_xcit_tiny_12_p16.pth
"""

_base_ = './_base_/sem_fpn_xcit_80k_ade20k.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_tiny_12_p16_384_dist.pth'
model = dict(
    backbone=dict(
        arch='t12',
        patch_size=16,
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[192] * 4, out_channels=192),
    decode_head=dict(in_channels=[192] * 4),
)
