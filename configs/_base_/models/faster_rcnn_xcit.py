"""Faster R-CNN of MMDetection with an XCiT backbone and its pyramid. To set: arch, patch_size, neck.in_channels."""

_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='xcit_mm.XCiT',
        arch='s12',
        patch_size=16,
        out_type='pyramid',
        bn_norm_cfg=dict(type='xcit_mm.SyncBN'),
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
