"""Sheets of scenes, and what is counted on them."""

import json
import pickle
import runpy

import numpy as np
import torch
from PIL import Image
from processes import ROOT
from pycocotools import mask as coco_mask


def test_sheets_have_the_scenes_with_their_objects(small_digits, tmp_path):
    tool = runpy.run_path(str(ROOT / 'tools/tiles_study.py'))
    tool['make_sheets'].__globals__['SCENES'] = 4
    tool['make_sheets'](small_digits, tmp_path, 1, (640, 400))
    coco = json.loads((tmp_path / 'annotations/instances_val2017.json').read_text())
    scenes = json.loads((small_digits / 'coco/annotations/instances_val2017.json').read_text())
    assert len(coco['annotations']) == len(scenes['annotations'])
    sheet = np.asarray(Image.open(tmp_path / 'val2017/0.png'))
    assert sheet.shape == (400, 640, 3)
    names = {image['id']: image['file_name'] for image in scenes['images']}
    for ours, theirs in zip(coco['annotations'], sorted(scenes['annotations'], key=lambda one: one['image_id'])):
        scene = np.asarray(Image.open(small_digits / 'coco/val2017' / names[theirs['image_id']]))
        pixels = (coco_mask.decode(one['segmentation']).astype(bool) for one in (ours, theirs))
        inside, before = pixels
        assert (sheet[inside] == scene[before]).all() and coco_mask.toBbox(ours['segmentation']).tolist() == ours[
            'bbox'
        ]
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (one['bbox'] for one in coco['annotations'])])
    labels = torch.tensor([one['category_id'] - 1 for one in coco['annotations']])
    again = torch.cat([boxes, boxes[:1]])  # a second one of an object is a mistake
    found = dict(bboxes=again, labels=torch.cat([labels, labels[:1]]), scores=torch.full((len(again),), 0.9))
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps([dict(img_id=1, pred_instances=found)]))
    assert tool['count'](tmp_path, tmp_path / 'a.pkl') == (len(boxes), len(boxes), 1)
