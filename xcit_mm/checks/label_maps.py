"""Label maps hold class indices: a sample of them is read before anything runs."""

import io
import os
import time
from collections import Counter
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from mmengine import fileio
from PIL import Image

from ..datasets.config import Data, stems
from ..errors import UsageError
from .segmentation import IGNORED, finds_files, load_steps, prefix

# Read so many maps, spread over the data set, and then more for so many seconds.
LOOKED_AT, SECONDS = 200, 2
CONVERT = 'docs/segmentation.md has the few lines that turn such maps into numbers'


class Seen(NamedTuple):
    """Statistics of the label maps of a data set.

    Attributes:
        maps (Counter): Number of maps by label value.
        pixels (Counter): Number of pixels by label value.
        modes (Counter): Number of maps by kind of picture, for maps without one value per pixel.
        wide (Counter): Number of maps with values above 255, by the largest.
        misfits (Counter): Number of maps by the sizes of map and image, where they differ.
        read (int): Number of maps that were read.
        whole (bool): Whether all maps were read.
    """

    maps: Counter
    pixels: Counter
    modes: Counter
    wide: Counter
    misfits: Counter
    read: int
    whole: bool


def check_labels(datasets: List[Data]) -> None:
    """Read a sample of the label maps, and check that their values are class indices.

    Reads 200 maps, spread over the data set, and more until 2 s have passed. A class is reported as absent only if all
    maps were read.

    Raises:
        UsageError: If nothing can be learnt or scored: the maps are colour pictures, or hold no class index, or, in
            training, a single class.
    """
    for split in ('train', 'val', 'test'):
        parts = [data for data in datasets if data.split == split and prefix(data, 'seg_map_path') is not None]
        if parts and all(_plain_maps(data) for data in parts):
            _check_split(parts)


def _plain_maps(data: Data) -> bool:
    """True if maps are found and read by MMSegmentation's own data set and step."""
    backends = [step.get('imdecode_backend', 'pillow') for step in load_steps(data.cfg.get('pipeline') or ())]
    return finds_files(data) and bool(backends) and set(backends) <= {'pillow', 'cv2'}


def _check_split(parts: List[Data]) -> None:
    """Check the data sets that one loader joins."""
    classes = parts[0].known_classes
    present, whole = set(), True
    for data in parts:
        seen = _look(data)
        if not seen.read:
            return  # the run itself reports unreadable files
        _refuse_what_is_no_map(data, seen)
        _refuse_numbers_from_one(data, seen)
        present |= _present(data, seen.pixels)
        whole &= seen.whole
        _note_unknown(data, seen)
    absent = [name for label, name in enumerate(classes) if label not in present]
    if len(absent) >= len(classes) - 1:
        odd = _unknown(data, seen) or (IGNORED in seen.pixels and not data.setting('reduce_zero_label'))
        if not present or parts[0].split == 'train' or odd:
            raise UsageError(_nothing_to_learn(data, seen, [classes[label] for label in sorted(present)], absent))
    if absent and whole:
        names = ', '.join(absent[:10]) + (f' and {len(absent) - 10} more' if len(absent) > 10 else '')
        what = 'cannot be learnt' if parts[0].split == 'train' else 'cannot be scored'
        zero = ''
        if absent == classes[-1:] and 0 in seen.pixels and data.setting('reduce_zero_label'):
            zero = ' If 0 in the maps is the first class, set reduce_zero_label=False in data sets and pipelines.'
        print(
            f'Note: {parts[0]}: no pixel of {len(absent)} of {len(classes)} classes is labelled, and they {what}: '
            f'{names}.{zero}',
            flush=True,
        )


def _maps_of(data: Data) -> List[Tuple[str, str]]:
    """Paths of image and map, in the order of MMSegmentation."""
    suffix, listed = data.setting('img_suffix'), data.cfg.get('ann_file')
    images, maps = data.path(prefix(data, 'img_path')), data.path(prefix(data, 'seg_map_path'))
    if listed and os.path.isfile(data.path(listed)):
        with open(data.path(listed)) as file:
            names = [line.strip() for line in file if line.strip()]
    else:
        names = sorted(stems(images, suffix), key=lambda name: name + suffix)
    indices = data.cfg.get('indices')
    if isinstance(indices, int):
        names = names[:indices] if indices >= 0 else names[indices:]
    elif indices is not None:
        names = [names[index] for index in indices]
    end = data.setting('seg_map_suffix')
    return [(os.path.join(images, name + suffix), os.path.join(maps, name + end)) for name in names]


