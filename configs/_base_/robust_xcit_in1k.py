"""What the three adversarially trained ImageNet models share (arXiv:2209.07399): images in [0, 1], the full crop."""

_base_ = ['./models/xcit_classifier.py', './datasets/imagenet.py', './runtime_cls.py']

# No normalisation, unlike all other XCiT models.
model = dict(data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]), train_cfg=None)
test_cfg = dict()
# To test alone: their training is adversarial.
train_dataloader = None
val_dataloader = None
val_evaluator = None
