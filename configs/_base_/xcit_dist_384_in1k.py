"""What the 14 ImageNet configs at 384 pixels share: the distilled 224-pixel model tuned on, with the same teacher."""

_base_ = [
    './models/distilled_classifier.py',
    './datasets/imagenet_384.py',
    './schedules/adamw_30e_finetune.py',
    './runtime_cls.py',
]
