"""30 epochs of AdamW at a constant 5e-6 for 512 images, almost without weight decay, for a larger resolution.

The XCiT release does not say how its 384-pixel models were tuned. These are the settings of DeiT, whose training code
and recipe it builds on: 5e-6 x batch / 512, weight decay 1e-8.
"""

_base_ = './adamw_400e.py'

optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=True, begin=0, end=30)]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
