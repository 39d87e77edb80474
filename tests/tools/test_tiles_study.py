"""Sheets of scenes, and what is counted on them."""

import argparse
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
    assert tool['count'](tmp_path, tmp_path / 'a.pkl', 0.95) == (0, len(boxes), 0)


def test_sheets_have_the_label_maps_of_the_scenes(small_digits, tmp_path):
    tool = runpy.run_path(str(ROOT / 'tools/tiles_study.py'))
    tool['make_sheets'].__globals__['SCENES'] = 4
    tool['make_sheets'](small_digits, tmp_path, 1, (640, 400))
    labels = np.asarray(Image.open(tmp_path / 'annotations/validation/0.png'))
    assert (tmp_path / 'images/validation/0.png').is_file() and labels.shape == (400, 640)
    for place, path in zip(
        json.loads((tmp_path / 'scenes.json').read_text()),
        sorted((small_digits / 'ade/annotations/validation').glob('*.png')),
    ):
        scene = np.asarray(Image.open(path))
        window = labels[place['top'] : place['top'] + 64, place['left'] : place['left'] + 64].copy()
        assert (window == scene).all()
        labels = labels.copy()
        labels[place['top'] : place['top'] + 64, place['left'] : place['left'] + 64] = 1
    assert (labels == 1).all()  # background elsewhere


def test_the_picture_shows_what_is_found_beside_the_truth(small_digits, tmp_path):
    tool = runpy.run_path(str(ROOT / 'tools/tiles_study.py'))
    tool['make_sheets'].__globals__.update(SCENES=4, MANY=1)
    tool['make_sheets'](small_digits, tmp_path, 1, (640, 400))
    coco = json.loads((tmp_path / 'annotations/instances_val2017.json').read_text())
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (one['bbox'] for one in coco['annotations'])])
    labels = torch.tensor([one['category_id'] - 1 for one in coco['annotations']])
    args = argparse.Namespace(config=str(ROOT / 'configs/mask_rcnn_xcit_n12_8_digits.py'))
    apart = []
    for score in (0.9, 0.1):  # all of the truth; the same below the score of the study
        masks = [one['segmentation'] for one in coco['annotations']]
        found = dict(bboxes=boxes, labels=labels, scores=torch.full((len(boxes),), score), masks=masks)
        (tmp_path / 'a.pkl').write_bytes(pickle.dumps([dict(img_id=1, pred_instances=found)]))
        tool['draw'](args, tmp_path, tmp_path / 'a.pkl', tmp_path / 'sheet.jpg')
        page = Image.open(tmp_path / 'sheet.jpg')
        assert page.size == (1200, 750 + 400)
        ours, theirs = (np.asarray(page.crop((2, top + 2, 198, top + 198))).astype(int) for top in (750, 950))
        apart.append((np.abs(ours - theirs) > 60).mean())
    assert apart[0] < 0.5 * apart[1]  # the scores in the tags are left
