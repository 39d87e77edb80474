"""Lists of classes that have to agree: names and order, wherever they come from."""

import os
from itertools import zip_longest
from typing import Iterator, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..errors import UsageError
from .datasets import Data, find_loaders, find_type, innermost_datasets

SHOWN = 10


def difference(first: Sequence[str], second: Sequence[str], names: Tuple[str, str]) -> Optional[str]:
    """Say how two lists of classes differ, with both side by side; None if names and order are the same.

    Args:
        first, second (Sequence[str]): Class names in the order of their labels.
        names (tuple[str, str]): What the lists are called, such as ('the checkpoint', 'the config').
    """
    first, second = (list(map(str, classes)) for classes in (first, second))
    pairs = list(zip_longest(first, second, fillvalue='(none)'))
    at = next((i for i, (one, other) in enumerate(pairs) if _plain(one) != _plain(other)), None)
    if at is None:
        return None
    if sorted(map(_plain, first)) == sorted(map(_plain, second)):
        what = 'the same classes in another order'
    elif len(first) != len(second):
        what = f'{len(first)} and {len(second)} classes'
    else:
        what = 'other classes'
    begin = max(0, min(at - 2, len(pairs) - SHOWN))
    rows = [f'{i}: {one!r} | {other!r}' for i, (one, other) in enumerate(pairs)][begin : begin + SHOWN]
    rows = ['...'] * (begin > 0) + rows + ['...'] * (begin + SHOWN < len(pairs))
    return f'{what}, from label {at} on ({names[0]} | {names[1]}): {", ".join(rows)}'


def check_checkpoint_classes(meta: Optional[dict], classes: Optional[Sequence[str]], purpose: str) -> Optional[str]:
    """Compare the classes that a checkpoint was trained for with those of the data it will see.

    Args:
        meta (dict, optional): The checkpoint's ``meta``; files of the 2.x and 3.x libraries list their classes there.
        classes (Sequence[str], optional): Those of the data set.
        purpose (str): 'train' (fine-tuning from ``load_from``), 'resume' or 'test'.

    Returns:
        str, optional: In fine-tuning, how the lists differ, where heads of as many classes are taken over.

    Raises:
        UsageError: If they differ in testing or resuming; both lists are shown side by side.
    """
    meta = meta or {}
    of_file = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    if not _is_list(of_file) or not _is_list(classes):
        return None
    found = difference(of_file, classes, ('the checkpoint', 'the config'))
    if not found or (purpose == 'train' and len(of_file) != len(classes)):  # other heads, which is said elsewhere
        return None
    if purpose == 'train':
        return f'the checkpoint was trained for {found}. Its heads are taken over and learn the classes of the config'
    raise UsageError(
        f'the checkpoint was trained for {found}. Every label would mean another class. Set metainfo.classes of the '
        f'data sets to the list of the checkpoint'
        + ('; to train for other classes, begin a run with load_from' if purpose == 'resume' else '')
    )


def check_class_lists(cfg: Config) -> None:
    """Whether the data sets of a config list their classes as libraries read them, and all of them the same.

    Raises:
        UsageError: If classes are a text instead of a list, under an old name or named twice, if there are fewer
            colours than classes, or if data for training, validation and testing list other classes.
    """
    lists = []
    for data, metainfo, classes in _listed(cfg):
        old = [key for key in ('CLASSES', 'PALETTE') if key in metainfo and key.lower() not in metainfo]
        if old:
            raise UsageError(f'{data}: nothing reads metainfo.{old[0]}; its name is metainfo.{old[0].lower()}')
        if isinstance(classes, str) and not os.path.isfile(classes) and '://' not in classes:
            raise UsageError(
                f'{data}: classes is the text {classes!r}, expected a list of names such as {_as_list(classes)} (one '
                f'name in parentheses needs a comma), or a file with one name in each line'
            )
        if not _is_list(classes):
            continue
        twice = sorted({str(name) for name in classes if list(classes).count(name) > 1})
        if twice:
            labels = [i for i, name in enumerate(classes) if str(name) == twice[0]]
            raise UsageError(f'{data}: metainfo.classes names {twice[0]!r} twice, as the labels {labels}')
        palette = metainfo.get('palette')
        if _is_list(palette) and len(palette) < len(classes):
            raise UsageError(
                f'{data}: metainfo has {len(palette)} colours (palette) for {len(classes)} classes. Give one for each, '
                f'or none: metainfo=dict(_delete_=True, classes=...)'
            )
        if data.split != 'test':  # training does not look at it, and testing at no other
            lists.append((data, classes))
    for data, classes in lists[1:]:
        first, expected = lists[0]
        found = difference(expected, classes, (str(first), str(data)))
        if found and not _reads_text(cfg.get('model') or {}):
            raise UsageError(f'{first} and {data} do not belong together: {found}. Give both the same metainfo.classes')


def _listed(cfg: Config) -> Iterator[Tuple[Data, dict, Optional[Sequence[str]]]]:
    """Data sets with their metainfo and their classes, those of their type if they name none."""
    scope = cfg.get('default_scope') or 'mmengine'
    for split, loader in find_loaders(cfg).items():
        for dataset in innermost_datasets(loader['dataset']):
            if 'type' not in dataset:
                continue
            kind = find_type(DATASETS, dataset['type'], scope)
            metainfo = dataset.get('metainfo') or {}
            of_type = (getattr(kind, 'METAINFO', None) or {}).get('classes')
            named = metainfo.get('classes', dataset.get('classes'))
            yield Data(split, dataset, kind), metainfo, of_type if named is None else named


def _reads_text(model: dict) -> bool:
    """Whether a detector takes class names as input, so that each data set may have its own."""
    return any(key in model for key in ('language_model', 'text_encoder', 'text_model'))


def _plain(name: str) -> str:
    """A name as versions of the libraries agree on it: 'bed ' and 'traffic_light' are 'bed' and 'traffic light'."""
    return ' '.join(name.replace('_', ' ').split()).casefold()


def _is_list(value) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0


def _as_list(text: str) -> tuple:
    return tuple(name.strip() for name in text.split(',') if name.strip())
