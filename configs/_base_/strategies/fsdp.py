"""Weights, gradients and optimizer state divided between all processes: PyTorch's FSDP through MMEngine.

A config inherits it beside its model: _base_ = ['./mask_rcnn_xcit_m24_8_3x_coco.py', './_base_/strategies/fsdp.py'].
"""

runner_type = 'FlexibleRunner'
strategy = dict(
    type='xcit_mm.FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy=dict(type='xcit_mm.engine.sharding.wrap_blocks'),
        use_orig_params=True,
    ),
    state_dict_cfg='full',  # one file, as without FSDP; every tool reads it
)
