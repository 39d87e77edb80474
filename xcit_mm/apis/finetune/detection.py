"""Readers of boxes and polygons: COCO, Pascal VOC, YOLO and LabelMe.

They are short and our own. supervision (0.31) reads the first three, but holds every polygon as a dense mask of the
whole image and writes an approximation of it, needs Python 3.10, and stops at the first wrong line. These readers
collect all errors with file and line.
"""

import fnmatch
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml

from ...datasets.annotations import read_tables
from ...errors import UsageError
from .data import Data, Files, Index, Options, Picture, Problems, sizes, some, split_of, split_word

PART = 1 << 16  # bytes at the beginning and the end of a JSON file that tell what it is
BEYOND = 0.02  # share of a side by which annotators overshoot
NO_IMAGE = 'annotation without its image'
CLASS_FILES = ('classes.txt', 'obj.names', 'labels.txt', '_darknet.labels', 'predefined_classes.txt')
READABLE = 'look at the file; it is left out'


def is_coco(path: str) -> bool:
    text = _ends(path)
    return '"categories"' in text and '"images"' in text


def is_labelme(path: str) -> bool:
    return '"shapes"' in _ends(path)


def is_voc(path: str) -> bool:
    return bool(re.match(r'\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<annotation\b', _ends(path), re.S))


def is_yolo(path: str) -> bool:
    """True if every line of a text is a class and four or more numbers."""
    lines = [line for line in _ends(path).splitlines()[:20] if line.strip()]
    return bool(lines) and all(re.fullmatch(r'\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*', line) for line in lines)


def _ends(path: str) -> str:
    with open(path, 'rb') as file:
        start = file.read(PART)
        file.seek(max(len(start), os.path.getsize(path) - PART))
        return (start + file.read()).decode('utf-8', 'replace').lstrip('\ufeff')


class _Collector:
    """What the four readers share: images by name, their sizes, objects, errors."""

    def __init__(self, files: Files, options: Options):
        self.files, self.options, self.problems = files, options, Problems()
        self.index = Index(files.images)
        self.pictures: Dict[str, Picture] = {}
        self.names: List[str] = list(options.classes or ())
        self.kinds: Counter = Counter()

    def picture(self, name: str, near: str, split: Optional[str], said: Tuple[int, int] = (0, 0)) -> Optional[Picture]:
        """The image of an annotation; None if it does not exist, cannot be read, or has another size than ``said``."""
        where = self.files.relative(near)
        path = self.index.find(name, near, split)
        if path is None:
            self.problems.add(NO_IMAGE, f'{where} ({name})', 'put the image back, or remove its annotation')
            return None
        if path in self.pictures:
            return self.pictures[path]
        known = sizes(path)
        if known is None:
            self.problems.add('image that cannot be read', self.files.relative(path), 'replace or remove it')
            return None
        if min(said) > 0 and tuple(said) not in known:
            self.problems.add(
                'image of another size than its annotation says',
                f'{self.files.relative(path)} ({known[0][0]}x{known[0][1]}, annotated at {said[0]}x{said[1]})',
                'annotate the file that is there, or put the annotated one back',
            )
            return None
        width, height = said if min(said) > 0 else known[1]
        split = split or split_of(path, self.files.root)
        self.pictures[path] = Picture(path, split, width=int(width), height=int(height))
        return self.pictures[path]

    def add(self, picture: Picture, label: int, box, where: str, polygons=None, crowd: int = 0) -> None:
        """Add one object; its box is x1, y1, x2, y2 in pixels."""
        x1, y1, x2, y2 = map(float, box)
        width, height = picture.width, picture.height
        if x2 - x1 < 1 or y2 - y1 < 1:
            self.problems.add('box of less than a pixel', where, 'draw it again, or remove it; it is left out')
            return
        if min(x1 / width, y1 / height) < -BEYOND or max(x2 / width, y2 / height) > 1 + BEYOND:
            self.problems.add(
                'box that reaches out of its image', where, 'is it of this image? It is cut off at the border'
            )
        x1, x2 = (min(max(x, 0.0), width) for x in (x1, x2))
        y1, y2 = (min(max(y, 0.0), height) for y in (y1, y2))
        if x2 - x1 < 1 or y2 - y1 < 1:  # nothing is left inside
            return
        one: Dict[str, Any] = dict(
            label=label, bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=int(crowd)
        )
        if polygons:
            one['segmentation'] = [[float(number) for number in polygon] for polygon in polygons]
            one['area'] = sum(map(_area, one['segmentation'])) or one['area']
        self.kinds['mask' if polygons else 'box'] += 1
        picture.objects.append(one)

    def label(self, name: str) -> Optional[int]:
        """The label of a class; None if the user named classes without this one."""
        if name not in self.names:
            if self.options.classes:
                return None
            self.names.append(name)
        return self.names.index(name)

    def data(self, format: str, notes: Sequence[str] = (), sort: bool = True) -> Data:
        """All that was read, for the task that fits it.

        Raises:
            UsageError: If some objects have masks and others not, and no task was named.
        """
        task = task_of(self.kinds['box'], self.kinds['mask'], self.options.task, format)
        pictures = list(self.pictures.values())
        for picture in pictures:
            for one in picture.objects if task == 'detection' else ():
                one.pop('segmentation', None)
            if task != 'detection':
                picture.objects = [one for one in picture.objects if 'segmentation' in one]
        if sort and not self.options.classes:
            order = sorted(range(len(self.names)), key=lambda i: _natural(self.names[i]))
            place = {old: new for new, old in enumerate(order)}
            self.names = [self.names[i] for i in order]
            for picture in pictures:
                for one in picture.objects:
                    one['label'] = place[one['label']]
        return Data(self.files.root, format, task, self.names, pictures, self.problems, list(notes))


