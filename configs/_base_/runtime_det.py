"""MMDetection's default runtime, with resumed runs equal to uninterrupted ones, and checks of what is loaded."""

_base_ = 'mmdet::_base_/default_runtime.py'

custom_hooks = [
    dict(type='xcit_mm.IterationSeedHook'),
    dict(type='xcit_mm.CheckpointFitHook'),
    dict(type='xcit_mm.BadImagesHook'),
]
