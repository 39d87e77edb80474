"""XCiT-S12/16 on Oxford 102 Flowers, fine-tuned from the ImageNet-1k weights for 1000 epochs at 224x224.

8 GPUs x 96 images. The release states no settings for its transfer runs; these are DeiT's. No number is published for
this model.

    tools/dist_train.sh configs/xcit_s12_16_flowers.py 8
"""

_base_ = './_base_/xcit_transfer.py'

model = dict(
    data_preprocessor=dict(num_classes=102),
    backbone=dict(arch='s12', patch_size=16),
    head=dict(num_classes=102, in_channels=384),
)
load_from = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p16_224.pth'

data = dict(_delete_=True, type='Flowers102', data_root='data/flowers102')
train_dataloader = dict(dataset=dict(**data, split='trainval', pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(**data, split='test', pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
