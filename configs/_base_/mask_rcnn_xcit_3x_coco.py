"""What the eight Mask R-CNN 3x configs share: the recipe of the XCiT paper (section 4.3 and appendix)."""

_base_ = [
    './models/mask_rcnn_xcit.py',
    './datasets/coco_instance.py',
    './schedules/adamw_3x.py',
    './runtime_det.py',
]
