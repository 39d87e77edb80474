"""Semantic FPN with XCiT-S24/16 on ADE20K, 80k iterations: 53.64 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: mIoU 44.6.

    tools/dist_train.sh configs/sem_fpn_xcit_s24_16_80k_ade20k.py 8
    tools/test.py configs/sem_fpn_xcit_s24_16_80k_ade20k.py \\
        https://dl.fbaipublicfiles.com/xcit/ade/sem_fpn_xcit_small_24_p16.pth
"""

_base_ = './_base_/sem_fpn_xcit_80k_ade20k.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_24_p16_384_dist.pth'
model = dict(
    backbone=dict(
        arch='s24',
        patch_size=16,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[384] * 4, out_channels=384),
    decode_head=dict(in_channels=[384] * 4),
)