def _natural(name: str) -> list:
    """Sort key that puts 2 before 10."""
    return [(0, int(part), '') if part.isdigit() else (1, 0, part) for part in re.findall(r'\d+|\D+', name)]


def task_of(boxes: int, masks: int, wanted: Optional[str], format: str) -> str:
    """Detection for boxes alone, instance segmentation for masks alone; the user decides on a mixture."""
    if wanted not in (None, 'detection', 'instance-segmentation'):
        raise UsageError(
            f'--task {wanted}: the data ({format}) are objects with boxes{" and masks" * bool(masks)}; expected '
            f'detection{" or instance-segmentation" * bool(masks)}'
        )
    if wanted == 'instance-segmentation' and not masks:
        raise UsageError(f'--task {wanted}: none of the {boxes} objects has a mask; expected --task detection')
    if wanted:
        return wanted
    if boxes and masks:
        raise UsageError(
            f'{masks} objects have masks and {boxes} have boxes alone: say --task detection (the boxes of all) or '
            f'--task instance-segmentation (leaves the {boxes} out)'
        )
    return 'instance-segmentation' if masks else 'detection'


def _area(polygon: Sequence[float]) -> float:
    """Area of a polygon x1, y1, x2, y2, ..., in pixels (the shoelace formula)."""
    xs, ys = polygon[0::2], polygon[1::2]
    return abs(sum(x * ys[i - 1] - xs[i - 1] * y for i, (x, y) in enumerate(zip(xs, ys)))) / 2


def _extent(points: Sequence[Sequence[float]]) -> Tuple[float, float, float, float]:
    xs, ys = zip(*points)
    return min(xs), min(ys), max(xs), max(ys)


# COCO


def read_coco(files: Files, options: Options, paths: List[str]) -> Data:
    """COCO's JSON, one file for each split or one for all."""
    if options.annotations:
        paths = [
            path
            for path in paths
            if fnmatch.fnmatch(files.relative(path), options.annotations)
            or fnmatch.fnmatch(os.path.basename(path), options.annotations)
        ]
        if not paths:
            raise UsageError(f'--annotations {options.annotations} matches no COCO file in {files.root}')
    splits = [split_word(os.path.basename(path)) or split_of(path, files.root) for path in paths]
    for split, count in Counter(splits).items():
        if count > 1:
            same = [files.relative(path) for path, one in zip(paths, splits) if one == split]
            raise UsageError(
                f'there are {count} COCO files of {split or "no named split"}: {some(same)}. Choose by --annotations, '
                f"such as --annotations '{os.path.basename(same[0])}'"
            )
    found = _Collector(files, options)
    for path, split in zip(paths, splits):
        _add_coco(found, read_tables(path, files.relative(path)), path, split)
    return found.data('coco', sort=False)