def _look(data: Data) -> Seen:
    """Read maps until there are enough; while they hold a single class, until another is found."""
    files = _maps_of(data)
    backend = next(load_steps(data.cfg.get('pipeline') or ())).get('imdecode_backend', 'pillow')
    maps: Counter = Counter()
    pixels: Counter = Counter()
    modes: Counter = Counter()
    wide: Counter = Counter()
    misfits: Counter = Counter()
    read, start = 0, time.monotonic()
    for number, at in enumerate(_spread(len(files))):
        if number >= LOOKED_AT and time.monotonic() - start > SECONDS and len(_present(data, pixels)) > 1:
            return Seen(maps, pixels, modes, wide, misfits, read, False)
        image, path = files[at]
        try:
            array, mode = _read(path, backend)
        except Exception:  # the run itself reports missing and damaged files
            continue
        read += 1
        if array.ndim > 2:
            modes[mode] += 1
            continue
        try:
            with Image.open(image) as opened:
                size = opened.size[::-1]
        except Exception:
            size = array.shape
        if size not in (array.shape, array.shape[::-1]):  # a picture may be stored rotated (EXIF)
            misfits[f'{array.shape[0]} x {array.shape[1]} for {size[0]} x {size[1]}'] += 1
        largest = int(array.max(initial=0))
        if largest > IGNORED or array.min(initial=0) < 0:
            wide[largest] += 1
            continue
        counts = np.bincount(array.astype(np.intp).ravel(), minlength=1)
        for value in np.flatnonzero(counts).tolist():
            maps[value] += 1
            pixels[value] += int(counts[value])
    return Seen(maps, pixels, modes, wide, misfits, read, True)


