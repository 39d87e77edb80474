"""MMPretrain's default runtime, with DINO's schedules instead of an average of the weights."""

_base_ = './runtime_cls.py'

default_hooks = dict(checkpoint=dict(save_best=None))
custom_hooks = [
    dict(type='xcit_mm.IterationSeedHook'),
    dict(type='xcit_mm.CheckpointFitHook'),
    dict(type='xcit_mm.BadImagesHook'),
    dict(type='xcit_mm.DINOHook'),
]
