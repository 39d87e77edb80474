"""What a folder of labelled images holds, whatever format it is in."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from PIL import Image

from ...datasets.sources import IMAGE_SUFFIXES
from ...errors import UsageError

TASKS = ('classification', 'detection', 'instance-segmentation', 'semantic-segmentation')
FORMATS = ('coco', 'voc', 'yolo', 'labelme', 'maps', 'folders', 'csv')
IGNORED = 255
# Words of folders and files that say which part of the data they are.
SPLITS = {
    'train': ('train', 'training', 'trainset'),
    'val': ('val', 'valid', 'validation', 'valset', 'dev'),
    'test': ('test', 'testing', 'testset'),
}
EXIF_ORIENTATION = 0x0112


@dataclass
class Picture:
    """One image with what is known about it.

    Attributes:
        path (str): Its file.
        split (str, optional): 'train', 'val' or 'test', if the data name it.
        group (str, optional): Images of one group stay in one split.
        width, height (int): In pixels, as its annotations count them.
        objects (list[dict]): For detection: 'label', 'bbox' [x, y, w, h] in pixels, 'area', 'iscrowd' and, with masks,
            'segmentation' as COCO writes it.
        label (int, optional): For classification.
        map (str, optional): For semantic segmentation: the file of its label map.
    """

    path: str
    split: Optional[str] = None
    group: Optional[str] = None
    width: int = 0
    height: int = 0
    objects: List[dict] = field(default_factory=list)
    label: Optional[int] = None
    map: Optional[str] = None


class Problems:
    """Errors in the data, by kind: which files, and what to do."""

    def __init__(self) -> None:
        self.found: Dict[Tuple[str, str], List[str]] = {}

    def add(self, what: str, where: str, mend: str) -> None:
        self.found.setdefault((what, mend), []).append(where)

    def __bool__(self) -> bool:
        return bool(self.found)

    def count(self, what: str) -> int:
        return sum(len(files) for (kind, _), files in self.found.items() if kind == what)

    def lines(self) -> List[Tuple[str, str, str]]:
        """For each kind: what and how often, the first files, and what to do."""
        return [
            (f'{what}: {len(files)}', ', '.join(files[:3]) + (', ...' if len(files) > 3 else ''), mend)
            for (what, mend), files in self.found.items()
        ]


@dataclass
class Data:
    """Labelled images of one task.

    Attributes:
        root (str): The folder that holds all images.
        format (str): One of :data:`FORMATS`.
        task (str): One of :data:`TASKS`.
        classes (list[str]): Names in the order of the labels.
        pictures (list[Picture]): The images that can be used.
        problems (Problems): Errors in the other images, or in annotations.
        notes (list[str]): What was decided, and why.
        palette (list, optional): An RGB colour for each class.
        values (dict): For label maps: the class, or 255 for none, of each number or colour.
    """

    root: str
    format: str
    task: str
    classes: List[str]
    pictures: List[Picture]
    problems: Problems
    notes: List[str] = field(default_factory=list)
    palette: Optional[List[Tuple[int, int, int]]] = None
    values: Dict = field(default_factory=dict)

    def of(self, split: str) -> List[Picture]:
        return [picture for picture in self.pictures if picture.split == split]

    def counts(self, split: Optional[str] = None) -> Counter:
        """Images or objects by label; empty for label maps."""
        counts: Counter = Counter()
        for picture in self.pictures:
            if split in (None, picture.split):
                counts.update(labels_of(picture))
        return counts

    def relative(self, path: str) -> str:
        return os.path.relpath(path, self.root)


def labels_of(picture: Picture) -> List[int]:
    """Labels of an image, once for each object."""
    return [picture.label] if picture.label is not None else [one['label'] for one in picture.objects]


@dataclass
class Options:
    """What a user may say about the data, where the files leave it open.

    Attributes:
        format, task (str, optional): Of :data:`FORMATS` and :data:`TASKS`.
        classes (list[str], optional): Names in the order of the labels.
        legend (str, optional): File of names with numbers or colours of label maps.
        annotations (str, optional): Glob of COCO files, where there are several of one split.
        label_column (str, optional): Column of the labels in a CSV file.
        group_by (str, optional): Regular expression; its match in a file's name, or its first group, is the group.
        val_share (float): Share of the images to validate on, if the data are not split.
        seed (int): Seed of the split.
    """

    format: Optional[str] = None
    task: Optional[str] = None
    classes: Optional[List[str]] = None
    legend: Optional[str] = None
    annotations: Optional[str] = None
    label_column: Optional[str] = None
    group_by: Optional[str] = None
    val_share: float = 0.2
    seed: int = 0


class Files(NamedTuple):
    """The files of a folder, by suffix; paths are absolute and sorted."""

    root: str
    images: List[str]
    others: Dict[str, List[str]]

    def relative(self, path: str) -> str:
        return os.path.relpath(path, self.root)


def survey(folder: Path) -> Files:
    """List a folder and all below it, without hidden files.

    Raises:
        UsageError: If there is no folder, or no image in it.
    """
    if not folder.is_dir():
        raise UsageError(f'there is no folder {folder}')
    images: List[str] = []
    others: Dict[str, List[str]] = {}
    seen = set()
    for inside, folders, names in os.walk(os.path.abspath(folder), followlinks=True):
        if os.path.realpath(inside) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(os.path.realpath(inside))
        folders[:] = sorted(name for name in folders if not name.startswith(('.', '__MACOSX')))
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith('.'):
                continue
            path = os.path.join(inside, name)
            images.append(path) if suffix in IMAGE_SUFFIXES else others.setdefault(suffix, []).append(path)
    if not images:
        listed = ', '.join(f'{len(paths)} *{suffix}' for suffix, paths in sorted(others.items())[:6]) or 'nothing'
        archive = next((path for suffix in ('.zip', '.gz', '.tar', '.7z') for path in others.get(suffix, ())), None)
        hint = f'; unpack {os.path.basename(archive)} first' if archive else ''
        raise UsageError(f'there is no image in {folder} ({", ".join(IMAGE_SUFFIXES)}). It holds {listed}{hint}')
    return Files(os.path.abspath(folder), images, others)


def split_word(name: str) -> Optional[str]:
    """The split that the name of a folder or file means: 'val' for 'valid', 'instances_val2017.json'.

    None for a name that means none, or two, such as 'trainval'.
    """
    words = set(re.findall('[a-z]+', os.path.splitext(name.lower())[0]))
    found = [split for split, known in SPLITS.items() if words & set(known)]
    return found[0] if len(found) == 1 else None


def split_of(path: str, root: str) -> Optional[str]:
    """The split that the folders below ``root`` name, the innermost first."""
    parts = os.path.relpath(path, root).split(os.sep)[:-1]
    return next((split for split in map(split_word, reversed(parts)) if split), None)


class Index:
    """Finds image files by what annotations call them: a path of any machine, a name, or a name without suffix."""

    def __init__(self, images: Iterable[str]):
        self.by_name: Dict[str, List[str]] = {}
        self.by_stem: Dict[str, List[str]] = {}
        for path in images:
            name = os.path.basename(path)
            self.by_name.setdefault(name, []).append(path)
            self.by_stem.setdefault(os.path.splitext(name)[0], []).append(path)

    def find(self, name: str, near: str, split: Optional[str] = None) -> Optional[str]:
        """The image of that name; of several, the one whose folders match name, split and annotation best.

        Args:
            name (str): As annotations write it.
            near (str): The file of the annotation.
            split (str, optional): Split of the annotation.

        Raises:
            UsageError: If several images match equally well.
        """
        parts = name.replace('\\', '/').split('/')
        found = self.by_name.get(parts[-1]) or self.by_stem.get(parts[-1])
        found = found or self.by_stem.get(os.path.splitext(parts[-1])[0])
        if not found or len(found) == 1:
            return found[0] if found else None

        def agreement(path: str) -> Tuple[int, int, int, int]:
            theirs = path.split(os.sep)
            tail = next((i for i, (a, b) in enumerate(zip(reversed(theirs), reversed(parts))) if a != b), len(parts))
            same_split = any(split_word(part) == split for part in theirs[:-1]) if split else 0
            folder = os.path.dirname(path)
            siblings = set(folder.split(os.sep)) & set(os.path.dirname(near).split(os.sep))
            return tail, int(same_split), int(folder == os.path.dirname(near)), len(siblings)

        ranked = sorted(found, key=agreement, reverse=True)
        if agreement(ranked[0]) == agreement(ranked[1]):
            raise UsageError(
                f'{near} names the image {name!r}, and there are {len(found)}: {", ".join(ranked[:3])}. Give the '
                f'images names of their own, or remove the copies'
            )
        return ranked[0]


def sizes(path: str) -> Optional[Tuple[Tuple[int, int], Tuple[int, int]]]:
    """Width and height as stored and after EXIF rotation, from the header alone; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            stored = image.size
            # For a PNG without EXIF data, Pillow would decode all pixels to search behind them.
            has_note = image.format != 'PNG' or 'exif' in image.info
            turned = has_note and image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # of any plugin
        return None
    return stored, stored[::-1] if turned else stored


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first names, and how many more."""
    names = list(names)
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')
