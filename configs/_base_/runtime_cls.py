"""MMPretrain's default runtime, with an average of the weights beside them, resumed runs equal to uninterrupted
ones, and checks of what is loaded."""

default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='xcit_mm.CheckpointHook', interval=1, max_keep_ckpts=3, save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
    position=dict(type='xcit_mm.DataPositionHook'),
    resume=dict(type='xcit_mm.ResumeHook'),
    non_finite=dict(type='xcit_mm.NonFiniteHook', action='stop'),
    interruption=dict(type='xcit_mm.InterruptionHook'),
)
custom_hooks = [
    dict(type='xcit_mm.IterationSeedHook'),
    dict(type='xcit_mm.CheckpointFitHook'),
    dict(type='xcit_mm.BadImagesHook'),
    # The average of weights and batch-norm statistics is kept in ema_state_dict. What is tested, chosen as the best and
    # in state_dict are the weights themselves, as published; --average takes the average.
    dict(type='xcit_mm.EMAHook', momentum=4e-5, update_buffers=True, priority='ABOVE_NORMAL'),
]
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
load_from = None
resume = False
