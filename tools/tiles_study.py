#!/usr/bin/env python
"""Test a detector of the embedded digits on sheets of many scenes: the whole image against tiles.

    tools/tiles_study.py configs/mask_rcnn_xcit_n12_8_digits.py work_dirs/mask_rcnn_xcit_n12_8_digits/epoch_3.pth

A sheet is a photograph of 6000x4000 pixels with forty scenes of the validation split pasted into it at their usual
size. Every way of testing is a run of tools/test.py of its own; the numbers are in results.csv and results.md.
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
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
from PIL import Image

from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.large_images.masks import crop_of, encode_crop

ROOT = Path(__file__).resolve().parents[1]
SCENES = 40  # of a sheet
SCORE, IOU = 0.5, 0.5  # what is found: a box of the class, of at least that score and overlap
FIELDS = ('way', 'box AP', 'mask AP', 'found', 'of', 'mistakes', 'seconds', 'peak memory, GB')
SCALE = 'test_dataloader.dataset.pipeline.1.scale'


class Way(NamedTuple):
    """A way to test: its name, arguments of tools/test.py, and settings of the config."""

    name: str
    arguments: Tuple[str, ...] = ()
    options: Tuple[str, ...] = ()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Whole images against tiles.')
    parser.add_argument('config', help='config of a detector of the digits')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('--data', default='data/digits', help='made by tools/make_digits.py (default: data/digits)')
    parser.add_argument('--out-dir', default='work_dirs/tiles', help='of sheets and results (default: %(default)s)')
    parser.add_argument('--sheets', type=int, default=1, help='how many (default: 1)')
    parser.add_argument('--size', type=int, nargs=2, default=(6000, 4000), metavar=('W', 'H'), help='of a sheet')
    parser.add_argument('--tiles', type=int, nargs='*', default=(640,), help='sizes to test (default: 640)')
    parser.add_argument('--overlap', type=int, default=72, help='pixels; the largest digits have 72 (default)')
    return parser.parse_args()


def make_sheets(data: Path, out: Path, number: int, size: Tuple[int, int]) -> None:
    """Sheets in the layout of COCO, ``val2017/*.png`` with one annotation file."""
    from sklearn.datasets import load_sample_image

    names = out / 'annotations' / 'instances_val2017.json'
    (out / 'val2017').mkdir(parents=True, exist_ok=True)
    names.parent.mkdir(exist_ok=True)
    coco = json.loads((data / 'coco/annotations/instances_val2017.json').read_text())
    scenes = sorted(coco['images'], key=lambda image: image['file_name'])
    if len(scenes) < number * SCENES:
        raise UsageError(f'{data} has {len(scenes)} scenes for {number} sheets of {SCENES}')
    width, height = size
    cell = (width // 8, height // 5)
    if min(cell) < scenes[0]['width']:
        raise UsageError(f'forty scenes of {scenes[0]["width"]} pixels have no room on a sheet of {width} x {height}')
    chance, images, objects = random.Random(0), [], []
    for sheet in range(number):
        picture = Image.fromarray(load_sample_image('china.jpg')).resize(size)
        for place, scene in enumerate(scenes[sheet * SCENES : (sheet + 1) * SCENES]):
            left, top = (
                at * side + chance.randrange(side - scene['width'] + 1)
                for at, side in zip((place % 8, place // 8), cell)
            )
            picture.paste(Image.open(data / 'coco/val2017' / scene['file_name']), (left, top))
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
        picture.save(out / 'val2017' / f'{sheet}.png')
        images.append(dict(id=sheet + 1, file_name=f'{sheet}.png', width=width, height=height))
    names.write_text(json.dumps(dict(images=images, annotations=objects, categories=coco['categories'])))


def ways(size: Tuple[int, int], tiles: List[int], overlap: int) -> List[Way]:
    """Whole with the budget of the trained size, whole, and tiles, all at the scale of the training."""
    whole = f'{SCALE}=({size[0]},{size[1]})'
    found = [
        Way('whole, budget of the trained size', (), (whole, 'model.test_cfg.trained_size=None')),
        Way('whole', (), (whole,)),
    ]
    for tile in tiles:
        share = f'{min(0.9, overlap / tile):.3f}'
        found.append(Way(f'tiles of {tile}', ('--tiles', str(tile), '--overlap', share), (f'{SCALE}=({tile},{tile})',)))
    return found


def test(args: argparse.Namespace, way: Way, sheets: Path, folder: Path) -> Dict[str, object]:
    """Run tools/test.py, and return a row of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / 'tools/test.py'), args.config, args.checkpoint, *way.arguments]
    command += ['--data-root', str(sheets), '--out-dir', str(folder), '--out', str(folder / 'predictions.pkl')]
    command += ['--cfg-options', 'test_dataloader.batch_size=1', 'test_dataloader.num_workers=0']
    command += ['test_dataloader.persistent_workers=False', *way.options]
    with open(folder / 'screen.log', 'w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UsageError(f'the test of {way.name} failed, see {folder / "screen.log"}')
    written = max(folder.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    numbers = json.loads(written.read_text().splitlines()[-1])
    found, total, mistakes = count(sheets, folder / 'predictions.pkl')
    row = [way.name, numbers['coco/bbox_mAP'], numbers.get('coco/segm_mAP', ''), found, total, mistakes]
    unit = 1e9 if sys.platform == 'darwin' else 1e6  # ru_maxrss is in bytes there, in KiB elsewhere
    return dict(zip(FIELDS, [*row, round(numbers['time'], 1), round(usage.ru_maxrss / unit, 1)]))


def count(sheets: Path, predictions: Path) -> Tuple[int, int, int]:
    """Objects found, objects, and detections that are none, on all sheets."""
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
            if score < SCORE:
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


def write(folder: Path, rows: List[dict]) -> None:
    """Write the table, for machines and for reading."""
    with open(folder / 'results.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    lines = [FIELDS, ['---', *['---:'] * (len(FIELDS) - 1)], *([str(row[key]) for key in FIELDS] for row in rows)]
    (folder / 'results.md').write_text(''.join(f'| {" | ".join(line)} |\n' for line in lines))


def main() -> None:
    args = parse_args()
    with clear_errors():
        data, folder = Path(args.data), Path(args.out_dir)
        if not (data / 'coco').is_dir():
            raise UsageError(f'there is no data set in {data}: tools/make_digits.py {data}')
        make_sheets(data, folder / 'sheets', args.sheets, tuple(args.size))
        rows: List[dict] = []
        for number, way in enumerate(ways(args.size, args.tiles, args.overlap)):
            rows.append(test(args, way, folder / 'sheets', folder / str(number)))
            print(', '.join(f'{key} {value}' for key, value in rows[-1].items()), flush=True)
            write(folder, rows)
        print(f'Results: {folder / "results.csv"}, {folder / "results.md"}')


if __name__ == '__main__':
    main()