def _spread(total: int) -> Iterator[int]:
    """All indices below ``total``, starting with an even spread."""
    step = max(1, total // LOOKED_AT)
    for start in range(step):
        yield from range(start, total, step)


def _read(path: str, backend: str = 'pillow'):
    """The array of a map, and its kind of picture if it has not one value per pixel."""
    with Image.open(io.BytesIO(fileio.get(path))) as image:
        if image.mode == 'P' and backend == 'cv2':  # which reads the colours
            image = image.convert('RGB')
        array = np.asarray(image).squeeze()
    if array.ndim < 3:
        return array, ''
    equal = (array[..., :3] == array[..., :1]).all() or array.shape[2] == 2
    return array, f'{array.shape[2]} channels' + (', of which the first are equal' if equal else '')


def _colours(array: np.ndarray) -> str:
    found = Counter(map(tuple, array[::7, ::7, :3].reshape(-1, 3).tolist()))
    return ', '.join(str(colour) for colour, _ in found.most_common(3))


def _label(data: Data, number: int) -> Optional[int]:
    """The class index of a label value, possibly out of range; None if it is ignored."""
    if number in (IGNORED, data.cfg.get('ignore_index', IGNORED)):
        return None
    if data.setting('reduce_zero_label'):
        number -= 1
    published = getattr(data.kind, 'METAINFO', {}).get('classes')
    if published and list(published) != data.known_classes and 0 <= number < len(published):
        name = published[number]
        return data.known_classes.index(name) if name in data.known_classes else None
    return number if number >= 0 else None


def _present(data: Data, pixels: Dict[int, int]) -> set:
    return {_label(data, number) for number in pixels} & set(range(len(data.known_classes)))


def _unknown(data: Data, seen: Seen) -> List[int]:
    labels = {number: _label(data, number) for number in seen.pixels}
    return sorted(number for number, label in labels.items() if label is not None and label >= len(data.known_classes))


def _refuse_what_is_no_map(data: Data, seen: Seen) -> None:
    where = data.path(prefix(data, 'seg_map_path'))
    if sum(seen.modes.values()) == seen.read:
        kind = seen.modes.most_common(1)[0][0]
        if 'equal' in kind:
            remedy = f'Each is one number written several times: keep one channel. {CONVERT}'
        else:
            path = next(path for _, path in _maps_of(data) if os.path.isfile(path))
            remedy = f'{os.path.basename(path)} has colours such as {_colours(_read(path)[0])}. {CONVERT}'
        raise UsageError(
            f'{data}: the maps in {where} are pictures in colours ({kind}), expected one channel with the number of '
            f'the class of each pixel, 0 to {len(data.known_classes) - 1}. {remedy}'
        )
    if sum(seen.wide.values()) == seen.read:
        raise UsageError(
            f'{data}: the maps in {where} have 16 bits and numbers up to {max(seen.wide)}, as those of instances, '
            f'expected the number of the class of each pixel, 0 to {len(data.known_classes) - 1}. In maps of instances '
            f'such as those of Cityscapes the class is the number // 1000; save that as 8 bits'
        )
    if sum(seen.misfits.values()) == seen.read:
        raise UsageError(
            f'{data}: the maps in {where} have other sizes than their images: {seen.misfits.most_common(1)[0][0]} '
            f'pixels (height x width). Make maps of the size of the images'
        )


def _refuse_numbers_from_one(data: Data, seen: Seen) -> None:
    """Refuse maps whose values are 1 to the number of classes: class indices that are one too high."""
    numbers = sorted(number for number in seen.pixels if _label(data, number) is not None)
    if seen.whole and not data.setting('reduce_zero_label') and numbers == list(range(1, len(data.known_classes) + 1)):
        raise UsageError(
            f'{data}: the maps in {data.path(prefix(data, "seg_map_path"))} have the numbers 1 to {numbers[-1]}, and '
            f'the {len(numbers)} classes are 0 to {len(numbers) - 1}, so that 1 would be {data.known_classes[1]}. If 1 '
            f'is {data.known_classes[0]}, set reduce_zero_label=True in data sets and pipelines'
        )


def _note_unknown(data: Data, seen: Seen) -> None:
    unknown = _unknown(data, seen)
    if not unknown:
        return
    maps = max(seen.maps[number] for number in unknown)
    share = 100 * sum(seen.pixels[number] for number in unknown) / sum(seen.pixels.values())
    shown = ', '.join(map(str, unknown[:8])) + (', ...' if len(unknown) > 8 else '')
    declare = f'ignore_index={unknown[0]} of the data set says that this is meant' if len(unknown) == 1 else CONVERT
    if data.setting('seg_map_suffix').lower() in ('.jpg', '.jpeg'):
        declare = 'JPEG changes numbers: maps are to be PNG'
    print(
        f'Note: {data}: {maps} of {seen.read} maps have numbers that are no class ({shown}; there are '
        f'{len(data.known_classes)} classes, from {int(bool(data.setting("reduce_zero_label")))}); these pixels, '
        f'{share:.1f} %, are ignored. {declare}.',
        flush=True,
    )


def _nothing_to_learn(data: Data, seen: Seen, present: List[str], absent: List[str]) -> str:
    numbers = sorted(seen.pixels)
    shown = ', '.join(map(str, numbers[:12])) + (', ...' if len(numbers) > 12 else '')
    first = int(bool(data.setting('reduce_zero_label')))
    expected = ', '.join(f'{first + label} = {name}' for label, name in enumerate(data.known_classes[:4]))
    expected += ', ...' if len(data.known_classes) > 4 else ''
    others = [number for number in numbers if number not in (0, IGNORED)]
    if numbers in ([0, IGNORED], [IGNORED]):
        hint = (
            f'They look like masks of 0 and 255, and 255 means "ignored". Write 1 for 255. {CONVERT}'
            if not first
            else 'They look like masks of 0 and 255; 255 means "ignored", and so does 0 with reduce_zero_label=True. '
            f'Write 1 for 255, and set reduce_zero_label=False in data sets and pipelines. {CONVERT}'
        )
    elif others and _unknown(data, seen):
        hint = f'They look like grey values or colours, not like numbers of classes. {CONVERT}'
    elif first and numbers in ([1], [0, 1]):
        hint = 'With reduce_zero_label=True, 0 is ignored and the first class is 1; with False, the first class is 0'
    else:
        hint = 'Check that the maps are those of these classes'
    labelled = f'no pixel of any class but {present[0]}' if present else 'no pixel of any class'
    doing = 'learn' if data.split == 'train' else 'score'
    return (
        f'{data}: there is nothing to {doing}: {labelled} is labelled in {seen.read} maps in '
        f'{data.path(prefix(data, "seg_map_path"))} (absent: {", ".join(absent[:5] + ["..."] * (len(absent) > 5))}). '
        f'The maps hold the numbers {shown or "none"}; expected {expected}. {hint}'
    )
