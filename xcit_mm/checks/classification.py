"""Classification: whether there is one folder for each class, with images in it."""

import os
from typing import Iterator, List, Optional

from mmengine.config import Config

from ..errors import UsageError
from .datasets import IMAGE_SUFFIXES, Data, check_exist, list_files, some


def check_folders(data: Data, datasets: List[Data], cfg: Config) -> None:
    """Whether there is one folder for each class, with images in it."""
    folder = data.path(data.prefix('img_path') or data.cfg.get('split'))
    check_exist(data, [folder])
    lists = [data.cfg.get('ann_file'), f'meta/{data.cfg["split"]}.txt' if data.cfg.get('split') else None]
    if any(name and os.path.isfile(data.path(name)) for name in lists) or not data.setting('with_label'):
        return
    if data.cfg.get('split') == 'test':
        return  # ImageNet's, without labels
    with os.scandir(folder) as entries:
        is_folder = {entry.name: entry.is_dir() for entry in entries}
    found = {name for name in is_folder if is_folder[name]}
    files = [name for name in is_folder if not is_folder[name]]
    expected = _number_of_classes(data, cfg)
    if not found:
        raise UsageError(f'{data}: {folder} has no folders of classes. {_why_no_folders(files, folder, data)}')
    if expected and len(found) != expected:
        raise UsageError(
            f'{data}: {folder} has {len(found)} folders of classes ({some(found)}), and the config has {expected} '
            f'classes. {_why_other_number(found, folder, data, datasets)}To get it: {data.how_to_get()}. For classes '
            f'of your own, set metainfo=dict(classes=...) of the data sets and model.head.num_classes. '
            f'{data.where_else()}'
        )
    for other, names in _same_data(data, datasets):
        if len(names) == len(found) and names != found:  # another number is the other's own error
            raise UsageError(
                f'{data}: {folder} and {other} have different folders of classes, so their labels would differ. '
                f'Only in {folder}: {some(found - names) or "none"}; only in {other}: {some(names - found) or "none"}'
            )
    suffixes = tuple(data.setting('extensions') or IMAGE_SUFFIXES)
    empty = [
        name
        for name in sorted(found)
        if not any(file.lower().endswith(suffixes) for file in list_files(os.path.join(folder, name)))
    ]
    if empty:
        raise UsageError(
            f'{data} is incomplete: {len(empty)} of {len(found)} folders of classes in {folder} have no image '
            f'({some(empty)}). To get it: {data.how_to_get()}'
        )


def _number_of_classes(data: Data, cfg: Config) -> Optional[int]:
    classes = (data.cfg.get('metainfo') or {}).get('classes') or data.cfg.get('classes')
    classes = classes or getattr(data.kind, 'METAINFO', {}).get('classes')
    head = cfg.model.get('head')
    of_head = head.get('num_classes') if isinstance(head, dict) else None
    if isinstance(classes, str) or not classes:  # a file with one name in each line; or whatever folders there are
        return of_head
    if of_head and of_head != len(classes):
        raise UsageError(
            f'{data} has {len(classes)} classes, and model.head.num_classes is {of_head}; for classes of your own, set '
            f'metainfo=dict(classes=...) of the data sets and model.head.num_classes'
        )
    return len(classes)


def _why_no_folders(files: List[str], folder: str, data: Data) -> str:
    images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    if images:
        listing = data.path(os.path.join('meta', f'{data.cfg.get("split") or "val"}.txt'))
        return (
            f'Its {len(images)} images lie side by side, as ILSVRC ships those for validation. Sort them into a folder '
            f'for each class, with the well-known valprep.sh (github.com/soumith/imagenetloader.torch) run inside '
            f'{folder}; or list them with their class number, one "NAME NUMBER" in each line, in {listing}'
        )
    archives = [name for name in files if name.endswith('.tar')]
    if archives:
        return (
            f'It holds {len(archives)} archives ({some(archives)}), as ILSVRC ships the training images. Unpack each '
            f'into a folder of its name: '
            f'cd {folder} && for f in *.tar; do mkdir ${{f%.tar}} && tar xf $f -C ${{f%.tar}}; done'
        )
    return f'It holds {some(files) or "nothing"}. To get it: {data.how_to_get()}. {data.where_else()}'


def _why_other_number(found: set, folder: str, data: Data, datasets: List[Data]) -> str:
    if len(found) == 1:
        (only,) = found
        inside = [entry.name for entry in os.scandir(os.path.join(folder, only)) if entry.is_dir()]
        if inside:
            return f'{len(inside)} folders lie one level deeper, in {os.path.join(folder, only)}. '
    for other, names in _same_data(data, datasets):
        if names - found:
            return f'Missing here and present in {other}: {some(names - found)}. '
    return ''


def _same_data(data: Data, datasets: List[Data]) -> Iterator[tuple]:
    """The folders of the other splits of the same data that the run uses, with their folders of classes."""
    for other in datasets:
        if other is not data and other.kind is data.kind and other.root == data.root:
            folder = other.path(other.prefix('img_path') or other.cfg.get('split'))
            if os.path.isdir(folder):
                yield folder, {entry.name for entry in os.scandir(folder) if entry.is_dir()}
