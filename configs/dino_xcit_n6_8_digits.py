"""A small XCiT learning from the embedded digits at 48x48 without labels, from random weights, for two CPU cores.

python tools/make_digits.py data/digits
python tools/train.py configs/dino_xcit_n6_8_digits.py
python tools/knn.py configs/knn_xcit_n6_8_digits.py work_dirs/dino_xcit_n6_8_digits/epoch_60.pth --baselines
"""

_base_ = './dino_xcit_s12_8_300e_in1k.py'

outputs = 1024
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=128, depth=6, num_heads=4), drop_path_rate=0.0),
    neck=dict(in_channels=128, hidden_channels=512, bottleneck_channels=128, out_channels=outputs),
    head=dict(out_channels=outputs),
)

# The stroke is what the views of a digit share; its colours and its background say nothing about it.
bicubic = dict(backend='pillow', interpolation='bicubic')
colours = [
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.8, hue=0.5),
    dict(type='RandomGrayscale', prob=0.3, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='Invert', prob=0.5),
    dict(type='Rotate', magnitude_range=(0, 15), magnitude_std='inf', prob=0.8),
]
blur = dict(type='GaussianBlur', magnitude_range=(0.1, 1.0), magnitude_std='inf', prob=0.3)
large_view = [dict(type='RandomResizedCrop', scale=48, crop_ratio_range=(0.5, 1.0), **bicubic), *colours, blur]
small_view = [dict(type='RandomResizedCrop', scale=24, crop_ratio_range=(0.3, 0.6), **bicubic), *colours, blur]
train_pipeline = [
    dict(type='xcit_mm.LoadImageFromFile'),
    dict(type='MultiView', num_views=[2, 4], transforms=[large_view, small_view]),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(data_root='data/digits/imagenet', with_label=False, pipeline=train_pipeline),
)

epochs = 60
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=3, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=3,
        end=epochs,
        T_max=epochs - 3,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingWeightDecay',
        eta_min=0.1,
        by_epoch=True,
        begin=0,
        end=epochs,
        T_max=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=epochs)
custom_hooks = [
    dict(type='xcit_mm.IterationSeedHook'),
    dict(type='xcit_mm.CheckpointFitHook'),
    dict(type='xcit_mm.BadImagesHook'),
    dict(type='xcit_mm.DINOHook', momentum=0.99, warmup_teacher_temp_epochs=10, teacher_temp=0.04),
]
default_hooks = dict(logger=dict(interval=11), checkpoint=dict(interval=10, max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)
