"""Readers of images with one class each: a folder for each class, or a table of file and label."""

import csv
import os
from collections import Counter
from typing import Dict, List, Optional, Tuple

from ...errors import UsageError
from .data import Data, Files, Index, Options, Picture, Problems, sizes, some, split_word
from .detection import _natural
from .maps import FOLDER, LOSSLESS, stems

LOOKED_AT = 200  # rows that tell what the columns of a table are
FILE_WORDS = ('file', 'filename', 'file_name', 'image', 'image_id', 'img', 'path', 'filepath', 'id', 'name')
LABEL_WORDS = ('label', 'class', 'category', 'target', 'species', 'diagnosis', 'class_name', 'label_name')
SPLIT_WORDS, GROUP_WORDS = ('split', 'set', 'subset', 'partition'), ('group', 'group_id', 'patient', 'patient_id')
BOX_WORDS = ('xmin', 'x_min', 'bbox', 'x1')


def class_folders(files: Files) -> Tuple[Dict[str, Tuple[Optional[str], Tuple[str, ...]]], int]:
    """For each image its split and the folders below it, without those that all images have in common.

    Returns:
        tuple: The folders by image, and how many folders all of them have in common.
    """
    found = {}
    for path in files.images:
        parts = os.path.relpath(path, files.root).split(os.sep)[:-1]
        split = split_word(parts[0]) if parts else None
        found[path] = (split, tuple(parts))
    if not all(split for split, _ in found.values()):
        common = os.path.commonprefix([list(parts) for _, parts in found.values()])
        if common and any(len(parts) > len(common) for _, parts in found.values()):
            inner = {path: parts[len(common) :] for path, (_, parts) in found.items()}
            found = {path: (split_word(parts[0]) if parts else None, tuple(parts)) for path, parts in inner.items()}
    if all(split for split, _ in found.values()):
        found = {path: (split, parts[1:]) for path, (split, parts) in found.items()}
    else:
        found = {path: (None, parts) for path, (_, parts) in found.items()}
    return found, max((len(parts) for _, parts in found.values()), default=0)


def read_folders(files: Files, options: Options) -> Data:
    """Images in one folder for each class, below folders of train, val and test if there are any."""
    found, depth = class_folders(files)
    names = {parts[0] for _, parts in found.values() if parts}
    if depth == 0:
        raise UsageError(
            f'{files.root} has {len(files.images)} images and nothing that labels them: expected a folder for each '
            f'class, COCO, VOC, YOLO or LabelMe annotations, label maps, or a CSV of file and label'
        )
    if len(names) < 2:
        raise UsageError(
            f'all images of {files.root} are in the one folder {next(iter(names))!r}: a classifier needs at least two '
            f'classes, each in a folder of its own'
        )
    deep = [path for path, (_, parts) in found.items() if len(parts) > 1]
    if deep:
        raise UsageError(
            f'the folders of {files.root} are nested {depth} deep, such as {files.relative(deep[0])}: which of them is '
            f'the class? Expected SPLIT/CLASS/IMAGE or CLASS/IMAGE. Give the folder above the classes as DATA, or move '
            f'the images'
        )
    if options.format != 'folders':
        _refuse_maps(files, {path: parts[0] for path, (_, parts) in found.items() if parts})
    rows = []
    problems = Problems()
    for path, (split, parts) in found.items():
        if parts:
            rows.append((path, split, None, parts[0]))
        else:
            problems.add('image outside of the folders of classes', files.relative(path), 'move it into one')
    return _data(files, options, 'folders', rows, problems, [])


def _refuse_maps(files: Files, folders: Dict[str, str]) -> None:
    """Refuse images with label maps that could not be read as such: 'images' and 'masks' are no classes.

    Args:
        folders (dict): The folder of each image.

    Raises:
        UsageError: If a folder is called as maps are, and each of its files like an image of another folder.
    """
    for name in sorted({name for name in folders.values() if FOLDER.search(name)}):
        inside = [path for path, folder in folders.items() if folder == name]
        outside = {os.path.splitext(os.path.basename(path))[0] for path, folder in folders.items() if folder != name}
        if all(stems(path) & outside for path in inside):
            raise UsageError(
                f'{files.root} looks like images with label maps in {name!r}, but {files.relative(inside[0])} cannot '
                f'be read as one: expected {", ".join(LOSSLESS)} of a value or colour for each class (JPEG changes '
                f'them). Write the maps anew; or say --format folders if the folders are classes'
            )


