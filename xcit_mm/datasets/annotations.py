"""Checks of COCO annotations, one by one: mistakes, and what the libraries drop silently.

Everything here works on the content of the JSON file, a dict of lists, without any library.
"""

import difflib
import json
import math
import os
import re
from collections import Counter, defaultdict
from typing import Dict, List, NamedTuple, Optional, Sequence

from ..errors import UsageError

SHOWN_IDS = 3
# Mistakes that would change a score silently, or that make an annotation impossible to match.
HARMLESS = ('box outside the image', 'box without area', 'unknown category', 'unknown image')
# A box is outside if it exceeds the image by this share of a side; annotators overshoot by a pixel or two.
BEYOND = 0.05
# Boxes, and their share, that must be outside before another format is tried; the share that must fit that format.
LEAST_OUTSIDE, SHARE_OUTSIDE, SHARE_FITTING = 3, 0.2, 0.98
# From this many boxes on, most of them outside means a wrong file, not a few sloppy annotations.
MANY_BOXES = 10
NO_MASK, CROWD, NORMALISED = 'no mask', 'crowd (iscrowd=1)', 'normalised box (all numbers between 0 and 1)'

Reasons = Dict[str, list]


class Sorted(NamedTuple):
    """The annotations of a file, sorted.

    Attributes:
        good (list[dict]): Those that the data set is given.
        wrong (dict): Ids by mistake of those that are left out.
        aside (dict): Ids by reason of those that are right, but no objects to train on.
        outside (list): Ids of good ones that reach outside of their image.
    """

    good: List[dict]
    wrong: Reasons
    aside: Reasons
    outside: list


def read_tables(path: str, name: str) -> dict:
    """Read a COCO file, called ``name`` in messages, and check its tables; see :func:`check_tables`.

    Raises:
        UsageError: If it is no JSON, or its tables are not COCO's.
    """
    try:
        with open(path, 'rb') as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UsageError(f'{name} cannot be read as JSON: {error or "it nests too deep"}') from None
    check_tables(content, name)
    return content


def check_tables(content, name: str) -> None:
    """Check that a file has COCO's tables of images, categories and annotations, with ids that are unique.

    Raises:
        UsageError: Saying what is missing and, where it can be told, which other format the file is in.
    """
    for table, keys in (('images', ('id', 'file_name', 'height', 'width')), ('categories', ('id', 'name'))):
        rows = content.get(table) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise UsageError(
                f'{name} lists no {table}, expected COCO\'s "images", "annotations" and "categories"'
                f'{_other_format(content)}'
            )
        for row in rows:
            missing = [key for key in keys if not isinstance(row, dict) or key not in row]
            if missing:
                raise UsageError(
                    f'{name}: {str(row)[:100]} of its {table} has no {", ".join(missing)}{_other_format(content)}'
                )
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
    if any('segments_info' in row for row in rows[:1]):
        raise UsageError(
            f"{name} is panoptic: type='CocoPanopticDataset' reads it, expected one box for each annotation"
        )
    for number, row in enumerate(rows):
        row.setdefault('id', -1 - number)
    _check_unique(rows, 'annotations', name)


def _other_format(content) -> str:
    """Name the format of a JSON file that is often taken for COCO's."""
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and 'score' in first and 'bbox' in first:
        return '. It is a list of detections, as a test writes them; annotations are the file that was tested on'
    if isinstance(first, dict) and 'annotations' in first:
        return '. It looks like CreateML; convert it to COCO'
    if isinstance(content, dict):
        if 'shapes' in content:
            return (
                '. It is a LabelMe file of one image; convert the folder with labelme2coco (pip install labelme2coco)'
            )
        if '_via_img_metadata' in content or any('regions' in str(row)[:1000] for row in list(content.values())[:1]):
            return '. It is a project of the VGG Image Annotator, which exports COCO itself (Annotation > Export, COCO)'
        images = content.get('images')
        if isinstance(images, list) and images and isinstance(images[0], dict) and 'coco_url' in images[0]:
            return ". It looks like LVIS: type='LVISV1Dataset' reads it"
    return ''


def _check_unique(rows: List[dict], table: str, name: str) -> None:
    try:
        twice = [str(number) for number, count in Counter(row['id'] for row in rows).items() if count > 1]
    except TypeError:
        raise UsageError(f'{name}: the id of one of its {table} is a list or an object, expected a number') from None
    if twice:
        raise UsageError(
            f'{name} has {len(twice)} ids that several of its {table} share ({some(twice)}); only the last of each '
            f'would be seen. Number them anew'
        )


