"""Runs of MMPretrain: with an average of the weights beside them."""

_base_ = './runtime.py'

default_scope = 'mmpretrain'
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(max_keep_ckpts=3, save_best='auto'),
    visualization=dict(type='VisualizationHook', enable=False),
)
custom_hooks = [
    *_base_.custom_hooks,
    # The average of weights and batch-norm statistics is kept in ema_state_dict. What is tested, chosen as the best and
    # in state_dict are the weights themselves, as published; --average takes the average.
    dict(type='xcit_mm.EMAHook', momentum=4e-5, update_buffers=True, priority='ABOVE_NORMAL'),
]
visualizer = dict(type='UniversalVisualizer', vis_backends=_base_.vis_backends)
