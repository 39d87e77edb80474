"""XCiT-M24/16 on ImageNet-1k without labels, DINO, 300 epochs: 84 M parameters.

16 GPUs x 64 images. Published: linear top-1 78.8 %, k-NN top-1 76.4 %.

    NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST tools/dist_train.sh configs/dino_xcit_m24_16_300e_in1k.py 8
    tools/knn.py configs/knn_xcit_m24_16_in1k.py \\
        https://dl.fbaipublicfiles.com/dino/dino_xcit_medium_24_p16_pretrain/dino_xcit_medium_24_p16_pretrain.pth
"""

_base_ = './_base_/dino_xcit_in1k.py'

model = dict(
    backbone=dict(arch='m24', patch_size=16),
    neck=dict(in_channels=512),
)
