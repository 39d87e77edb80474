"""Faster R-CNN with XCiT-N12/8 on the embedded digits: the Mask R-CNN of the digits without its masks.

Also the example of a detector for data of boxes alone.

    python tools/make_digits.py data/digits
    python tools/train.py configs/faster_rcnn_xcit_n12_8_digits.py
"""

_base_ = './mask_rcnn_xcit_n12_8_digits.py'

model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))
train_pipeline = _base_.train_pipeline
train_pipeline[1].with_mask = False
test_pipeline = _base_.test_pipeline
test_pipeline[2].with_mask = False
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
