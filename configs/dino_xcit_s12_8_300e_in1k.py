"""XCiT-S12/8 on ImageNet-1k without labels, DINO, 300 epochs: 26 M parameters.

16 GPUs x 64 images. Published: linear top-1 79.2 %, k-NN top-1 77.1 %.

    NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST tools/dist_train.sh configs/dino_xcit_s12_8_300e_in1k.py 8
    tools/knn.py configs/knn_xcit_s12_8_in1k.py \\
        https://dl.fbaipublicfiles.com/dino/dino_xcit_small_12_p8_pretrain/dino_xcit_small_12_p8_pretrain.pth
"""

_base_ = './_base_/dino_xcit_in1k.py'

model = dict(
    backbone=dict(arch='s12', patch_size=8),
    neck=dict(in_channels=384),
)
