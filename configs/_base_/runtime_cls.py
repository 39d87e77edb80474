"""MMPretrain's default runtime, with averaged weights, resumed runs equal to uninterrupted ones, and checks of what
is loaded."""

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
    # Of weights and batch-norm statistics. A checkpoint's state_dict, and every test, is of the average.
    dict(type='EMAHook', momentum=4e-5, update_buffers=True, priority='ABOVE_NORMAL'),
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
