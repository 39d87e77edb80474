"""XCiT-L12/16 on ImageNet-1k at 224x224, robust to l-inf perturbations of 4/255 (Debenedetti et al., 2022).

To test. Published by RobustBench: clean top-1 73.76 %, under AutoAttack 47.60 %.

    tools/test.py configs/debenedetti2022light_xcit_l12_imagenet_linf.py \\
        https://github.com/RobustBench/robustbench/releases/download/v1.1/debenedetti2022light-xcit-l-imagenet-linf.pth.tar
"""

_base_ = './_base_/robust_xcit_in1k.py'

model = dict(backbone=dict(arch='l12'), head=dict(in_channels=768))
