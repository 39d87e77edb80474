"""MMDetection's default runtime, with resumed runs equal to uninterrupted ones."""

_base_ = 'mmdet::_base_/default_runtime.py'

custom_hooks = [dict(type='xcit_mm.IterationSeedHook')]
