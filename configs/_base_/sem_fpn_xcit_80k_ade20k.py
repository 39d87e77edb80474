"""What the eight Semantic FPN configs share: the recipe of the XCiT paper (section 4.4 and appendix)."""

_base_ = ['./models/sem_fpn_xcit.py', './datasets/ade20k.py', './schedules/adamw_80k.py', './runtime_seg.py']
