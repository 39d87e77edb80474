"""Detect the format of a folder of labelled images, and read it. Ambiguous data are refused."""

import os
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, List, Union

from ...errors import UsageError
from . import classification, detection, maps
from .data import FORMATS, TASKS, Data, Files, Options, some, split_of, survey

LOOKED_AT = 50  # files of a suffix that tell what they are
LEAST_OF_CLASS = 5  # images in a folder that may be a class; fewer are pictures of a README
MOST_CLASSES = {'semantic-segmentation': 255, 'detection': 5000, 'instance-segmentation': 5000}
# Texts that YOLO's folders hold beside the labels.
NO_LABELS = ('classes.txt', 'labels.txt', 'obj.names', 'labelmap.txt', 'legend.txt', 'label_colors.txt')


def read(path: Union[str, Path], options: Options) -> Data:
    """Read the labelled images of a folder, or of the file that describes them.

    Args:
        path (str | Path): A folder, or a COCO JSON, data.yaml or CSV in the folder.
        options (Options): What the user says about them.

    Raises:
        UsageError: If there is nothing to read, or several formats fit.
    """
    path = Path(path).expanduser()
    if options.task not in (None, *TASKS):
        raise UsageError(f'--task is one of {", ".join(TASKS)}, got {options.task}')
    if not path.exists():
        raise UsageError(f'there is no folder or file {path}')
    files = survey(path if path.is_dir() else path.parent)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix not in ('.json', '.yaml', '.yml', '.csv', '.tsv'):
            raise UsageError(f'{path} is no folder; expected one, or a COCO .json, a data.yaml or a .csv')
        kept = {'.json', '.csv', '.tsv', '.yaml', '.yml'}
        others = {one: found for one, found in files.others.items() if one not in kept}
        files = files._replace(others={**others, suffix: [os.path.abspath(path)]})
    found = _candidates(files)
    if options.format:
        if options.format not in FORMATS:
            raise UsageError(f'--format is one of {", ".join(FORMATS)}, got {options.format}')
        if options.format not in found:
            raise UsageError(
                f'--format {options.format}: nothing in {files.root} is of that kind; it looks like '
                f'{", ".join(found) or "images alone"}'
            )
        found = {options.format: found[options.format]}
    if len(found) > 1:
        raise UsageError(
            f'{files.root} could be read in {len(found)} ways: {", ".join(found)}. Choose one with --format, such as '
            f'--format {next(iter(found))}, or give the folder that holds one alone'
        )
    data = next(iter(found.values()))(files, options) if found else classification.read_folders(files, options)
    data = _checked(data)
    if path.is_dir() and not options.format:
        _refuse_other_folders(data, files)
    return data


def _candidates(files: Files) -> Dict[str, Callable[[Files, Options], Data]]:
    """All formats that fit the files, with their readers."""
    others = files.others
    coco = [path for path in others.get('.json', ()) if detection.is_coco(path)]
    rest = [path for path in others.get('.json', ()) if path not in coco]
    labelme = rest if any(map(detection.is_labelme, rest[:LOOKED_AT])) else []
    xml = others.get('.xml', [])
    voc = xml if any(map(detection.is_voc, xml[:LOOKED_AT])) else []
    texts = [path for path in others.get('.txt', ()) if os.path.basename(path).lower() not in NO_LABELS]
    yolo = texts if any(map(detection.is_yolo, texts[:LOOKED_AT])) else []
    yolo = [path for path in yolo if _may_be_labels(path)]
    tables = [*others.get('.csv', ()), *others.get('.tsv', ())]
    tables = [path for path in tables if os.path.basename(path).lower() not in maps.LEGENDS]
    found: Dict[str, Callable[[Files, Options], Data]] = {}
    if coco:
        found['coco'] = lambda files, options: detection.read_coco(files, options, coco)
    if voc:
        found['voc'] = lambda files, options: detection.read_voc(files, options, voc)
    if yolo:
        found['yolo'] = lambda files, options: detection.read_yolo(files, options, yolo)
    if labelme:
        found['labelme'] = lambda files, options: detection.read_labelme(files, options, labelme)
    pairs = maps.find_pairs(files)
    if len(pairs) >= max(1, (len(files.images) - len(pairs)) / 2):
        found['maps'] = lambda files, options: maps.read_maps(files, options, pairs)
    if tables and not found:
        found['csv'] = lambda files, options: classification.read_csv(files, options, tables)
    # Folders of classes beside a table of labels; beside annotations the folders are splits or batches.
    if set(found) <= {'csv'}:
        by_image, depth = classification.class_folders(files)
        if depth and len({parts[0] for _, parts in by_image.values() if parts}) > 1:
            found['folders'] = classification.read_folders
    return found


def _refuse_other_folders(data: Data, files: Files) -> None:
    """Refuse annotations beside folders of images that they leave out: the folders may be classes.

    Images of the test split are often not annotated. An image named like an annotated one is its mask, or a copy of it.

    Raises:
        UsageError: If there are two such folders or more.
    """
    if data.format not in ('coco', 'voc', 'labelme'):
        return
    annotated = {picture.path for picture in data.pictures}
    places = {os.path.dirname(path) for path in annotated}
    stems = {Path(path).stem for path in annotated}
    rest = [
        path
        for path in files.images
        if os.path.dirname(path) not in places and Path(path).stem not in stems and split_of(path, files.root) != 'test'
    ]
    by_image, _ = classification.class_folders(files._replace(images=rest))
    counts = Counter(parts[0] for _, parts in by_image.values() if parts)
    folders = sorted(name for name, count in counts.items() if count >= LEAST_OF_CLASS)
    if len(folders) > 1:
        count = sum(counts[name] for name in folders)
        raise UsageError(
            f'{files.root} could be read in 2 ways: {data.format} annotates {len(data.pictures)} images and none of '
            f'the {count} in {some(folders)}. Are these folders classes, or images to leave out? Give the folder that '
            f'holds the classes alone as DATA, or leave them out with --format {data.format}'
        )


def _may_be_labels(path: str) -> bool:
    """True if a text may hold the labels of an image, and is no list of images."""
    return os.path.basename(os.path.dirname(path)) != 'Main' and detection.is_yolo_or_empty(path)


def _checked(data: Data) -> Data:
    """Refuse data that cannot be trained on."""
    problems = '; '.join(f'{what} ({where})' for what, where, _ in data.problems.lines()[:4])
    why = f'. Found: {problems}' if problems else ''
    if not data.pictures:
        raise UsageError(f'no image of {data.root} ({data.format}) can be used{why}')
    if len(data.pictures) < 2:
        raise UsageError(
            f'{data.root} ({data.format}) has one image that can be used: at least two are needed, one to train and '
            f'one to validate on{why}'
        )
    if data.task in ('detection', 'instance-segmentation') and not any(one.objects for one in data.pictures):
        raise UsageError(f'none of the {len(data.pictures)} images of {data.root} ({data.format}) has an object{why}')
    if not data.classes:
        raise UsageError(f'{data.root} ({data.format}) names no classes{why}')
    most = MOST_CLASSES.get(data.task)
    if most and len(data.classes) > most:
        raise UsageError(
            f'{data.root} ({data.format}) has {len(data.classes)} classes, and {data.task} takes {most} at most. Are '
            f'these names of classes? --classes A,B,... selects some of them'
        )
    return data


def describe(data: Data) -> List[str]:
    """One line of what was found, for logs."""
    return [f'{data.format}: {len(data.pictures)} images of {len(data.classes)} classes, {data.task}', *data.notes]
