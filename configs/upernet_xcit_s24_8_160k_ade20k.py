"""UperNet with XCiT-S24/8 on ADE20K, 160k iterations: 74.40 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: mIoU 48.1.

    tools/dist_train.sh configs/upernet_xcit_s24_8_160k_ade20k.py 8
    tools/test.py configs/upernet_xcit_s24_8_160k_ade20k.py \\
        https://dl.fbaipublicfiles.com/xcit/ade/upernet_xcit_small_24_p8.pth
"""

_base_ = './_base_/upernet_xcit_160k_ade20k.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_24_p8_384_dist.pth'
model = dict(
    backbone=dict(
        arch='s24',
        patch_size=8,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
