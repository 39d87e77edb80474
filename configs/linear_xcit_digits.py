"""Linear evaluation of the small XCiT that DINO trains on handwritten digits.

tools/train.py configs/linear_xcit_digits.py
tools/test.py configs/linear_xcit_digits.py work_dirs/linear_xcit_digits/linear_head.pth
"""

_base_ = './linear_xcit_s12_8_in1k.py'

model = dict(
    data_preprocessor=dict(mean=[64.0] * 3, std=[102.0] * 3, num_classes=10),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=64, depth=4, num_heads=4, tokens_norm=False),
        init_cfg=dict(checkpoint='work_dirs/dino_xcit_digits/epoch_140.pth'),
    ),
    average_patches=True,
    head=dict(num_classes=10, in_channels=128),
)

draw = dict(type='xcit_mm.DrawDigit', size=32)
fixed = dict(type='xcit_mm.DrawDigit', size=32, fixed=True)
digits = dict(_delete_=True, type='xcit_mm.PlainDigits')
train_dataloader = dict(
    batch_size=64, num_workers=1, dataset=dict(**digits, split='train', pipeline=[draw, dict(type='PackInputs')])
)
val_dataloader = dict(
    batch_size=100, num_workers=1, dataset=dict(**digits, split='val', pipeline=[fixed, dict(type='PackInputs')])
)
test_dataloader = val_dataloader

epochs = 30
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=epochs, eta_min=0.0, by_epoch=True, begin=0, end=epochs)]
train_cfg = dict(max_epochs=epochs, val_interval=10)
default_hooks = dict(logger=dict(interval=22), checkpoint=dict(interval=10, max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)
