"""UperNet with XCiT-N6/8 (half of N12's blocks) on the embedded digits, from random weights, for two CPU cores.

The data of the small Semantic FPN. Reaches mIoU 77 over background and digits in 10 minutes.

    python tools/make_digits.py data/digits
    python tools/train.py configs/upernet_xcit_n6_8_digits.py
"""

_base_ = ['./upernet_xcit_t12_8_160k_ade20k.py', './_base_/datasets/digits_seg.py']

# From random weights, a head of so many layers calls everything background for most of a short training, unless each
# layer passes gradients for what it has not found yet (GELU) and the classifier starts with gradients worth the name
# (std 0.1; published 0.01).
act_cfg = dict(type='GELU')
init_cfg = dict(type='Normal', std=0.1, override=dict(name='conv_seg'))
norm_cfg = dict(type='xcit_mm.SyncBN')
head = dict(
    channels=64,
    num_classes=11,
    dropout_ratio=0.0,
    norm_cfg=norm_cfg,
    act_cfg=act_cfg,
    init_cfg=init_cfg,
    loss_decode=_base_.digits_loss,
)
model = dict(
    data_preprocessor=dict(size=_base_.size),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, depth=6, num_heads=4, tokens_norm=False),
        out_indices=(1, 2, 3, 5),
        init_cfg=None,
    ),
    decode_head=dict(in_channels=[128] * 4, **head),
    auxiliary_head=dict(in_channels=128, in_index=1, **head),
)

train_dataloader = _base_.digits_train
val_dataloader = _base_.digits_val
test_dataloader = _base_.digits_val

optim_wrapper = dict(
    optimizer=dict(lr=1.5e-3),
    clip_grad=dict(max_norm=10.0),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=2.0))),
)
max_iters = 2900  # its head takes more of an iteration than that of Semantic FPN
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, T_max=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=4)
randomness = dict(seed=0)
