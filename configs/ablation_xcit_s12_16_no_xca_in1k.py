"""Ablation (table 4): XCiT-S12/16 with no cross-covariance attention, else as xcit_s12_16_in1k.py.

8 GPUs x 128 images. Published: top-1 75.9 %, 82.0 % with it.

    tools/dist_train.sh configs/ablation_xcit_s12_16_no_xca_in1k.py 8
"""

_base_ = './xcit_s12_16_in1k.py'

model = dict(backbone=dict(type='xcit_mm.AblatedXCiT', xca=False))
