"""Mask R-CNN with XCiT-M24/8 on COCO, 3x schedule: 98.98 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: box AP 48.5, mask AP 43.7.

    tools/dist_train.sh configs/mask_rcnn_xcit_m24_8_3x_coco.py 8
    tools/test.py configs/mask_rcnn_xcit_m24_8_3x_coco.py \\
        https://dl.fbaipublicfiles.com/xcit/coco/maskrcnn_xcit_medium_24_p8.pth
"""

_base_ = './_base_/mask_rcnn_xcit_3x_coco.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_medium_24_p8_384_dist.pth'
model = dict(
    backbone=dict(
        arch='m24',
        patch_size=8,
        drop_path_rate=0.15,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[512, 512, 512, 512]),
)