def unify_ids(content: dict, name: str) -> List[str]:
    """Write the ids in annotations as the tables do: 1, 1.0, "1" and "001" are one, unless two rows share the number.

    Args:
        content (dict): Changed in place.

    Returns:
        list[str]: What was taken for the same, for the log.

    Raises:
        UsageError: If a table has ids of both kinds of which some are the same number.
    """
    notes = []
    for table, key in (('images', 'image_id'), ('categories', 'category_id')):
        rows = content[table]
        numbers = Counter(_as_number(row['id']) for row in rows)
        if len({isinstance(row['id'], str) for row in rows}) > 1:  # which cannot be sorted, as the metric does
            twice = [str(number) for number, count in numbers.items() if count > 1 and number is not None]
            if twice:
                raise UsageError(f'{name}: ids of its {table} are the same as text and as number ({some(twice)})')
            for row in rows:
                row['id'] = str(row['id']) if None in numbers else _as_number(row['id'])
        known = {row['id'] for row in rows}
        by_number = {_as_number(row['id']): row['id'] for row in rows if numbers[_as_number(row['id'])] == 1}
        by_number.pop(None, None)
        changed = 0
        for row in content['annotations']:
            value = row.get(key)
            if isinstance(value, (list, dict)) or value in known:
                continue
            same = by_number.get(_as_number(value))
            if same is not None:
                row[key], changed = same, changed + 1
        if changed:
            notes.append(
                f'{name}: {changed} of {len(content["annotations"])} annotations write their {key} as a text and the '
                f'{table} their id as a number, or the other way round; the same number is taken for the same id'
            )
    return notes


def _as_number(value) -> Optional[int]:
    if isinstance(value, str) and re.fullmatch(r'\s*-?\d+\s*', value):
        return int(value)
    return int(value) if _is_number(value) and value == int(value) else None


def check_categories(content: dict, classes: Sequence[str], name: str, by_type: str = '') -> List[str]:
    """Check that every class of the config is one category of the file.

    A file may list fewer categories than the config has classes, as those of a part of the data do, but then no others.

    Args:
        by_type (str): Whose classes they are, if the config names none, such as 'COCO'.

    Returns:
        list[str]: Classes that are not in the file.

    Raises:
        UsageError: If a class is among its categories twice or under another name.
    """
    categories = content['categories']
    names = [category['name'] for category in categories]
    for one in dict.fromkeys(classes):
        ids = [category['id'] for category in categories if category['name'] == one]
        if len(ids) > 1:
            used = Counter(
                row.get('category_id') for row in content['annotations'] if _hashable(row.get('category_id'))
            )
            found = ', '.join(f'id {number!r} with {used[number]} annotations' for number in ids)
            raise UsageError(
                f'{name} has {len(ids)} categories of the name {one!r}: {found}. Only one of them can be the class; '
                f'rename the others in the file, or take them out'
            )
    missing = [one for one in classes if one not in names]
    others = [one for one in names if one not in classes]
    if not missing or (not others and not by_type):
        return missing
    shown = some(map(str, names), 5)
    if by_type and len(missing) > len(classes) / 2:
        raise UsageError(
            f'{name} has no category {missing[0]!r}: the config names no classes, so that the {len(classes)} of '
            f'{by_type} hold, and {len(missing)} of them are not in the file. It has {len(names)} categories '
            f'({shown}); set metainfo=dict(classes=...) of the data sets to them, and num_classes of the heads'
        )
    near = difflib.get_close_matches(str(missing[0]), map(str, others or names), n=1, cutoff=0.5)
    raise UsageError(
        f'{name} has no category {missing[0]!r}{f", but {near[0]!r}" if near else ""}: {len(missing)} of the '
        f'{len(classes)} classes of the config (metainfo.classes) are not among its {len(names)} categories '
        f'({shown}). config: {some(map(str, missing), 5)} | file: {some(map(str, others or names), 5)}'
    )


