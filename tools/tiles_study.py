#!/usr/bin/env python
"""Test a detector or a segmentor of the embedded digits on sheets of many scenes: the whole image against tiles.

    tools/tiles_study.py configs/mask_rcnn_xcit_n12_8_digits.py work_dirs/mask_rcnn_xcit_n12_8_digits/epoch_3.pth
    tools/tiles_study.py configs/upernet_xcit_n6_8_digits.py CHECKPOINT --size 3000 2000 --tiles 320 640

A sheet is a photograph of 6000x4000 pixels with forty scenes of the validation split pasted into it at their usual
size. Every way of testing is a run of tools/test.py of its own; the numbers are in results.csv and results.md. Of a
detector, sheet.jpg shows what it finds in the first sheet when it sees all of it.
"""

import argparse
import csv
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

import cv2
import numpy as np
from mmengine.config import Config
from PIL import Image

from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.large_images.masks import crop_of, encode_crop
from xcit_mm.visualization.colours import colours_of, palette_of
from xcit_mm.visualization.predictions import draw_detections

ROOT = Path(__file__).resolve().parents[1]
SCENES = 40  # of a sheet
SCORE, IOU = 0.5, 0.5  # what is found: a box of the class, of at least that score and overlap
STRICT = 0.8  # a higher score, at which the study counts again
FIELDS = {
    'mmdet': (
        'way',
        'box AP',
        'mask AP',
        'found',
        'of',
        'mistakes',
        f'found at {STRICT}',
        f'mistakes at {STRICT}',
        'seconds',
        'CPU seconds',
        'peak memory, GB',
    ),
    'mmseg': ('way', 'mIoU', 'pixel accuracy', 'seconds', 'CPU seconds', 'peak memory, GB'),
}
MARGIN, SHOWN, MANY = 20, 6, 3  # pixels around a scene in the picture; scenes at full size; least objects of these
BACKGROUND = 1  # in the label maps, where 0 does not count
SCALE = 'test_dataloader.dataset.pipeline.1.scale'
TRUTH = 'test_dataloader.dataset.pipeline.2.with_mask'


class Way(NamedTuple):
    """A way to test: its name, arguments of tools/test.py, and settings of the config."""

    name: str
    arguments: Tuple[str, ...] = ()
    options: Tuple[str, ...] = ()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Whole images against tiles.')
    parser.add_argument('config', help='config of a detector or a segmentor of the digits')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('--data', default='data/digits', help='made by tools/make_digits.py (default: data/digits)')
    parser.add_argument('--out-dir', default='work_dirs/tiles', help='of sheets and results (default: %(default)s)')
    parser.add_argument('--sheets', type=int, default=1, help='how many (default: 1)')
    parser.add_argument('--size', type=int, nargs=2, default=(6000, 4000), metavar=('W', 'H'), help='of a sheet')
    parser.add_argument('--tiles', type=int, nargs='*', default=(640,), help='sizes to test (default: 640)')
    parser.add_argument(
        '--overlap', type=int, nargs='*', default=(72,), help='pixels, to test; the largest digits have 72 (default)'
    )
    return parser.parse_args()


