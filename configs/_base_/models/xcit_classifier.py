"""ImageClassifier of MMPretrain with an XCiT backbone. To set: arch, patch_size, drop_path_rate, head.in_channels."""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='xcit_mm.XCiT',
        arch='s12',
        patch_size=16,
        out_type='cls_token',
        bn_norm_cfg=dict(type='xcit_mm.SyncBN'),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # One of the two for each batch, half and half; the partner of an image is its mirror image in the batch's order.
    train_cfg=dict(
        augments=[
            dict(type='xcit_mm.models.mixing.Mixup', alpha=0.8),
            dict(type='xcit_mm.models.mixing.CutMix', alpha=1.0),
        ]
    ),
)
