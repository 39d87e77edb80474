"""The classifier with a teacher: half of the loss is the cross-entropy with the classes that RegNetY-16GF predicts.

The teacher (82.9 % on ImageNet) is timm's and downloads its weights; without network: model.teacher_checkpoint=FILE.
"""

_base_ = './xcit_classifier.py'

model = dict(
    type='xcit_mm.DistilledClassifier',
    teacher=dict(type='mmpretrain.TimmClassifier', model_name='regnety_160.deit_in1k', pretrained=True),
    distillation='hard',
    alpha=0.5,
)
