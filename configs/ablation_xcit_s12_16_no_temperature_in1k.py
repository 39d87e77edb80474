"""Ablation (table 4): XCiT-S12/16 with no learned temperature in XCA, else as xcit_s12_16_in1k.py.

8 GPUs x 128 images. Published: top-1 81.8 %, 82.0 % with it.

    tools/dist_train.sh configs/ablation_xcit_s12_16_no_temperature_in1k.py 8
"""

_base_ = './xcit_s12_16_in1k.py'

model = dict(backbone=dict(type='xcit_mm.AblatedXCiT', learned_temperature=False))
