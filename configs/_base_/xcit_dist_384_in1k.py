"""What the 14 ImageNet configs at 384 pixels share: the distilled 224-pixel model fine-tuned, with the same teacher.

The release does not state the settings of this fine-tuning. Those here are DeiT's, on whose code the release builds.
"""

_base_ = [
    './models/distilled_classifier.py',
    './datasets/imagenet_384.py',
    './schedules/adamw_30e_finetune.py',
    './runtime_cls.py',
]
