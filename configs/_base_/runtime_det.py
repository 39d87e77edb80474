"""MMDetection's default runtime, with resumed runs equal to uninterrupted ones, and checks of what is loaded."""

_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(type='xcit_mm.CheckpointHook'),
    position=dict(type='xcit_mm.DataPositionHook'),
    resume=dict(type='xcit_mm.ResumeHook'),
    non_finite=dict(type='xcit_mm.NonFiniteHook', action='stop'),
    interruption=dict(type='xcit_mm.InterruptionHook'),
)
custom_hooks = [
    dict(type='xcit_mm.IterationSeedHook'),
    dict(type='xcit_mm.CheckpointFitHook'),
    dict(type='xcit_mm.BadImagesHook'),
]
