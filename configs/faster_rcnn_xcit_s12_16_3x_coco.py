"""Faster R-CNN with XCiT-S12/16 on COCO, 3x schedule: 41.74 M parameters. For data of boxes without masks.

The recipe of the Mask R-CNN of this size. No result is published, and there are no trained weights; of the published
Mask R-CNN, all but the mask head fits (load_from).

    tools/dist_train.sh configs/faster_rcnn_xcit_s12_16_3x_coco.py 8
    tools/train.py configs/faster_rcnn_xcit_s12_16_3x_coco.py --cfg-options \\
        load_from=https://dl.fbaipublicfiles.com/xcit/coco/maskrcnn_xcit_small_12_p16.pth
"""

_base_ = './_base_/faster_rcnn_xcit_3x_coco.py'

checkpoint = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p16_384_dist.pth'
model = dict(
    backbone=dict(
        arch='s12',
        patch_size=16,
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
