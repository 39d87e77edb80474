"""Mask R-CNN with XCiT-M24/16 on COCO, 3x schedule: 101.15 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: box AP 46.7, mask AP 42.0.

    tools/dist_train.sh configs/mask_rcnn_xcit_m24_16_3x_coco.py 8
    tools/test.py configs/mask_rcnn_xcit_m24_16_3x_coco.py \\
        https://dl.fbaipublicfiles.com/xcit/coco/maskrcnn_xcit_medium_24_p16.pth
"""

_base_ = './_base_/mask_rcnn_xcit_3x_coco.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_medium_24_p16_384_dist.pth'
model = dict(
    backbone=dict(
        arch='m24',
        patch_size=16,
        drop_path_rate=0.15,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[512, 512, 512, 512]),
)