def _add_coco(found: _Collector, content: dict, path: str, split: Optional[str]) -> None:
    name = found.files.relative(path)
    used = {str(row.get('category_id')) for row in content['annotations']}
    categories = {}
    for category in sorted(content['categories'], key=lambda one: (not isinstance(one['id'], int), one['id'])):
        # Exports have a category above the others that no object is of.
        if str(category['id']) in used or category['name'] in found.names or category.get('supercategory') != 'none':
            label = found.label(category['name'])
            if label is not None:
                categories[str(category['id'])] = label
    images = {str(row['id']): row for row in content['images']}
    by_image: Dict[str, List[dict]] = {}
    for row in content['annotations']:
        by_image.setdefault(str(row.get('image_id')), []).append(row)
    for number, rows in by_image.items():
        if number not in images:
            found.problems.add(
                'annotation of an image that the file does not list', f'{name} (id {rows[0]["id"]})', 'remove it'
            )
    for number, image in images.items():
        said = (int(image['width']), int(image['height']))
        picture = found.picture(str(image['file_name']), path, split, said)
        for row in by_image.get(number, ()) if picture else ():
            where = f'{name} (annotation {row["id"]})'
            label = categories.get(str(row.get('category_id')))
            if label is None:
                if not found.options.classes:
                    found.problems.add('unknown category', where, 'add it to "categories", or remove the annotation')
                continue
            box, mask = row.get('bbox'), row.get('segmentation')
            if picture is None or not _are_numbers(box, 4):
                found.problems.add('annotation without a box [x, y, width, height]', where, 'correct it')
                continue
            polygons = [one for one in mask if _are_numbers(one) and len(one) >= 6] if isinstance(mask, list) else None
            before = len(picture.objects)
            x, y, width, height = row['bbox']
            crowd = row.get('iscrowd') or row.get('ignore') or 0
            found.add(picture, label, (x, y, x + width, y + height), where, polygons, crowd)
            if isinstance(mask, dict) and len(picture.objects) > before:  # RLE, as it is
                one = picture.objects[-1]
                one['segmentation'], one['area'] = mask, row.get('area') or one['area']
                found.kinds.update({'mask': 1, 'box': -1})


def _are_numbers(values, length: Optional[int] = None) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) == (length or len(values))
        and all(isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one) for one in values)
    )


# Pascal VOC


