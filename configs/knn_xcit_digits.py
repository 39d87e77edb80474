"""k-NN test of the small XCiT that DINO trains on handwritten digits.

python tools/knn.py configs/knn_xcit_digits.py work_dirs/dino_xcit_digits/epoch_140.pth --baselines
"""

_base_ = './knn_xcit_s12_8_in1k.py'

model = dict(
    data_preprocessor=dict(mean=[64.0] * 3, std=[102.0] * 3),
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, depth=4, num_heads=4, tokens_norm=False)),
)

pipeline = [dict(type='xcit_mm.DrawDigit', size=32, fixed=True), dict(type='PackInputs')]
digits = dict(_delete_=True, type='xcit_mm.PlainDigits', pipeline=pipeline)
train_dataloader = dict(batch_size=100, num_workers=1, dataset=dict(split='train', **digits))
val_dataloader = dict(batch_size=100, num_workers=1, dataset=dict(split='val', **digits))
test_dataloader = val_dataloader
