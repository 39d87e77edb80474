"""UperNet with XCiT-T12/8 on ADE20K, 160k iterations: 33.87 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: mIoU 43.5.

    tools/dist_train.sh configs/upernet_xcit_t12_8_160k_ade20k.py 8
    tools/test.py configs/upernet_xcit_t12_8_160k_ade20k.py \\
        https://dl.fbaipublicfiles.com/xcit/ade/upernet_xcit_tiny_12_p8.pth
"""

_base_ = './_base_/upernet_xcit_160k_ade20k.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_tiny_12_p8_384_dist.pth'
model = dict(
    backbone=dict(
        arch='t12',
        patch_size=8,
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[192] * 4),
    auxiliary_head=dict(in_channels=192),
)
