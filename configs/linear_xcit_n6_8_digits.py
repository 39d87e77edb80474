"""Linear evaluation on the embedded digits, of the small XCiT that DINO trains on them.

tools/train.py configs/linear_xcit_n6_8_digits.py
tools/test.py configs/linear_xcit_n6_8_digits.py work_dirs/linear_xcit_n6_8_digits/linear_head.pth
"""

_base_ = './linear_xcit_s12_8_in1k.py'

classes = ('0_zero', '1_one', '2_two', '3_three', '4_four', '5_five', '6_six', '7_seven', '8_eight', '9_nine')
data = dict(data_root='data/digits/imagenet', metainfo=dict(classes=classes))
model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, depth=6, num_heads=4),
        init_cfg=dict(checkpoint='work_dirs/dino_xcit_n6_8_digits/epoch_60.pth'),
    ),
    average_patches=True,
    head=dict(num_classes=10, in_channels=256),
)

resize = dict(type='Resize', scale=48, backend='pillow', interpolation='bicubic')
pipeline = [dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]
train_dataloader = dict(batch_size=64, num_workers=1, dataset=dict(**data, pipeline=pipeline))
val_dataloader = dict(batch_size=100, num_workers=1, dataset=dict(**data, pipeline=pipeline))
test_dataloader = val_dataloader

epochs = 30
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=epochs, eta_min=0.0, by_epoch=True, begin=0, end=epochs)]
train_cfg = dict(max_epochs=epochs, val_interval=10)
default_hooks = dict(logger=dict(interval=22), checkpoint=dict(interval=10, max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)
