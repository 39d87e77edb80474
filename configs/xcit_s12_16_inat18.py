"""XCiT-S12/16 on iNaturalist 2018, fine-tuned from the ImageNet-1k weights for 360 epochs at 224x224.

8 GPUs x 96 images. The release states no settings for its transfer runs; these are DeiT's. No number is published for
this model.

    tools/dist_train.sh configs/xcit_s12_16_inat18.py 8
"""

_base_ = './_base_/xcit_transfer_inat.py'

model = dict(
    data_preprocessor=dict(num_classes=8142),
    backbone=dict(arch='s12', patch_size=16),
    head=dict(num_classes=8142, in_channels=384),
)
load_from = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p16_224.pth'

data = dict(_delete_=True, type='xcit_mm.INaturalist', data_root='data/inat2018')
train_dataloader = dict(dataset=dict(**data, ann_file='train2018.json', pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(**data, ann_file='val2018.json', pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
