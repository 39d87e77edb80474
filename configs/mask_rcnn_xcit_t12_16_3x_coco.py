"""Mask R-CNN with XCiT-T12/16 on COCO, 3x schedule: 26.18 M parameters.

Starts from the distilled 384-pixel ImageNet weights; 8 GPUs x 2 images. Published: box AP 42.7, mask AP 38.5.

    tools/dist_train.sh configs/mask_rcnn_xcit_t12_16_3x_coco.py 8
    tools/test.py configs/mask_rcnn_xcit_t12_16_3x_coco.py \\
        https://dl.fbaipublicfiles.com/xcit/coco/maskrcnn_xcit_tiny_12_p16.pth
"""

_base_ = './_base_/mask_rcnn_xcit_3x_coco.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_tiny_12_p16_384_dist.pth'
model = dict(
    backbone=dict(
        arch='t12',
        patch_size=16,
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[192, 192, 192, 192]),
)
