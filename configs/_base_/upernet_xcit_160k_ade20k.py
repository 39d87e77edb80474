"""What the eight UperNet configs share: the recipe of the XCiT paper (section 4.4 and appendix)."""

_base_ = ['./models/upernet_xcit.py', './datasets/ade20k.py', './schedules/adamw_160k.py', './runtime_seg.py']

default_hooks = dict(checkpoint=dict(interval=16000))
