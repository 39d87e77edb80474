"""k-NN test on the embedded digits, of the small XCiT that DINO trains on them.

tools/knn.py configs/knn_xcit_n6_8_digits.py work_dirs/dino_xcit_n6_8_digits/epoch_60.pth --baselines
"""

_base_ = './knn_xcit_s12_8_in1k.py'

model = dict(backbone=dict(arch=dict(_delete_=True, embed_dims=128, depth=6, num_heads=4)))

classes = ('0_zero', '1_one', '2_two', '3_three', '4_four', '5_five', '6_six', '7_seven', '8_eight', '9_nine')
data = dict(data_root='data/digits/imagenet', metainfo=dict(classes=classes))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=48, backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=100, num_workers=1, dataset=dict(**data, pipeline=pipeline))
val_dataloader = dict(batch_size=100, num_workers=1, dataset=dict(**data, pipeline=pipeline))
test_dataloader = val_dataloader
