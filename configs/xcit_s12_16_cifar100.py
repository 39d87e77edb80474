"""XCiT-S12/16 on CIFAR-100, fine-tuned from the ImageNet-1k weights for 1000 epochs at 224x224.

8 GPUs x 96 images. The release states no settings for its transfer runs; these are DeiT's. No number is published for
this model.

    tools/dist_train.sh configs/xcit_s12_16_cifar100.py 8
"""

_base_ = './_base_/xcit_transfer.py'

model = dict(
    data_preprocessor=dict(num_classes=100),
    backbone=dict(arch='s12', patch_size=16),
    head=dict(num_classes=100, in_channels=384),
)
load_from = 'https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p16_224.pth'

# MMPretrain's data set gives RGB images in memory, the pipeline takes BGR.
as_bgr = [dict(type='NumpyToPIL'), dict(type='PILToNumpy', to_bgr=True)]
data = dict(_delete_=True, type='CIFAR100', data_root='data/cifar100')
train_dataloader = dict(dataset=dict(**data, split='train', pipeline=[*as_bgr, *_base_.train_pipeline[1:]]))
val_dataloader = dict(dataset=dict(**data, split='test', pipeline=[*as_bgr, *_base_.test_pipeline[1:]]))
test_dataloader = val_dataloader
