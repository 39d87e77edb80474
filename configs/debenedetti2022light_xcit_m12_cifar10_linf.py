"""XCiT-M12/4 on CIFAR-10 at 32x32, robust to l-inf perturbations of 8/255 (Debenedetti et al., 2022).

To test. Published by RobustBench: clean top-1 91.30 %, under AutoAttack 57.27 %.

    tools/test.py configs/debenedetti2022light_xcit_m12_cifar10_linf.py \\
        https://github.com/RobustBench/robustbench/releases/download/v1.1/debenedetti2022light-xcit-m-cifar10-linf.pth.tar
"""

_base_ = './_base_/robust_xcit_cifar.py'

model = dict(backbone=dict(arch='m12'), head=dict(in_channels=512))
