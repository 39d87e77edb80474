"""Segmentation: whether every image has its map of classes, and every map its image."""

import os

from ..errors import UsageError
from .datasets import Data, check_exist, some, stems

ADE20K_IMAGES = {'training': 20210, 'validation': 2000}


def check_maps(data: Data) -> None:
    """Whether every image has its map of classes, and every map its image."""
    image_suffix, map_suffix = data.setting('img_suffix'), data.setting('seg_map_suffix')
    images, maps = data.path(data.prefix('img_path')), data.prefix('seg_map_path')
    check_exist(data, [images])
    image_names = stems(images, image_suffix)
    if not image_names:
        raise UsageError(f'{data}: there is no image (*{image_suffix}) in {images}. To get it: {data.how_to_get()}')
    listed = data.path(data.cfg.get('ann_file')) if data.cfg.get('ann_file') else None
    wanted = image_names
    if listed and os.path.isfile(listed):
        with open(listed) as file:
            wanted = {line.strip() for line in file if line.strip()}
    without_image = wanted - image_names
    without_map = set()
    if maps is not None:
        map_names = stems(data.path(maps), map_suffix)
        without_map = wanted - map_names
        if wanted is image_names:
            without_image = map_names - image_names
    if without_map or without_image:
        found = [
            f'{what}: {len(names)} ({some(names)})'
            for names, what in ((without_map, 'images without a map'), (without_image, 'missing images'))
            if names
        ]
        counts = f'{len(image_names)} images' + (f' and {len(map_names)} maps' if maps is not None else '')
        whole = 'The whole ADE20K has 20,210 images for training and 2,000 for validation, each with a map. '
        raise UsageError(
            f'{data} is incomplete: {counts} in {images} and {data.path(maps)}; {"; ".join(found)}. '
            f'{whole if data.name == "ADE20KDataset" else ""}To get it: {data.how_to_get()}. To use a part of it, list '
            f'the names, without suffix, in a text file, and give that as ann_file'
        )
    expected = ADE20K_IMAGES.get(os.path.basename(images.rstrip('/')))
    if data.name == 'ADE20KDataset' and wanted is image_names and expected and len(image_names) != expected:
        print(f'Note: {images} has {len(image_names)} images; in the whole ADE20K it has {expected}.', flush=True)
