"""Runs of DINO with MMPretrain: its schedules instead of an average of the weights."""

_base_ = './runtime.py'

default_scope = 'mmpretrain'
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(max_keep_ckpts=3),
    visualization=dict(type='VisualizationHook', enable=False),
)
custom_hooks = [*_base_.custom_hooks, dict(type='xcit_mm.DINOHook')]
visualizer = dict(type='UniversalVisualizer', vis_backends=_base_.vis_backends)
