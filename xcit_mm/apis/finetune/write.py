"""Labelled images as the three libraries read them; the images stay where they are."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Dict

from PIL import Image

from .data import Data
from .maps import apply_values, has_colours, read_map


def write(data: Data, folder: Path) -> Dict[str, str]:
    """Write the annotations of each split.

    COCO's JSON for detection, a list 'FILE NUMBER' for classification; for segmentation label maps of class numbers
    under the images' own paths, and a list of them.

    Returns:
        dict: The file of each split that has images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = {'classification': _write_list, 'semantic-segmentation': _write_maps}.get(data.task, _write_coco)
    return {split: writer(data, split, folder) for split in ('train', 'val', 'test') if data.of(split)}


def _write_coco(data: Data, split: str, folder: Path) -> str:
    images, annotations = [], []
    for number, picture in enumerate(data.of(split), 1):
        images.append(
            dict(id=number, file_name=data.relative(picture.path), width=picture.width, height=picture.height)
        )
        for one in picture.objects:
            row = {key: value for key, value in one.items() if key != 'label'}
            annotations.append(dict(row, id=len(annotations) + 1, image_id=number, category_id=one['label'] + 1))
    categories = [dict(id=number, name=name) for number, name in enumerate(data.classes, 1)]
    path = folder / f'{split}.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return str(path)


def _write_list(data: Data, split: str, folder: Path) -> str:
    path = folder / f'{split}.txt'
    lines = [f'{data.relative(picture.path)} {picture.label}' for picture in data.of(split)]
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return str(path)


def _write_maps(data: Data, split: str, folder: Path) -> str:
    names, as_colours = [], has_colours(data.values)
    for picture in data.of(split):
        name = data.relative(picture.path)
        path = folder / 'maps' / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(apply_values(read_map(picture.map or '', as_colours), data.values)).save(path)
        names.append(name)
    listed = folder / f'{split}.txt'
    listed.write_text('\n'.join(names) + '\n', encoding='utf-8')
    return str(listed)


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(os.path.getsize(path) for path in folder.rglob('*') if path.is_file())


def suffixes(data: Data) -> Counter:
    """Number of images of each suffix."""
    return Counter(os.path.splitext(picture.path)[1].lower() for picture in data.pictures)
