"""XCiT-L12/4 on CIFAR-10 at 32x32, robust to l-inf perturbations of 8/255 (Debenedetti et al., 2022).

To test. Published by RobustBench: clean top-1 91.73 %, under AutoAttack 57.58 %.

    tools/test.py configs/debenedetti2022light_xcit_l12_cifar10_linf.py \\
        https://github.com/RobustBench/robustbench/releases/download/v1.1/debenedetti2022light-xcit-l-cifar10-linf.pth.tar
"""

_base_ = './_base_/robust_xcit_cifar.py'

model = dict(backbone=dict(arch='l12'), head=dict(in_channels=768))
