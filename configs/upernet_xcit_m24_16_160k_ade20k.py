"""UperNet with XCiT-M24/16 on ADE20K, 160k iterations: 112.18 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: mIoU 47.6.

    tools/dist_train.sh configs/upernet_xcit_m24_16_160k_ade20k.py 8
    tools/test.py configs/upernet_xcit_m24_16_160k_ade20k.py \\
        https://dl.fbaipublicfiles.com/xcit/ade/upernet_xcit_medium_24_p16.pth
"""

_base_ = './_base_/upernet_xcit_160k_ade20k.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_medium_24_p16_384_dist.pth'
model = dict(
    backbone=dict(
        arch='m24',
        patch_size=16,
        drop_path_rate=0.15,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[512] * 4),
    auxiliary_head=dict(in_channels=512),
)
