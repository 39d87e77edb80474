"""Optimizer state and gradients divided between all processes: ZeRO stage 2 of DeepSpeed through MMEngine.

A config inherits it beside its model and takes DeepSpeed's wrapper for its optimizer:
_base_ = ['./mask_rcnn_xcit_m24_8_3x_coco.py', './_base_/strategies/deepspeed.py']
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
"""

runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
    bf16=dict(enabled=False),
)