def read_voc(files: Files, options: Options, paths: List[str]) -> Data:
    """An XML file for each image; ``ImageSets/Main`` lists the splits if it exists."""
    found, listed = _Collector(files, options), _image_sets(files)
    difficult = 0
    for path in paths:
        name = files.relative(path)
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, UnicodeDecodeError) as error:
            found.problems.add('XML that cannot be read', f'{name} ({error})', READABLE)
            continue
        stem = os.path.splitext(os.path.basename(path))[0]
        split = listed.get(stem) or split_of(path, files.root)
        there = root.findtext('filename') or ''
        # Annotations of renamed images keep the old name; the name of the annotation file is more reliable.
        # Its suffix tells an image from the masks of the same name in SegmentationClass (VOC 2012).
        renamed = os.path.splitext(there)[0] != stem or there not in found.index.by_name
        image_name = stem if renamed and found.index.by_stem.get(stem) else there
        width, height = (int(_number(root.findtext(f'size/{side}')) or 0) for side in ('width', 'height'))
        picture = found.picture(image_name, path, split, (width, height))
        if picture is None:
            continue
        for number, one in enumerate(root.iter('object'), 1):
            where = f'{name} (object {number})'
            label = found.label((one.findtext('name') or '').strip())
            sides = (_number(one.findtext(f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax'))
            box = [side for side in sides if side is not None]
            if label is None:
                continue
            if not found.names[label] or len(box) < 4:
                found.problems.add('object without a name or box', where, 'correct it; it is left out')
                continue
            hard = int(_number(one.findtext('difficult')) or 0)
            difficult += hard
            # Pixels count from 1 there, and the last one is inside.
            found.add(picture, label, (box[0] - 1, box[1] - 1, *box[2:]), where, _voc_polygon(one), hard)
    notes = [f'{difficult} objects are marked difficult: neither trained on nor scored'] if difficult else []
    return found.data('voc', notes)


def _image_sets(files: Files) -> Dict[str, str]:
    """Stems of images by the lists of VOC."""
    splits = {}
    for path in files.others.get('.txt', ()):
        stem = os.path.splitext(os.path.basename(path))[0]
        if 'ImageSets' in path and stem in ('train', 'val', 'test'):
            with open(path, encoding='utf-8') as file:
                splits.update((line.split()[0], stem) for line in file if line.strip())
    return splits


def _voc_polygon(one) -> Optional[List[List[float]]]:
    """x1, y1, x2, y2, ... of ``<polygon>``, counted from 1."""
    found = [_number(child.text) for child in one.iterfind('polygon/*')]
    values = [value for value in found if value is not None]
    if len(values) < 6 or len(values) % 2 or len(values) < len(found):
        return None
    return [[value - 1 for value in values]]


def _number(text: Optional[str]) -> Optional[float]:
    try:
        number = float(text or '')
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# YOLO


def read_yolo(files: Files, options: Options, paths: List[str]) -> Data:
    """A text for each image: each line is a class, and a box or polygon as fractions of the image's sides."""
    found = _Collector(files, options)
    settings, yaml_path = _data_yaml(files)
    found.names = options.classes or _yolo_names(files, settings, yaml_path)
    splits = _yolo_splits(files, settings, yaml_path)
    texts = {os.path.splitext(os.path.basename(path))[0]: [] for path in paths}
    for path in paths:
        texts[os.path.splitext(os.path.basename(path))[0]].append(path)
    used, lengths, without = set(), Counter(), 0
    parsed = []
    for image in files.images:
        text = _label_file(image, texts)
        picture = found.picture(image, image, splits.get(image))
        if picture is None:
            used.add(text)
            continue
        if text is None:
            without += 1
            continue
        used.add(text)
        with open(text, encoding='utf-8', errors='replace') as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    values = [_number(word) for word in line.split()]
                    parsed.append((picture, values, f'{files.relative(text)}:{number}'))
                    lengths[len(values)] += 1
    if settings.get('kpt_shape') and options.task != 'detection':
        raise UsageError(f'{yaml_path} describes key points (kpt_shape); say --task detection to train on the boxes')
    if len(lengths) == 1 and 9 in lengths and options.task is None:
        raise UsageError(
            'every line has a class and four corners: turned boxes (OBB), or masks of four points. --task detection '
            '(upright boxes around them) or --task instance-segmentation (the corners as masks)'
        )
    for picture, values, where in parsed:
        _add_yolo(found, picture, values, where, bool(settings.get('kpt_shape')))
    for path in paths:
        if path not in used:
            found.problems.add(NO_IMAGE, files.relative(path), 'put the image back, or remove its annotation')
    notes = [f'{without} images have no label file: images without objects'] if without else []
    return found.data('yolo', notes, sort=False)


def _add_yolo(found: _Collector, picture: Picture, values: list, where: str, has_points: bool) -> None:
    if None in values or values[0] != int(values[0]) or len(values) < 5:
        found.problems.add('line that is not "class x y width height" or a polygon', where, 'correct it')
        return
    label, numbers = int(values[0]), values[1:]
    if not 0 <= label < len(found.names):
        found.problems.add(
            f'class number outside of the {len(found.names)} names', where, 'correct "names" in data.yaml, or the line'
        )
        return
    if max(map(abs, numbers[:4] if has_points else numbers)) > 1 + BEYOND:
        found.problems.add(
            'numbers that are no shares of the image (0 to 1)', where, 'divide pixels by width and height'
        )
        return
    sides = picture.width, picture.height
    if has_points or len(numbers) in (4, 5):  # the fifth is the score of a prediction
        x, y, width, height = (number * sides[i % 2] for i, number in enumerate(numbers[:4]))
        found.add(picture, label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), where)
        return
    if len(numbers) < 6 or len(numbers) % 2:
        found.problems.add('polygon of an odd number of coordinates', where, 'correct it; it is left out')
        return
    points = [(x * sides[0], y * sides[1]) for x, y in zip(numbers[0::2], numbers[1::2])]
    found.add(picture, label, _extent(points), where, [[number for point in points for number in point]])


def _data_yaml(files: Files) -> Tuple[dict, Optional[str]]:
    """The description of the data set: the YAML that has names."""
    found = []
    for path in [*files.others.get('.yaml', ()), *files.others.get('.yml', ())]:
        try:
            with open(path, encoding='utf-8') as file:
                content = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f'{files.relative(path)} cannot be read as YAML: {error}') from None
        if isinstance(content, dict) and 'names' in content:
            found.append((content, path))
    if len(found) > 1:
        raise UsageError(
            f'several files describe the data: {some(files.relative(path) for _, path in found)}; keep one'
        )
    return found[0] if found else ({}, None)


def _yolo_names(files: Files, settings: dict, yaml_path: Optional[str]) -> List[str]:
    names = settings.get('names')
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    if isinstance(names, list):
        return [str(name) for name in names]
    for paths in files.others.values():
        for path in paths:
            if os.path.basename(path).lower() in CLASS_FILES:
                with open(path, encoding='utf-8') as file:
                    return [line.strip() for line in file if line.strip()]
    raise UsageError(
        f'{files.root} has labels of YOLO and no names of the classes (data.yaml with "names", classes.txt). Say '
        f'--classes NAME,NAME,... in the order of the numbers'
    )


def _yolo_splits(files: Files, settings: dict, yaml_path: Optional[str]) -> Dict[str, str]:
    """The split of each image that data.yaml assigns."""
    splits: Dict[str, str] = {}
    for split in ('test', 'val', 'train'):
        entries = settings.get(split) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            at = _locate(str(entry), str(settings.get('path') or ''), os.path.dirname(yaml_path or ''), files.root)
            if at is None:
                continue  # the names of folders tell, as in exports with paths of another machine
            if os.path.isdir(at):
                splits.update((image, split) for image in files.images if image.startswith(at + os.sep))
                continue
            with open(at, encoding='utf-8') as file:
                index = Index(files.images)
                for line in file:
                    image = index.find(line.strip(), at, split) if line.strip() else None
                    if image:
                        splits[image] = split
    return splits


def _locate(entry: str, base: str, folder: str, root: str) -> Optional[str]:
    trimmed = re.sub(r'^(\.\./|\./)+', '', entry)
    for name in (os.path.join(base, entry), entry, os.path.join(base, trimmed), trimmed):
        for start in (folder, root):
            path = os.path.abspath(os.path.join(start, name))
            if os.path.exists(path) and (path + os.sep).startswith(root):
                return path
    return None


def _label_file(image: str, texts: Dict[str, List[str]]) -> Optional[str]:
    """The text of an image: in ``labels`` for one in ``images``, beside it, or the only one of its name."""
    stem = os.path.splitext(image)[0]
    found = texts.get(os.path.basename(stem), ())
    head, _, tail = stem.rpartition(f'{os.sep}images{os.sep}')
    wanted = [os.path.join(head, 'labels', f'{tail}.txt'), f'{stem}.txt']
    for path in wanted:
        if path in found:
            return path
    return found[0] if len(found) == 1 and not os.path.exists(wanted[0]) else None


# LabelMe


def read_labelme(files: Files, options: Options, paths: List[str]) -> Data:
    """A JSON file of shapes for each image; shapes of one group and label are one object."""
    found = _Collector(files, options)
    for path in paths:
        name = files.relative(path)
        try:
            with open(path, encoding='utf-8') as file:
                content = json.load(file)
            shapes = content['shapes']
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            found.problems.add('JSON that cannot be read', f'{name} ({error})', READABLE)
            continue
        stem = os.path.splitext(os.path.basename(path))[0]
        said = content.get('imagePath') or stem
        image_name = said if found.index.find(said, path) else stem
        size = (int(content.get('imageWidth') or 0), int(content.get('imageHeight') or 0))
        picture = found.picture(image_name, path, split_of(path, files.root), size)
        if picture is None:
            continue
        merged: Dict[tuple, Tuple[list, str]] = {}
        for number, shape in enumerate(shapes, 1):
            where = f'{name} (shape {number})'
            label = found.label(str(shape.get('label', '')))
            outline = _outline(shape)
            if label is None:
                continue
            if outline is None:
                kind = shape.get('shape_type', 'polygon')
                found.problems.add(f'shape that has no area ({kind})', where, 'draw a polygon or a rectangle')
            elif shape.get('shape_type') == 'rectangle':
                found.add(picture, label, _extent(outline), where)
            else:
                group = shape.get('group_id')
                group = f'shape {number}' if group is None else f'group {group}'
                merged.setdefault((label, group), ([], where))[0].append(outline)
        for (label, _), (outlines, where) in merged.items():
            points = [point for outline in outlines for point in outline]
            flat = [[number for point in outline for number in point] for outline in outlines]
            found.add(picture, label, _extent(points), where, flat)
    return found.data('labelme')


def _outline(shape: dict) -> Optional[List[List[float]]]:
    """The points of a shape's outline in pixels; None if it encloses nothing."""
    points, kind = shape.get('points'), shape.get('shape_type') or 'polygon'
    if not isinstance(points, list) or not all(_are_numbers(point, 2) for point in points):
        return None
    if kind == 'polygon' and len(points) >= 3:
        return points
    if kind == 'rectangle' and len(points) == 2:
        (x1, y1), (x2, y2) = points
        return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    if kind == 'circle' and len(points) == 2:
        (x, y), (u, v) = points
        radius = math.hypot(u - x, v - y)
        turns = [2 * math.pi * i / 36 for i in range(36)]
        return [[x + radius * math.cos(turn), y + radius * math.sin(turn)] for turn in turns]
    return None


def is_yolo_or_empty(path: str) -> bool:
    """True if a text may hold the labels of an image: it is empty, or begins with a number."""
    text = _ends(path).strip()
    return not text or bool(re.match(r'\d', text))
