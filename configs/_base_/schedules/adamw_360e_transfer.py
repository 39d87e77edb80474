"""360 epochs of AdamW at 7.5e-5 for 768 images, warmed up for 5, down to 1e-5 by cosine; in mixed precision.

The settings that DeiT's authors gave for iNaturalist (github.com/facebookresearch/deit/issues/105); the XCiT release
states none for its transfer runs.
"""

_base_ = './adamw_400e.py'

optim_wrapper = dict(optimizer=dict(lr=7.5e-5))
param_scheduler = [
    dict(type='xcit_mm.EpochCosineLR', warmup_epochs=5, warmup_lr=1e-6, eta_min=1e-5, T_max=360, begin=0, end=360)
]
train_cfg = dict(max_epochs=360)
auto_scale_lr = dict(base_batch_size=768)
