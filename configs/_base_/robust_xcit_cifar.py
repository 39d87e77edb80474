"""What the six adversarially trained CIFAR models share (arXiv:2209.07399): patches of 4 on images of 32x32."""

_base_ = ['./models/xcit_classifier.py', './datasets/cifar.py', './runtime_cls.py']

# The mean and deviation of CIFAR-10, times 255.
model = dict(
    data_preprocessor=dict(num_classes=10, mean=[125.307, 122.961, 113.8575], std=[63.0105, 62.0925, 66.708]),
    backbone=dict(patch_size=4),
    head=dict(num_classes=10),
    train_cfg=None,
)
# To test alone: their training is adversarial.
test_cfg = dict()
