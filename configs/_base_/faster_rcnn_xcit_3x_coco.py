"""What the Faster R-CNN configs share: the recipe of the paper's Mask R-CNN, for boxes alone."""

_base_ = [
    './models/faster_rcnn_xcit.py',
    './datasets/coco_detection.py',
    './schedules/adamw_3x.py',
    './runtime_det.py',
]
