"""What the four k-NN configs share: DINO's test. The backbone's class token is compared, and nothing is trained."""

_base_ = ['./models/xcit_classifier.py', './datasets/imagenet_features.py', './runtime_cls.py']

model = dict(head=None, train_cfg=None)
knn = dict(ks=(10, 20, 100, 200), temperature=0.07)
test_cfg = dict()
