"""Semantic FPN with XCiT-N6/8 (half of N12's blocks) on the embedded digits, from random weights, for two CPU cores.

Reaches mIoU 73 over background and digits in about 11 minutes.

    python tools/make_digits.py data/digits
    python tools/train.py configs/sem_fpn_xcit_n6_8_digits.py
"""

_base_ = ['./sem_fpn_xcit_t12_8_80k_ade20k.py', './_base_/datasets/digits_seg.py']

norm_cfg = dict(type='xcit_mm.SyncBN')  # from random weights, the pyramid needs norms
model = dict(
    data_preprocessor=dict(size=_base_.size),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, depth=6, num_heads=4, tokens_norm=False),
        out_indices=(1, 2, 3, 5),
        init_cfg=None,
    ),
    neck=dict(in_channels=[128] * 4, out_channels=64, norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=[64] * 4, channels=64, num_classes=11, dropout_ratio=0.0, loss_decode=_base_.digits_loss
    ),
)

train_dataloader = _base_.digits_train
val_dataloader = _base_.digits_val
test_dataloader = _base_.digits_val

optim_wrapper = dict(optimizer=dict(lr=1.5e-3), clip_grad=dict(max_norm=10.0))
param_scheduler = _base_.digits_schedule
train_cfg = dict(max_iters=_base_.digits_iters, val_interval=_base_.digits_iters)
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=4)
randomness = dict(seed=0)
