"""Ablation (table 4): XCiT-S12/8 with a linear patch projection, else as xcit_s12_8_in1k.py.

8 GPUs x 128 images. Published: top-1 83.1 %, 83.4 % with the convolutional one.

    tools/dist_train.sh configs/ablation_xcit_s12_8_linear_patches_in1k.py 8
"""

_base_ = './xcit_s12_8_in1k.py'

model = dict(backbone=dict(type='xcit_mm.AblatedXCiT', patch_projection='linear'))
