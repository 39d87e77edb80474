"""What the 14 ImageNet configs from scratch share: the recipe of the XCiT paper (section 4.2 and appendix)."""

_base_ = ['./models/xcit_classifier.py', './datasets/imagenet.py', './schedules/adamw_400e.py', './runtime_cls.py']
