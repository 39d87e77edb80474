"""400 epochs of AdamW at 1e-3 for 1024 images, warmed up for 5, down to 1e-5 by cosine; in mixed precision.

The learning rate is constant within an epoch and one epoch late, as in the release.
"""

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    # None on one-dimensional parameters (norms, biases, LayerScale) and the class token.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type='xcit_mm.EpochCosineLR', warmup_epochs=5, warmup_lr=1e-6, eta_min=1e-5, T_max=400, begin=0, end=400)
]
train_cfg = dict(by_epoch=True, max_epochs=400, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=1024)
