"""UperNet with XCiT-S12/16 on ADE20K, 160k iterations: 54.20 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: mIoU 45.9.

    tools/dist_train.sh configs/upernet_xcit_s12_16_160k_ade20k.py 8
    tools/test.py configs/upernet_xcit_s12_16_160k_ade20k.py \\
        https://dl.fbaipublicfiles.com/xcit/ade/upernet_xcit_small_12_p16.pth
"""

_base_ = './_base_/upernet_xcit_160k_ade20k.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p16_384_dist.pth'
model = dict(
    backbone=dict(
        arch='s12',
        patch_size=16,
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
