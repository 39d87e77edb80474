"""Semantic FPN with XCiT-S12/8 on ADE20K, 80k iterations: 31.00 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: mIoU 44.2.

    tools/dist_train.sh configs/sem_fpn_xcit_s12_8_80k_ade20k.py 8
    tools/test.py configs/sem_fpn_xcit_s12_8_80k_ade20k.py \\
        https://dl.fbaipublicfiles.com/xcit/ade/sem_fpn_xcit_small_12_p8.pth
"""

_base_ = './_base_/sem_fpn_xcit_80k_ade20k.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p8_384_dist.pth'
model = dict(
    backbone=dict(
        arch='s12',
        patch_size=8,
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[384] * 4, out_channels=384),
    decode_head=dict(in_channels=[384] * 4),
)
