"""Mask R-CNN with XCiT-S24/8 on COCO, 3x schedule: 64.58 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: box AP 48.1, mask AP 43.0.

    tools/dist_train.sh configs/mask_rcnn_xcit_s24_8_3x_coco.py 8
    tools/test.py configs/mask_rcnn_xcit_s24_8_3x_coco.py \\
        https://dl.fbaipublicfiles.com/xcit/coco/maskrcnn_xcit_small_24_p8.pth
"""

_base_ = './_base_/mask_rcnn_xcit_3x_coco.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_24_p8_384_dist.pth'
model = dict(
    backbone=dict(
        arch='s24',
        patch_size=8,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
