"""80k iterations of AdamW at 6e-5, linearly down to 0."""

max_iters = 80000
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    # None where the name contains 'norm': the layer norms. Batch norms are decayed, as published.
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
)
# As published, the linear decay runs from the start and the warm-up multiplies it.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=max_iters),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
