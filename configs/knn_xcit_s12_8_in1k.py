"""k-NN test of DINO's XCiT-S12/8 on ImageNet-1k. Published: k-NN top-1 77.1 % (k = 20).

    tools/knn.py configs/knn_xcit_s12_8_in1k.py \\
        https://dl.fbaipublicfiles.com/dino/dino_xcit_small_12_p8_pretrain/dino_xcit_small_12_p8_pretrain.pth
"""

_base_ = './_base_/knn_xcit_in1k.py'

model = dict(backbone=dict(arch='s12', patch_size=8))
