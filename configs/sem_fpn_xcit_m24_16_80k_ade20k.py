"""Semantic FPN with XCiT-M24/16 on ADE20K, 80k iterations: 94.04 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: mIoU 45.9.

    tools/dist_train.sh configs/sem_fpn_xcit_m24_16_80k_ade20k.py 8
    tools/test.py configs/sem_fpn_xcit_m24_16_80k_ade20k.py \\
        https://dl.fbaipublicfiles.com/xcit/ade/sem_fpn_xcit_medium_24_p16.pth
"""

_base_ = './_base_/sem_fpn_xcit_80k_ade20k.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_medium_24_p16_384_dist.pth'
model = dict(
    backbone=dict(
        arch='m24',
        patch_size=16,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[512] * 4, out_channels=512),
    decode_head=dict(in_channels=[512] * 4),
)