def check_boxes(content: dict, name: str) -> None:
    """Check that boxes are [x, y, width, height] in pixels, as far as numbers tell.

    Raises:
        UsageError: If hardly any can be that, saying what they look like.
    """
    images = {image['id']: image for image in content['images']}
    boxes = []
    for row in content['annotations']:
        box, image = row.get('bbox'), images.get(row.get('image_id')) if _hashable(row.get('image_id')) else None
        if image is not None and _is_box(box) and min(box[2:]) > 0:
            boxes.append((row['id'], *box, image['width'], image['height']))
    if not boxes:
        return
    number, *first = boxes[0][:5]
    if all(max(map(abs, row[1:5])) <= 1 for row in boxes):
        raise UsageError(
            f'{name}: its {len(boxes)} boxes are normalised, all numbers lie between 0 and 1 (the first: annotation '
            f'{number}, {first}); expected [x, y, width, height] in pixels: multiply by width and height of the image'
        )
    outside = [row for row in boxes if _reaches_outside(row[1:5], *row[5:])]
    if len(outside) < max(LEAST_OUTSIDE, SHARE_OUTSIDE * len(boxes)):
        return
    number, *first, width, height = outside[0]
    seen = (
        f'{name}: its boxes are not [x, y, width, height] in pixels. Read so, {len(outside)} of {len(boxes)} reach '
        f'outside of their image (the first: annotation {number}, {first}, in {width} x {height} pixels)'
    )
    for reading, fits, how in (
        ('[x1, y1, x2, y2]', _fits_corners, 'width = x2 - x1, height = y2 - y1'),
        ('[centre x, centre y, width, height]', _fits_centre, 'x = centre x - width / 2, y = centre y - height / 2'),
    ):
        fitting = sum(fits(*row[1:]) for row in boxes)
        if fitting >= SHARE_FITTING * len(boxes):
            raise UsageError(f'{seen}; read as {reading}, {fitting} of them lie inside. Convert them: {how}')
    if len(boxes) >= MANY_BOXES and len(outside) > len(boxes) / 2:
        raise UsageError(f'{seen}. They may be of images of another size; correct them, or "width" and "height"')


def _reaches_outside(box: Sequence[float], width: int, height: int) -> bool:
    x, y, w, h = box
    return x + w > (1 + BEYOND) * width or y + h > (1 + BEYOND) * height or x < -BEYOND * width or y < -BEYOND * height


def _fits_corners(x, y, w, h, width, height) -> bool:
    return -1 <= x < w <= width + 1 and -1 <= y < h <= height + 1


def _fits_centre(x, y, w, h, width, height) -> bool:
    return x - w / 2 >= -1 and x + w / 2 <= width + 1 and y - h / 2 >= -1 and y + h / 2 <= height + 1


def mend_backslashes(images: List[dict], folder: str) -> int:
    """Turn Windows paths into those of files in the folder, where a path does not exist as written.

    Leading folders are dropped if only then there is a file: exports name folders of another machine.

    Returns:
        int: How many there were; none if two images would become one file.
    """
    if '://' in folder:
        return 0
    found = {}
    for number, image in enumerate(images):
        path = str(image['file_name'])
        if '\\' in path and not os.path.exists(os.path.join(folder, path)):
            there = find_file(path, folder)
            if there:
                found[number] = there
    if len(set(found.values())) < len(found):
        return 0
    for number, path in found.items():
        images[number]['file_name'] = path
    return len(found)


def find_file(path: str, folder: str) -> Optional[str]:
    """The longest end of a Windows path that is a file of the folder, with slashes; None if there is none."""
    parts = path.replace('\\', '/').split('/')
    ends = ('/'.join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end and os.path.isfile(os.path.join(folder, end))), None)


def sort_out(content: dict, classes: Sequence[str], with_masks: bool, test_mode: bool) -> Sorted:
    """Sort the annotations of a file that has passed the checks above.

    Args:
        content (dict): Annotations get the keys that the libraries ask for and many tools do not write.
        with_masks (bool): Whether masks are needed.
        test_mode (bool): For testing; annotations that only training leaves out are then good.
    """
    images = {image['id']: image for image in content['images']}
    names = {category['id']: category['name'] for category in content['categories']}
    known = set(classes)
    good, wrong, aside, outside = [], defaultdict(list), defaultdict(list), []
    for annotation in content['annotations']:
        mistake = _mistake(annotation, images, names)
        if mistake is None and not test_mode:
            mistake = _too_small(annotation)
        if mistake is None and with_masks:
            mistake = mistake_of_mask(annotation, images[annotation['image_id']], test_mode)
        if mistake is not None:
            wrong[mistake].append(annotation['id'])
            continue
        good.append(annotation)
        image = images[annotation['image_id']]
        if _reaches_outside(annotation['bbox'], image['width'], image['height']):
            outside.append(annotation['id'])
        if names[annotation['category_id']] not in known:
            aside['category that is none of the classes'].append(annotation['id'])
        elif annotation.get('ignore'):
            aside['marked "ignore"' + (", which COCO's metric counts all the same" if test_mode else '')].append(
                annotation['id']
            )
        elif annotation['iscrowd']:
            aside[CROWD].append(annotation['id'])
    return Sorted(good, dict(wrong), dict(aside), outside)


