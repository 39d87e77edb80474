"""Linear evaluation of DINO's XCiT-M24/16 on ImageNet-1k, 100 epochs. Published: linear top-1 78.8 %.

8 GPUs x 128 images; another backbone: --cfg-options model.backbone.init_cfg.checkpoint=FILE

    tools/dist_train.sh configs/linear_xcit_m24_16_in1k.py 8
    tools/test.py configs/linear_xcit_m24_16_in1k.py work_dirs/linear_xcit_m24_16_in1k/linear_head.pth
"""

_base_ = './_base_/linear_xcit_in1k.py'

dino = 'https://dl.fbaipublicfiles.com/dino/dino_xcit_medium_24_p16_pretrain'
model = dict(
    backbone=dict(
        arch='m24',
        patch_size=16,
        init_cfg=dict(type='Pretrained', checkpoint=f'{dino}/dino_xcit_medium_24_p16_pretrain.pth'),
    ),
    head=dict(in_channels=512),
)
