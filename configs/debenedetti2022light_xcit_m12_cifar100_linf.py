"""XCiT-M12/4 on CIFAR-100 at 32x32, robust to l-inf perturbations of 8/255 (Debenedetti et al., 2022).

To test. Published by RobustBench: clean top-1 69.21 %, under AutoAttack 34.21 %.

    tools/test.py configs/debenedetti2022light_xcit_m12_cifar100_linf.py \\
        https://github.com/RobustBench/robustbench/releases/download/v1.1/debenedetti2022light-xcit-m-cifar100-linf.pth.tar
"""

_base_ = './_base_/robust_xcit_cifar.py'

# The mean and deviation of CIFAR-100, times 255.
model = dict(
    data_preprocessor=dict(num_classes=100, mean=[129.3105, 124.1085, 112.404], std=[68.2125, 65.4075, 70.4055]),
    backbone=dict(arch='m12'),
    head=dict(num_classes=100, in_channels=512),
)
test_dataloader = dict(dataset=dict(type='xcit_mm.CIFAR100', data_root='data/cifar100'))
