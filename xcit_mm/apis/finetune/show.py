"""What was found in a folder of labelled images: a table, and a contact sheet of labelled images."""

import random
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from ...errors import UsageError
from ...visualization.colours import colours_of
from ...visualization.predictions import draw_classes, draw_detections, draw_map, write_picture
from .data import Data, Picture, labels_of
from .maps import apply_values, has_colours, pixel_counts, read_map
from .split import absent

SHOWN = 12  # classes at most in the table: the most and the least frequent
SHEET, COLUMNS, EDGE = 16, 4, 320  # pictures, pictures in a row, pixels of each
SPLITS = ('train', 'val', 'test')


def counts_by_split(data: Data) -> Dict[str, Counter]:
    """Images (classification), objects (detection) or pixels (segmentation) of each class."""
    if data.task == 'semantic-segmentation':
        return {split: pixel_counts(data, data.of(split)) for split in SPLITS}
    return {split: data.counts(split) for split in SPLITS}


def object_sides(data: Data) -> List[float]:
    """Square root of the box area of each object, in pixels, sorted."""
    return sorted((one['bbox'][2] * one['bbox'][3]) ** 0.5 for picture in data.of('train') for one in picture.objects)


def print_found(data: Data, counts: Dict[str, Counter], console: Optional[Console] = None) -> None:
    """Print classes, counts, sizes, notes and problems, before training."""
    console = console or Console(highlight=False)
    unit = {'classification': 'images', 'semantic-segmentation': 'pixels'}.get(data.task, 'objects')
    splits = [split for split in SPLITS if data.of(split)]
    table = Table(title=f'{data.root}: {data.format}, {data.task}', title_justify='left')
    table.add_column(f'class ({len(data.classes)})', overflow='fold')
    for split in splits:
        table.add_column(f'{split}: {len(data.of(split))} images', justify='right')
    order = sorted(range(len(data.classes)), key=lambda label: -counts['train'][label])
    shown = order if len(order) <= SHOWN else [*order[: SHOWN // 2], None, *order[-SHOWN // 2 :]]
    for label in shown:
        if label is None:
            table.add_row(f'... {len(order) - SHOWN} more', *('' for _ in splits))
        else:
            table.add_row(data.classes[label], *(f'{counts[split][label]:,}' for split in splits))
    table.add_row(f'all {unit}', *(f'{sum(counts[split].values()):,}' for split in splits), style='bold')
    console.print(table)
    short = sorted(min(one.width, one.height) for one in data.pictures)
    long = sorted(max(one.width, one.height) for one in data.pictures)
    console.print(
        f'short sides of {short[0]} to {short[-1]} pixels (median {median(short):.0f}), long sides up to {long[-1]}'
    )
    sides = object_sides(data)
    if sides:
        tenth, most = (sides[int(len(sides) * share)] for share in (0.1, 0.9))
        console.print(f'objects of {tenth:.0f} to {most:.0f} pixels (the middle 80 %, root of the area)')
    for note in data.notes:
        console.print(f'note: {note}')
    for split in splits:
        without = absent(data, split, counts[split])
        if without and split != 'test':
            listed = ', '.join(without[:5]) + (' ...' if len(without) > 5 else '')
            console.print(f'[yellow]{len(without)} classes have no {unit} in {split}: {listed}[/yellow]')
    for what, where, mend in data.problems.lines():
        console.print(f'[yellow]{what}[/yellow] ({where}) -> {mend}')


def draw_sheet(data: Data, path: Path) -> None:
    """Draw a contact sheet of labelled training images, with as many classes as fit.

    Raises:
        UsageError: If none of them can be decoded.
    """
    colours = colours_of(data.classes, data.palette)
    tiles: List[np.ndarray] = []
    failed: List[str] = []
    for picture in _choose(data.of('train')):
        try:
            tiles.append(_tile(data, picture, colours))
        except Exception as error:  # of any decoder
            failed.append(f'{data.relative(picture.path)} ({error})')
            data.problems.add('image that cannot be decoded', data.relative(picture.path), 'replace or remove it')
        if len(tiles) == SHEET:
            break
    if not tiles:
        raise UsageError(
            f'none of {len(failed)} images of {data.root} can be decoded, such as {failed[0]}. Are the files cut off?'
        )
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.full((rows * EDGE, min(COLUMNS, len(tiles)) * EDGE, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        top, left = row * EDGE + (EDGE - tile.shape[0]) // 2, column * EDGE + (EDGE - tile.shape[1]) // 2
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    write_picture(str(path), sheet)


def _choose(pictures: Sequence[Picture]) -> List[Picture]:
    """Order the images so that those with new labels come first; neighbours, as of one video, are drawn apart."""
    seen: Counter = Counter()
    left, chosen = random.Random(0).sample(pictures, min(500, len(pictures))), []
    while left and len(chosen) < 4 * SHEET:
        best = min(left, key=lambda one: min((seen[label] for label in labels_of(one)), default=len(chosen)))
        left.remove(best)
        seen.update(set(labels_of(best)))
        chosen.append(best)
    return chosen


def open_picture(picture: Picture) -> np.ndarray:
    """The pixels (H, W, 3) RGB, rotated by EXIF if its annotations refer to the rotated image.

    Raises:
        OSError: If they cannot be decoded.
    """
    with Image.open(picture.path) as image:
        upright = image if image.size == (picture.width, picture.height) else ImageOps.exif_transpose(image)
        if upright.mode in ('I', 'I;16', 'F'):
            values = np.asarray(upright, dtype=np.float64)
            values = (values - values.min()) / max(values.max() - values.min(), 1e-9) * 255
            return np.repeat(values.astype(np.uint8)[..., None], 3, 2)
        return np.asarray(upright.convert('RGB'))


def _tile(data: Data, picture: Picture, colours: Sequence[Tuple[int, int, int]]) -> np.ndarray:
    image = open_picture(picture)
    scale = (EDGE - 4) / max(image.shape[:2])
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    size = (width, height)
    image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    if picture.label is not None:
        return draw_classes(image, [(data.classes[picture.label], colours[picture.label])])
    if picture.map:
        labels = apply_values(read_map(picture.map, has_colours(data.values)), data.values)
        small = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        return draw_map(image, small, data.classes, colours)
    objects = picture.objects
    boxes = np.array([one['bbox'] for one in objects], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scales = np.array([size[0] / picture.width, size[1] / picture.height] * 2)
    masks = [_mask(one, picture, size) for one in objects] if data.task == 'instance-segmentation' else None
    numbers = [one['label'] for one in objects]
    return draw_detections(image, boxes * scales, numbers, data.classes, colours, masks=masks or None)


def _mask(one: dict, picture: Picture, size: Tuple[int, int]) -> np.ndarray:
    """A mask in the size (width, height) of a tile."""
    from pycocotools import mask as coco_mask

    outline, height, width = one['segmentation'], picture.height, picture.width
    if isinstance(outline, list):
        runs = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
    elif isinstance(outline['counts'], list):
        runs = coco_mask.frPyObjects(outline, height, width)
    else:
        runs = outline
    return np.asarray(Image.fromarray(coco_mask.decode(runs)).resize(size, Image.Resampling.NEAREST)).astype(bool)
