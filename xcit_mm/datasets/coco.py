"""COCO annotations of which some are wrong: what cannot be trained on is left out and counted, or refused for testing.

MMDetection leaves out boxes without area and unknown categories without a word, fails on many other mistakes in the
middle of an epoch, and gives the wrong labels where a class of the config is not in the file.
"""

import difflib
import json
import logging
import math
from collections import Counter, defaultdict
from functools import partial
from typing import Dict, List, Optional, Sequence

from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from ..errors import UsageError

NAMED = 3
# Mistakes that a test would not notice, or that make an annotation one that nothing can match.
HARMLESS = ('box outside the image', 'box without area', 'unknown category', 'unknown image')


class CocoDataset(MMDetCocoDataset):
    """MMDetection's, with a check of every annotation.

    Training goes on without annotations that are wrong, and one warning counts them by what is wrong. In testing they
    would change what is measured, so that those which the metric cannot take are refused.

    Raises:
        UsageError: If the file has no annotations in COCO's format, identifiers are used twice, a class of the config
            is none of its categories; or, in testing, if annotations are wrong.
    """

    def load_data_list(self) -> List[dict]:
        """As MMDetection's."""
        self.COCOAPI = partial(
            CheckedAnnotations,
            name=self.ann_file,
            classes=self.metainfo['classes'],
            with_masks=any(getattr(transform, 'with_mask', False) for transform in self.pipeline.transforms),
            test_mode=self.test_mode,
        )
        return super().load_data_list()


class CheckedAnnotations(COCO):
    """COCO's annotations from a file, without those that are wrong.

    Args:
        path (str): The file, on this machine.
        name (str): What messages call it.
        classes (Sequence[str]): The classes of the config.
        with_masks (bool): Masks are asked for.
        test_mode (bool): Refuse what would change the result of a test.

    Raises:
        UsageError: See :class:`CocoDataset`.
    """

    def __init__(self, path: str, name: str, classes: Sequence[str], with_masks: bool, test_mode: bool):
        super().__init__()
        try:
            with open(path, 'rb') as file:
                content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UsageError(f'{name} cannot be read as JSON: {error or "it nests too deep"}') from None
        _check_tables(content, name)
        _check_classes(content['categories'], classes, name)
        self.dataset = {**content, 'annotations': _without_mistakes(content, name, with_masks, test_mode)}
        self.createIndex()
        # MMDetection's names for them, made before the index was.
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs


def _check_tables(content, name: str) -> None:
    for table, keys in (('images', ('id', 'file_name', 'height', 'width')), ('categories', ('id', 'name'))):
        rows = content.get(table) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise UsageError(f'{name} lists no {table}, expected COCO\'s "images", "annotations" and "categories"')
        for row in rows:
            missing = [key for key in keys if not isinstance(row, dict) or key not in row]
            if missing:
                raise UsageError(f'{name}: {str(row)[:100]} of its {table} has no {", ".join(missing)}')
        _check_unique(rows, table, name)
    for row in content['images']:
        if not all(_is_number(row[key]) and row[key] > 0 for key in ('height', 'width')):
            raise UsageError(
                f'{name}: the image {row["id"]!r} ({row["file_name"]}) is {row["height"]!r} x {row["width"]!r} pixels '
                f'(height x width)'
            )
    rows = content.setdefault('annotations', [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f'{name}: its annotations are no list of objects {{...}}')
    for number, row in enumerate(rows):
        row.setdefault('id', -1 - number)
    _check_unique(rows, 'annotations', name)


def _check_unique(rows: List[dict], table: str, name: str) -> None:
    try:
        twice = [str(number) for number, count in Counter(row['id'] for row in rows).items() if count > 1]
    except TypeError:
        raise UsageError(f'{name}: the id of one of its {table} is a list or an object, expected a number') from None
    if twice:
        raise UsageError(
            f'{name} has {len(twice)} ids that several of its {table} share ({_some(twice)}); only the last of each '
            f'would be seen. Number them anew'
        )


def _check_classes(categories: List[dict], classes: Sequence[str], name: str) -> None:
    names = [category['name'] for category in categories]
    unknown = [one for one in classes if one not in names]
    if not unknown:
        return
    near = difflib.get_close_matches(str(unknown[0]), map(str, names), n=1, cutoff=0.5)
    raise UsageError(
        f'{name} has no category {unknown[0]!r}{f", but {near[0]!r}" if near else ""}: {len(unknown)} of the '
        f'{len(classes)} classes of the config (metainfo.classes) are not among its {len(names)} categories '
        f'({_some(map(str, names), 5)}), and all labels behind them would be wrong'
    )


def _without_mistakes(content: dict, name: str, with_masks: bool, test_mode: bool) -> List[dict]:
    images = {image['id']: image for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    good, wrong = [], defaultdict(list)
    for annotation in content['annotations']:
        mistake = _mistake(annotation, images, categories)
        if mistake is None and with_masks:
            mistake = _mistake_of_mask(annotation, images[annotation['image_id']], test_mode)
        if mistake is None:
            good.append(annotation)
        else:
            wrong[mistake].append(annotation['id'])
    serious = {mistake: ids for mistake, ids in wrong.items() if mistake not in HARMLESS}
    if test_mode and serious:
        raise UsageError(
            f'{name} is not fit for testing, since the result would not be of all its objects: {_counted(serious)}. '
            f'Correct these annotations or take them out'
        )
    if wrong:
        print_log(
            f'{name}: {sum(map(len, wrong.values()))} of {len(content["annotations"])} annotations are left out: '
            f'{_counted(wrong)}',
            'current',
            logging.WARNING,
        )
    return good


def _counted(wrong: Dict[str, list]) -> str:
    return ', '.join(f'{mistake}: {len(ids)} (id {_some(map(str, ids))})' for mistake, ids in wrong.items())


def _some(texts, limit: int = NAMED) -> str:
    texts = list(texts)
    return ', '.join(texts[:limit]) + (', ...' if len(texts) > limit else '')


def _mistake(annotation: dict, images: dict, categories: set) -> Optional[str]:
    """What is wrong with an annotation, in a few words; None if nothing is."""
    try:
        image = images.get(annotation.get('image_id'))
        known = annotation.get('category_id') in categories
    except TypeError:
        return 'id that is no number'
    if image is None:
        return 'unknown image'
    if not known:
        return 'unknown category'
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return 'box that is not four numbers'
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return 'box without area'
    if x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
        return 'box outside the image'
    # Many tools do not write it; MMDetection and the metric ask for it.
    return None if _is_number(annotation.setdefault('area', width * height)) else 'area that is no number'


def _mistake_of_mask(annotation: dict, image: dict, test_mode: bool) -> Optional[str]:
    mask = annotation.get('segmentation')
    if not mask:
        return 'no mask'
    if isinstance(mask, list):
        try:
            # As a sum, which is quick: there are millions of numbers.
            finite = all(math.isfinite(sum(polygon)) for polygon in mask)
        except TypeError:
            finite = False
        if not finite:
            return 'polygon that is no list of numbers'
        good = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if not good or (test_mode and len(good) < len(mask)):
            return 'polygon of fewer than three points'
        side = max(image['height'], image['width'])
        if any(min(polygon) < -side or max(polygon) > 2 * side for polygon in good):
            return 'polygon far outside the image'  # pycocotools would hold every place on its border
        annotation['segmentation'] = good
        return None
    if not isinstance(mask, dict) or mask.get('size') != [image['height'], image['width']]:
        return 'RLE of another size than the image'
    runs = mask.get('counts')
    if isinstance(runs, str):
        runs = _decode_runs(runs)
    whole = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    if not whole or sum(runs) != image['height'] * image['width']:
        return 'RLE that does not fill the image'
    return None


def _decode_runs(text: str) -> Optional[List[int]]:
    """The runs of a compressed RLE, as pycocotools writes them: 5 bits in each character, as differences."""
    runs: List[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return None if shift else runs


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