def counted(reasons: Reasons) -> str:
    """Reasons with their counts and first ids."""
    return ', '.join(f'{reason}: {len(ids)} (id {some(map(str, ids))})' for reason, ids in reasons.items())


def some(texts, limit: int = SHOWN_IDS) -> str:
    """The first few strings, with dots if there are more."""
    texts = list(texts)
    return ', '.join(texts[:limit]) + (', ...' if len(texts) > limit else '')


def advice(reasons: Reasons, content: dict) -> str:
    """What to do about the most frequent reason; '' if there is nothing to say."""
    if not reasons:
        return ''
    reason = max(reasons, key=lambda one: len(reasons[one]))
    first: dict = next((row for row in content['annotations'] if row['id'] == reasons[reason][0]), {})
    for key, table in (('category_id', 'categories'), ('image_id', 'images')):
        if reason == f'unknown {key[:-3]}':
            known = some((repr(row['id']) for row in content[table]), 5)
            return f'. The first has the {key} {first.get(key)!r}, and the ids of its {table} are {known}'
    return {
        CROWD: '. Only regions of many objects are crowd; set iscrowd to 0 where it is one object',
        NORMALISED: '. Multiply them by the width and height of the image: boxes are in pixels',
        'area of 0 or less': '. Take "area" out of the file, or correct it; without it, that of the box is taken',
        'box without area': '. Boxes are [x, y, width, height] in pixels',
    }.get(reason, '')


def _mistake(annotation: dict, images: dict, names: dict) -> Optional[str]:
    """What is wrong with an annotation, in a few words; None if nothing is."""
    try:
        image = images.get(annotation.get('image_id'))
        known = annotation.get('category_id') in names
    except TypeError:
        return 'id that is not a number'
    if image is None:
        return 'unknown image'
    if not known:
        return 'unknown category'
    box = annotation.get('bbox')
    if box is None or not _is_box(box):
        return 'box that is not four numbers'
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return 'box without area'
    if x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
        return 'box outside the image'
    for key in ('iscrowd', 'ignore'):
        value = annotation.get(key) or 0
        if value not in (0, 1, '0', '1'):
            return f'{key} that is neither 0 nor 1'
        if key == 'iscrowd' or key in annotation:  # the metric needs it, and takes the text "0" for true
            annotation[key] = int(value)
    # Many tools do not write it; MMDetection and the metric need it.
    return None if _is_number(annotation.setdefault('area', width * height)) else 'area that is not a number'


def _too_small(annotation: dict) -> Optional[str]:
    """Why MMDetection would silently skip an annotation in training; None if it would not."""
    box = annotation['bbox']
    if min(box[2:]) < 1:
        return NORMALISED if max(map(abs, box)) <= 1 else 'box smaller than a pixel'
    return 'area of 0 or less' if annotation['area'] <= 0 else None


def mistake_of_mask(annotation: dict, image: dict, test_mode: bool) -> Optional[str]:
    """What is wrong with the mask of an annotation, in a few words; None if nothing is."""
    mask = annotation.get('segmentation')
    if not mask:
        return NO_MASK
    if isinstance(mask, list):
        try:
            # As a sum, which is quick: there are millions of numbers.
            finite = all(math.isfinite(sum(polygon)) for polygon in mask)
        except TypeError:
            finite = False
        if not finite:
            return 'polygon that is not a list of numbers'
        good = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if not any(map(len, mask)):
            return NO_MASK
        if not good or (test_mode and len(good) < len(mask)):
            return 'polygon of fewer than three points'
        side = max(image['height'], image['width'])
        if any(min(polygon) < -side or max(polygon) > 2 * side for polygon in good):
            return 'polygon far outside the image'  # pycocotools would allocate every pixel of its outline
        annotation['segmentation'] = good
        return None
    if not isinstance(mask, dict) or mask.get('size') != [image['height'], image['width']]:
        return 'RLE of another size than the image'
    runs = mask.get('counts')
    if isinstance(runs, str):
        runs = decode_runs(runs)
    whole = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    if not isinstance(runs, list) or not whole or sum(runs) != image['height'] * image['width']:
        return 'RLE that does not fill the image'
    return None


def decode_runs(text: str) -> Optional[List[int]]:
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


def _is_box(value) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _hashable(value) -> bool:
    return not isinstance(value, (list, dict))