def make_sheets(data: Path, out: Path, number: int, size: Tuple[int, int]) -> None:
    """Sheets in the layouts of COCO and of ADE20K, with the places of the scenes in ``scenes.json``."""
    from sklearn.datasets import load_sample_image

    names = out / 'annotations' / 'instances_val2017.json'
    pictures, maps = out / 'val2017', out / 'annotations/validation'
    for folder in (pictures, maps, out / 'images'):
        folder.mkdir(parents=True, exist_ok=True)
    link = out / 'images/validation'  # of ADE20K
    if not link.is_symlink():
        link.symlink_to('../val2017')
    coco = json.loads((data / 'coco/annotations/instances_val2017.json').read_text())
    scenes = sorted(coco['images'], key=lambda image: image['file_name'])
    if len(scenes) < number * SCENES:
        raise UsageError(f'{data} has {len(scenes)} scenes for {number} sheets of {SCENES}')
    width, height = size
    cell = (width // 8, height // 5)
    if min(cell) < scenes[0]['width']:
        raise UsageError(f'forty scenes of {scenes[0]["width"]} pixels have no room on a sheet of {width} x {height}')
    chance, images, objects, places = random.Random(0), [], [], []
    for sheet in range(number):
        picture = Image.fromarray(load_sample_image('china.jpg')).resize(size)
        labels = Image.new('L', size, BACKGROUND)
        for place, scene in enumerate(scenes[sheet * SCENES : (sheet + 1) * SCENES]):
            left, top = (
                at * side + chance.randrange(side - scene['width'] + 1)
                for at, side in zip((place % 8, place // 8), cell)
            )
            places.append(dict(image_id=sheet + 1, left=left, top=top, width=scene['width'], height=scene['height']))
            picture.paste(Image.open(data / 'coco/val2017' / scene['file_name']), (left, top))
            map_name = Path(scene['file_name']).with_suffix('.png').name
            labels.paste(Image.open(data / 'ade/annotations/validation' / map_name), (left, top))
            for item in coco['annotations']:
                if item['image_id'] == scene['id']:
                    mask, x, y = crop_of(item['segmentation'])
                    rle = encode_crop(mask, x + left, y + top, height, width)
                    x, y, w, h = item['bbox']
                    objects.append(
                        dict(
                            item,
                            id=len(objects) + 1,
                            image_id=sheet + 1,
                            bbox=[x + left, y + top, w, h],
                            segmentation=dict(rle, counts=rle['counts'].decode()),
                        )
                    )
        picture.save(pictures / f'{sheet}.png')
        labels.save(maps / f'{sheet}.png')
        images.append(dict(id=sheet + 1, file_name=f'{sheet}.png', width=width, height=height))
    names.write_text(json.dumps(dict(images=images, annotations=objects, categories=coco['categories'])))
    (out / 'scenes.json').write_text(json.dumps(places))


def ways(scope: str, size: Tuple[int, int], tiles: List[int], overlaps: List[int]) -> List[Way]:
    """Whole (detectors also with the budget of the trained size) and tiles, all at the scale of the training."""
    whole = f'{SCALE}=({size[0]},{size[1]})'
    found = [Way('whole', (), (whole,))]
    if scope == 'mmdet':
        found.append(Way('whole, budget of the trained size', (), (whole, 'model.test_cfg.trained_size=None')))
    for tile in tiles:
        for overlap in overlaps:
            share = f'{min(0.9, overlap / tile):.3f}'
            name = f'tiles of {tile}, overlap {overlap}'
            found.append(Way(name, ('--tiles', str(tile), '--overlap', share), (f'{SCALE}=({tile},{tile})',)))
    return found


def test(args: argparse.Namespace, scope: str, way: Way, sheets: Path, folder: Path) -> Dict[str, object]:
    """Run tools/test.py, and return a row of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / 'tools/test.py'), args.config, args.checkpoint, *way.arguments]
    command += ['--data-root', str(sheets), '--out-dir', str(folder)]
    command += ['--out', str(folder / 'predictions.pkl')] if scope == 'mmdet' else []
    command += ['--cfg-options', 'test_dataloader.batch_size=1', 'test_dataloader.num_workers=0']
    # The metric has the true masks from the file of annotations; loaded as arrays, they would be most of the memory.
    command += [f'{TRUTH}=False'] if scope == 'mmdet' else ['test_dataloader.dataset.img_suffix=.png']
    command += ['test_dataloader.persistent_workers=False', *way.options]
    with open(folder / 'screen.log', 'w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UsageError(f'the test of {way.name} failed, see {folder / "screen.log"}')
    written = max(folder.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    numbers = json.loads(written.read_text().splitlines()[-1])
    if scope == 'mmdet':
        row = [numbers['coco/bbox_mAP'], numbers.get('coco/segm_mAP', ''), *count(sheets, folder / 'predictions.pkl')]
        found, _, mistakes = count(sheets, folder / 'predictions.pkl', STRICT)
        row += [found, mistakes]
    else:
        row = [round(numbers[key], 1) for key in ('mIoU', 'aAcc')]
    unit = 1e9 if sys.platform == 'darwin' else 1e6  # ru_maxrss is in bytes there, in KiB elsewhere
    spent = [numbers['time'], usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit]
    return dict(zip(FIELDS[scope], [way.name, *row, *(round(value, 1) for value in spent)]))


def count(sheets: Path, predictions: Path, least: float = SCORE) -> Tuple[int, int, int]:
    """Objects found, objects, and detections that are none, on all sheets, from a score of ``least``."""
    coco = json.loads((sheets / 'annotations/instances_val2017.json').read_text())
    found = mistakes = 0
    for sample in pickle.loads(predictions.read_bytes()):
        left = [
            (item['category_id'] - 1, np.array(item['bbox']))
            for item in coco['annotations']
            if item['image_id'] == sample['img_id']
        ]
        instances = sample['pred_instances']
        for score, label, box in zip(*(instances[key].numpy() for key in ('scores', 'labels', 'bboxes'))):
            if score < least:
                continue
            same = [number for number, (other, place) in enumerate(left) if other == label and overlaps(box, place)]
            if same:
                left.pop(same[0])
                found += 1
            else:
                mistakes += 1
    return found, len(coco['annotations']), mistakes


def overlaps(box: np.ndarray, place: np.ndarray) -> bool:
    """Whether a box [x1, y1, x2, y2] is at a place [x, y, width, height]."""
    corner, end = np.maximum(box[:2], place[:2]), np.minimum(box[2:], place[:2] + place[2:])
    common = np.prod(np.clip(end - corner, 0, None))
    return common / (np.prod(box[2:] - box[:2]) + np.prod(place[2:]) - common) >= IOU


def draw(args: argparse.Namespace, sheets: Path, predictions: Path, target: Path) -> None:
    """The first sheet with its predictions, and below it some scenes at full size, predicted and true."""
    cfg = Config.fromfile(args.config)
    classes = cfg.metainfo['classes']
    colours = colours_of(classes, palette_of(cfg))
    coco = json.loads((sheets / 'annotations/instances_val2017.json').read_text())
    found = pickle.loads(predictions.read_bytes())[0]['pred_instances']
    sure = [i for i, score in enumerate(found['scores'].tolist()) if score >= SCORE]
    true = [item for item in coco['annotations'] if item['image_id'] == 1]
    ours = [(found['bboxes'][i].tolist(), int(found['labels'][i]), float(found['scores'][i])) for i in sure]
    theirs = [(box_of(item['bbox']), item['category_id'] - 1, None) for item in true]
    our_masks = [found['masks'][i] for i in sure] if 'masks' in found else None
    picture = np.array(Image.open(sheets / 'val2017/0.png').convert('RGB'))
    original, rows, frames = picture.copy(), ([], []), []
    for place in json.loads((sheets / 'scenes.json').read_text())[:SCENES]:
        top, left = (max(0, place[side] - MARGIN) for side in ('top', 'left'))
        bottom, right = place['top'] + place['height'] + MARGIN, place['left'] + place['width'] + MARGIN
        window = (slice(top, bottom), slice(left, right))
        drawn = [
            draw_part(original[window], (left, top), objects, masks, classes, colours)
            for objects, masks in ((ours, our_masks), (theirs, [item['segmentation'] for item in true]))
        ]
        picture[window] = drawn[0]
        inside = sum(left <= box[0] and box[2] <= right and top <= box[1] and box[3] <= bottom for box, *_ in theirs)
        if inside >= MANY and len(frames) < SHOWN:
            frames.append((left, top, right, bottom))
            for row, part in zip(rows, drawn):
                row.append(part)
    for left, top, right, bottom in frames:
        cv2.rectangle(picture, (left, top), (right, bottom), (220, 0, 0), 12)
    side = 1200
    whole = Image.fromarray(picture).resize(
        (side, round(side * picture.shape[0] / picture.shape[1])), Image.Resampling.LANCZOS
    )
    tile = side // SHOWN
    page = Image.new('RGB', (side, whole.height + 2 * tile), 'white')
    page.paste(whole)
    for number, row in enumerate(rows):
        for at, part in enumerate(row):
            page.paste(
                Image.fromarray(part).resize((tile - 4, tile - 4)), (at * tile + 2, whole.height + number * tile + 2)
            )
    page.save(target, quality=88)


def box_of(bbox: Sequence[float]) -> List[float]:
    """[x, y, width, height] -> [x1, y1, x2, y2]."""
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def draw_part(part: np.ndarray, corner: Tuple[int, int], objects, masks, classes, colours) -> np.ndarray:
    """Draw the objects of the whole image whose centre is in a part of it, (h, w, 3)."""
    left, top = corner
    boxes, labels, scores, pieces = [], [], [], []
    for number, (box, label, score) in enumerate(objects):
        x, y = (box[0] + box[2]) / 2 - left, (box[1] + box[3]) / 2 - top
        if not (0 <= x < part.shape[1] and 0 <= y < part.shape[0]):
            continue
        boxes.append([box[0] - left, box[1] - top, box[2] - left, box[3] - top])
        labels.append(label)
        scores.append(score)
        if masks is not None:
            inside, at_x, at_y = crop_of(masks[number])
            rows, columns = (np.nonzero(inside)[axis] + at for axis, at in ((0, at_y - top), (1, at_x - left)))
            kept = (rows >= 0) & (rows < part.shape[0]) & (columns >= 0) & (columns < part.shape[1])
            pieces.append(np.zeros(part.shape[:2], bool))
            pieces[-1][rows[kept], columns[kept]] = True
    if not boxes:
        return part.copy()
    known = None if None in scores else scores
    return draw_detections(part, np.array(boxes), labels, classes, colours, known, pieces or None)


def write(folder: Path, rows: List[dict]) -> None:
    """Write the table, for machines and for reading."""
    fields = list(rows[0])
    with open(folder / 'results.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    lines = [fields, ['---', *['---:'] * (len(fields) - 1)], *([str(row[key]) for key in fields] for row in rows)]
    (folder / 'results.md').write_text(''.join(f'| {" | ".join(line)} |\n' for line in lines))


def main() -> None:
    args = parse_args()
    with clear_errors():
        data, folder = Path(args.data), Path(args.out_dir)
        if not (data / 'coco').is_dir():
            raise UsageError(f'there is no data set in {data}: tools/make_digits.py {data}')
        scope = Config.fromfile(args.config).get('default_scope')
        if scope not in FIELDS:
            raise UsageError(f'{args.config} has default_scope={scope!r}; expected {" or ".join(FIELDS)}')
        sheets = folder / 'sheets'
        make_sheets(data, sheets, args.sheets, tuple(args.size))
        rows: List[dict] = []
        for number, way in enumerate(ways(scope, args.size, args.tiles, args.overlap)):
            rows.append(test(args, scope, way, sheets, folder / str(number)))
            print(', '.join(f'{key} {value}' for key, value in rows[-1].items()), flush=True)
            write(folder, rows)
            if scope == 'mmdet' and not number:
                draw(args, sheets, folder / '0/predictions.pkl', folder / 'sheet.jpg')
        print(f'Results: {folder / "results.csv"}, {folder / "results.md"}')


if __name__ == '__main__':
    main()
