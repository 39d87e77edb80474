"""Reader of images with label maps: grey values, palettes, or colours with a legend."""

import os
import re
from collections import Counter
from functools import partial
from typing import Dict, List, Optional, Sequence, Set, Tuple

import numpy as np
from PIL import Image

from ...errors import UsageError
from .data import IGNORED, Data, Files, Options, Picture, Problems, sizes, some, split_of

LOSSLESS = ('.png', '.bmp', '.tif', '.tiff', '.pgm', '.ppm')
MOST_COLOURS = 64  # in one map; a photograph has more
# Ends of the names of folders that hold maps.
FOLDER = re.compile(r'(mask|label|annot|annotation|gt|ground_?truth|seg|segmentation)s?$', re.I)
LOOKED_AT = 10  # files of a folder that tell whether it holds maps
# Suffixes that turn the name of an image into that of its map.
SUFFIX = re.compile(r'[-_ .]?(mask|masks|label|labels|labelids|labeltrainids|gt|seg|segmentation|l|annotation)$', re.I)
LEGENDS = (
    'labelmap.txt',
    'classes.txt',
    'class_dict.csv',
    'label_colors.txt',
    'legend.txt',
    'legend.csv',
    'labels.txt',
)

Value = object  # a number, or a colour of three


def find_pairs(files: Files) -> Dict[str, str]:
    """The map of each image that has one: of the same name, but for a suffix, in a file of few colours."""
    by_folder: Dict[str, List[str]] = {}
    for path in files.images:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    maps: Dict[str, List[str]] = {}
    images: List[str] = []
    for paths in by_folder.values():
        lossless = [path for path in paths if path.lower().endswith(LOSSLESS)]
        # Maps beside their images are known by their suffix; else all files of a folder are maps, or none.
        marked = [path for path in lossless if SUFFIX.search(_stem(path)) and SUFFIX.sub('', _stem(path))]
        mixed = len(lossless) < len(paths)
        tried = lossless if mixed or not marked or len(marked) == len(lossless) else marked
        step = max(1, len(tried) // LOOKED_AT)
        looks = [_is_map(path) for path in tried[::step]]
        is_maps = any(looks) and False not in looks
        chosen = set(tried) if is_maps else set()
        images += [path for path in paths if path not in chosen]
        for path in chosen:
            for stem in stems(path):
                maps.setdefault(stem, []).append(path)
    pairs = {}
    for path in images:
        found = list(dict.fromkeys(maps.get(_stem(path), ())))
        if found:
            pairs[path] = max(found, key=partial(_closeness, path))
    return pairs


def stems(path: str) -> Set[str]:
    """The names of the image that a file may be the map of."""
    stem = _stem(path)
    return {stem, SUFFIX.sub('', stem) or stem}


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _closeness(image: str, path: str) -> Tuple[bool, int]:
    """Sort key for maps of one name: the same split counts first, then common folders."""
    theirs, ours = (set(os.path.dirname(one).split(os.sep)) for one in (path, image))
    return split_of(path, '/') == split_of(image, '/'), len(theirs & ours)


def _is_map(path: str) -> Optional[bool]:
    """True for a file of few colours; None if it cannot be read, which :func:`read_maps` reports."""
    try:
        with Image.open(path) as image:
            if image.mode in ('P', '1'):
                return True
            if image.mode not in ('L', 'LA', 'RGB', 'RGBA', 'I', 'I;16'):
                return False
            colours = image.convert('RGB' if image.mode.startswith('RGB') else 'L').getcolors(MOST_COLOURS)
            return colours is not None
    except Exception:  # of any plugin
        return None


def read_map(path: str, as_colours: bool = False) -> np.ndarray:
    """The numbers of a map (H, W), or its colours (H, W, 3) where they are what counts.

    Raises:
        OSError: If it cannot be read.
    """
    with Image.open(path) as image:
        if image.mode in ('RGB', 'RGBA', 'LA'):
            colours = np.asarray(image.convert('RGB'))
            if not as_colours and (colours[..., :1] == colours).all():
                return colours[..., 0]
            return colours
        if as_colours:
            return np.asarray(image.convert('RGB'))
        return np.asarray(image).astype(np.int64 if image.mode.startswith('I') else np.uint8)


def values_of(labels: np.ndarray) -> Counter:
    """Number of pixels of each number or colour."""
    if labels.ndim == 2:
        counts = np.bincount(labels.ravel().astype(np.int64), minlength=1)
        return Counter({int(i): int(counts[i]) for i in np.flatnonzero(counts)})
    packed = labels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    numbers, counts = np.unique(packed, return_counts=True)
    return Counter({(n >> 16, n >> 8 & 255, n & 255): int(c) for n, c in zip(numbers.tolist(), counts)})


def read_maps(files: Files, options: Options, pairs: Dict[str, str]) -> Data:
    """Read images with a label map each."""
    if options.task not in (None, 'semantic-segmentation'):
        raise UsageError(f'--task {options.task}: the data are images with label maps: semantic-segmentation')
    problems, notes = Problems(), []
    pictures, totals = [], Counter()
    legend = _legend(files, options)
    as_colours = any(isinstance(value, tuple) for value in legend)
    palette = None
    for path, map_path in sorted(pairs.items()):
        known = sizes(path)
        where = files.relative(map_path)
        if known is None:
            problems.add('image that cannot be read', files.relative(path), 'replace or remove it')
            continue
        try:
            labels = read_map(map_path, as_colours)
            palette = palette or _palette(map_path)
        except Exception as error:  # of any plugin
            problems.add('label map that cannot be read', f'{where} ({error})', 'replace or remove it')
            continue
        if labels.shape[1::-1] not in known:
            problems.add(
                'label map of another size than its image',
                f'{where} ({labels.shape[1]}x{labels.shape[0]}, image {known[0][0]}x{known[0][1]})',
                'write it anew in the size of the image, without smoothing',
            )
            continue
        totals.update(values_of(labels))
        height, width = labels.shape[:2]
        pictures.append(Picture(path, split_of(path, files.root), None, width, height, map=map_path))
    used = set(pairs.values())
    for path in files.images:
        if path not in pairs and path not in used:
            problems.add('image without a label map', files.relative(path), 'label it; it is left out')
    if not pictures:
        return Data(files.root, 'maps', 'semantic-segmentation', list(options.classes or ()), [], problems)
    classes, values = _classes(totals, legend, options, notes)
    unknown = {value: count for value, count in totals.items() if value not in values}
    if unknown:
        share = sum(unknown.values()) / sum(totals.values())
        problems.add(
            f'values that are no class ({some(map(str, unknown), 5)}), {share:.1%} of the pixels',
            'all maps',
            'name them in the legend; these pixels are ignored',
        )
    colours = [value for value in values if isinstance(value, tuple) and values[value] != IGNORED]
    if len(colours) == len(classes):
        palette = sorted(colours, key=values.get)
    elif palette:
        palette = palette[: len(classes)]
    palette = palette if palette and len(palette) == len(set(palette)) == len(classes) else None
    return Data(files.root, 'maps', 'semantic-segmentation', classes, pictures, problems, notes, palette, values)


def _palette(path: str) -> Optional[List[Tuple[int, int, int]]]:
    with Image.open(path) as image:
        if image.mode != 'P':
            return None
        flat = image.getpalette() or []
    return [tuple(flat[i : i + 3]) for i in range(0, len(flat), 3)]


def _legend(files: Files, options: Options) -> Dict[Value, str]:
    """Names by number or colour, from the user's file or from one beside the maps."""
    if options.legend:
        if not os.path.isfile(options.legend):
            raise UsageError(f'there is no file {options.legend} (--legend)')
        return _read_legend(options.legend)
    for paths in files.others.values():
        for path in paths:
            if os.path.basename(path).lower() in LEGENDS and not options.classes:
                return _read_legend(path)
    return {}


def _read_legend(path: str) -> Dict[Value, str]:
    """Read lines of a name and a colour or a number, in any order and with any separators; names alone count from 0."""
    legend: Dict[Value, str] = {}
    plain: List[str] = []
    with open(path, encoding='utf-8-sig') as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if not line or line.startswith('#') or re.match(r'(name|class)\W+(r|red)\W+(g|green)\b', line, re.I):
                continue
            parts = [part for part in re.split(r'[,;:\t ]+', line) if part]
            numbers = [int(part) for part in parts if part.isdigit()]
            name = ' '.join(part for part in parts if not part.isdigit()) or str(number - 1)
            if len(numbers) >= 3:
                legend[tuple(numbers[-3:] if parts[0] == name.split(' ')[0] else numbers[:3])] = name
            elif len(numbers) == 1 and len(parts) > 1:
                legend[numbers[0]] = name
            else:
                plain.append(line)
    if legend and plain:
        raise UsageError(f'{path}: {some(plain, 3)} has no number or colour; expected "name r g b" or "name number"')
    return legend or dict(enumerate(plain))


def _classes(totals: Counter, legend: Dict[Value, str], options: Options, notes: List[str]):
    """Class names, and the class of each value.

    Raises:
        UsageError: If the classes of the values are ambiguous.
    """
    there = sorted(totals, key=lambda value: (isinstance(value, tuple), value))
    if legend:
        names = list(dict.fromkeys(options.classes or legend.values()))
        ignored = ('ignore', 'ignored', 'unlabeled', 'unlabelled', 'void', 'unlabeled area')
        names = [name for name in names if options.classes or name.lower() not in ignored]
        left = [name for name in legend.values() if name not in names]
        if left:
            notes.append(f'pixels of {some(left)} are ignored')
        return names, {value: names.index(name) if name in names else IGNORED for value, name in legend.items()}
    if any(isinstance(value, tuple) for value in there):
        listed = ', '.join(f'{" ".join(map(str, value))} ({totals[value]} pixels)' for value in there[:8])
        raise UsageError(
            f'the maps hold {len(there)} colours, and nothing says which class each is: {listed}. Write a text with a '
            f'line "name r g b" for each, and give it as --legend FILE'
        )
    numbers = [value for value in there if value != IGNORED]
    highest = max(numbers, default=-1)
    if options.classes:
        names = options.classes
        in_order = {value: label for label, value in enumerate(there)}
        if len(there) == len(names) and (highest >= len(names) or there == [0, IGNORED]):
            notes.append(f'the values {some(map(str, there))} of the maps are the classes {some(names)}, in this order')
            return list(names), in_order
        if len(there) == len(names) and IGNORED in there:
            raise UsageError(
                f'the maps hold the values {some(map(str, there), 12)}: 255 may be the class {names[-1]!r}, or mean '
                f'"ignored" with that class absent. Write a text with a line "name number" for each class, and give it '
                f'as --legend FILE'
            )
        if highest >= len(names):
            raise UsageError(
                f'the maps hold the values {some(map(str, there), 12)}, and --classes has {len(names)}. Name all, '
                f'or write a text with a line "name number" for each, and give it as --legend FILE'
            )
        return list(names), {**{value: value for value in range(len(names))}, IGNORED: IGNORED}
    if there == [0, IGNORED]:
        raise UsageError(
            'the maps hold 0 and 255 alone. 255 may be the object, or mean "ignored": --classes background,NAME says '
            'the first; for the second, there is nothing to learn'
        )
    if len(numbers) > 1 and numbers == list(range(numbers[0], highest + 1)) and numbers[0] in (0, 1):
        notes.append('the maps have no legend, so classes are called by their numbers; --classes A,B,... names them')
        if IGNORED in there:
            notes.append('pixels of 255 are ignored')
        return [str(value) for value in numbers], {
            **{value: label for label, value in enumerate(numbers)},
            IGNORED: IGNORED,
        }
    raise UsageError(
        f'the maps hold the values {some(map(str, there), 12)}: not 0, 1, 2, ... without gaps, and it is not clear '
        f'which are classes. Say --classes A,B,... with a name for each, in this order, or give --legend FILE with '
        f'lines "name number"'
    )


def apply_values(labels: np.ndarray, values: Dict[Value, int]) -> np.ndarray:
    """A map of classes (H, W) uint8, 255 where there is none."""
    if labels.ndim == 2:
        table = np.full(max(int(labels.max(initial=0)), 255) + 1, IGNORED, np.uint8)
        for value, label in values.items():
            if isinstance(value, int) and value < len(table):
                table[value] = label
        return table[labels]
    packed = labels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    out = np.full(packed.shape, IGNORED, np.uint8)
    for value, label in values.items():
        if isinstance(value, tuple):
            out[packed == (value[0] << 16 | value[1] << 8 | value[2])] = label
    return out


def has_colours(values: Dict[Value, int]) -> bool:
    return any(isinstance(value, tuple) for value in values)


def pixel_counts(data: Data, pictures: Sequence[Picture]) -> Counter:
    """Pixels by class, of the maps of these images."""
    counts: Counter = Counter()
    for picture in pictures:
        for value, count in values_of(read_map(picture.map or '', has_colours(data.values))).items():
            if data.values.get(value, IGNORED) != IGNORED:
                counts[data.values[value]] += count
    return counts