def read_csv(files: Files, options: Options, paths: List[str]) -> Data:
    """A table whose rows name an image and its label, and perhaps split and group; one table for each split, or one."""
    rows, problems, notes = [], Problems(), []
    index = Index(files.images)
    for path in paths:
        name = files.relative(path)
        header, body = _table(path, name)
        columns = _columns(header, body, index, path, name, options)
        said = split_word(os.path.basename(path)) if len(paths) > 1 else None
        notes.append(
            f'{name}: images from the column {header[columns["file"]]!r}, labels from {header[columns["label"]]!r}'
        )
        for number, row in enumerate(body, 2):
            values = {key: row[at].strip() if at < len(row) else '' for key, at in columns.items()}
            where = f'{name}:{number}'
            if not values['label']:
                problems.add('row without a label', where, 'label it, or remove the row')
                continue
            split = split_word(values.get('split', '')) or said
            image = index.find(values['file'], path, split)
            if image is None:
                problems.add(
                    'row whose image does not exist', f'{where} ({values["file"]})', 'put it back, or remove it'
                )
            else:
                rows.append((image, split, values.get('group') or None, values['label']))
    labels: Dict[str, set] = {}
    for image, _, _, label in rows:
        labels.setdefault(image, set()).add(label)
    several = [files.relative(image) for image, found in labels.items() if len(found) > 1]
    if several:
        raise UsageError(
            f'{len(several)} images have several labels, such as {some(several, 3)}: expected one class each. '
            f'Keep one row for each'
        )
    listed = len(labels)
    if listed < len(files.images):
        notes.append(f'{len(files.images) - listed} images are in no row, and are left out')
    unique = list({row[0]: row for row in rows}.values())
    return _data(files, options, 'csv', unique, problems, notes)


def _table(path: str, name: str) -> Tuple[List[str], List[List[str]]]:
    with open(path, newline='', encoding='utf-8-sig', errors='replace') as file:
        text = file.read()
    try:
        dialect = csv.Sniffer().sniff(text[:20000], delimiters=',;\t')
    except csv.Error:
        dialect = csv.excel
    rows = [row for row in csv.reader(text.splitlines(), dialect) if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise UsageError(f'{name} has {len(rows)} rows; expected a header, and a row for each image')
    return [cell.strip() for cell in rows[0]], rows[1:]


def _columns(header, body, index: Index, path: str, name: str, options: Options) -> Dict[str, int]:
    """Which column has the files, labels, splits and groups."""
    lowered = [one.lower() for one in header]
    if any(word in lowered for word in BOX_WORDS):
        raise UsageError(f'{name} is a table of boxes ({", ".join(header)}); expected COCO, VOC, YOLO or LabelMe')
    looked = body[:LOOKED_AT]

    def share(at: int) -> float:
        cells = [row[at].strip() for row in looked if at < len(row) and row[at].strip()]
        return sum(index.find(cell, path) is not None for cell in cells) / len(cells) if cells else 0.0

    shares = [share(at) for at in range(len(header))]
    best = max(range(len(header)), key=lambda at: (shares[at], lowered[at] in FILE_WORDS))
    if shares[best] == 0:
        first = looked[0][0] if looked[0] else ''
        raise UsageError(
            f'no column of {name} ({", ".join(header)}) names images of {index_root(index)}; its first row begins with '
            f'{first!r}. A header is expected in the first row'
        )
    columns = {'file': best}
    for key, words in (('split', SPLIT_WORDS), ('group', GROUP_WORDS)):
        at = next((i for i, one in enumerate(lowered) if one in words and i != best), None)
        if at is not None:
            columns[key] = at
    rest = [at for at in range(len(header)) if at not in columns.values() and header[at]]
    if options.label_column:
        if options.label_column not in header:
            raise UsageError(f'--label-column {options.label_column}: {name} has the columns {", ".join(header)}')
        columns['label'] = header.index(options.label_column)
        return columns
    named = [at for at in rest if lowered[at] in LABEL_WORDS]
    if len(named) == 1 or len(rest) == 1:
        columns['label'] = (named or rest)[0] if len(named) == 1 else rest[0]
        return columns
    raise UsageError(f'which column of {name} has the labels? It has {", ".join(header)}; say --label-column NAME')


def index_root(index: Index) -> str:
    paths = [path for found in index.by_name.values() for path in found]
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def _data(files: Files, options: Options, format: str, rows: list, problems: Problems, notes: List[str]) -> Data:
    if options.task not in (None, 'classification'):
        raise UsageError(f'--task {options.task}: the data ({format}) have one class for each image: classification')
    there = sorted({row[3] for row in rows}, key=_natural)
    classes = list(options.classes or there)
    unknown = [one for one in there if one not in classes]
    if unknown:
        notes.append(f'images of {some(unknown)} are left out, since --classes does not name them')
    place = {name: label for label, name in enumerate(classes)}
    pictures = []
    for path, split, group, label in rows:
        if label not in place:
            continue
        known = sizes(path)
        if known is None:
            problems.add('image that cannot be read', files.relative(path), 'replace or remove it')
            continue
        width, height = known[1]
        pictures.append(Picture(path, split, group, width, height, label=place[label]))
    counts = Counter(picture.label for picture in pictures)
    if len(classes) < 2 and pictures:
        raise UsageError(f'all images are of the class {classes[0]!r}: a classifier needs at least two')
    if len(pictures) >= 4 and len(counts) > len(pictures) / 2:
        raise UsageError(
            f'{len(counts)} classes for {len(pictures)} images: most classes have a single image, so nothing can be '
            f'learned from one and tested on another. Is {files.root} a folder for each class, or the label column the '
            f'right one (--label-column)?'
        )
    return Data(files.root, format, 'classification', classes, pictures, problems, notes)
