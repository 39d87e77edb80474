"""Mask R-CNN with XCiT-S24/16 on COCO, 3x schedule: 65.80 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: box AP 46.5, mask AP 41.8.

    tools/dist_train.sh configs/mask_rcnn_xcit_s24_16_3x_coco.py 8
    tools/test.py configs/mask_rcnn_xcit_s24_16_3x_coco.py \\
        https://dl.fbaipublicfiles.com/xcit/coco/maskrcnn_xcit_small_24_p16.pth
"""

_base_ = './_base_/mask_rcnn_xcit_3x_coco.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_24_p16_384_dist.pth'
model = dict(
    backbone=dict(
        arch='s24',
        patch_size=16,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
