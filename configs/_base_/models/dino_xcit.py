"""DINO with an XCiT backbone. To set: arch, patch_size, neck.in_channels."""

model = dict(
    type='xcit_mm.DINO',
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='xcit_mm.XCiT',
        arch='s12',
        patch_size=16,
        out_type='cls_token',
        drop_path_rate=0.1,
        bn_norm_cfg=dict(type='xcit_mm.SyncBN'),
    ),
    neck=dict(type='xcit_mm.DINONeck', in_channels=384, out_channels=65536, norm_last_layer=False),
    head=dict(type='xcit_mm.DINOHead', out_channels=65536),
)
