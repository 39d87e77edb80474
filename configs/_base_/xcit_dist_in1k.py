"""What the 14 distilled ImageNet configs share: the recipe of the XCiT paper with a teacher."""

_base_ = [
    './models/distilled_classifier.py',
    './datasets/imagenet.py',
    './schedules/adamw_400e.py',
    './runtime_cls.py',
]
