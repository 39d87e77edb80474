"""What every run has: checkpoints that outlive its end, resumed runs equal to uninterrupted ones, checks of what is
loaded. The runtimes of the three libraries add what differs between them."""

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='xcit_mm.CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
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
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
