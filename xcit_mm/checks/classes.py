"""Classes of a config: lists of names, the same in every split, as many as the heads have, with a colour each.

=============================================  ======================================================================
what is found                                  what is done
=============================================  ======================================================================
a text, a set or a number for a list of names  refused; the path of a file with one name in each line is none of them
fewer colours than classes                     refused; surplus colours (left over from a base) are taken away
train, val and test with other names or order  refused, with both lists
heads, weights of losses with another number   refused
classes where older versions had them          refused, with the right place
batches mixed by another number of classes     made to agree with the head
=============================================  ======================================================================

Only what the three libraries' types are known to mean is looked at.
"""

import os
from itertools import zip_longest
from typing import Any, Dict, Iterator, List, Optional, Tuple

from mmengine import registry as registries
from mmengine.config import Config

from ..errors import UsageError
from .datasets import find_loaders, find_type, innermost_datasets

# Names of classes and colours in metainfo that nothing reads, and the right ones.
OLD_KEYS = {'CLASSES': 'classes', 'class': 'classes', 'class_names': 'classes', 'PALETTE': 'palette'}
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')


def check_classes(cfg: Config, scope: str) -> List[str]:
    """Whether classes are lists, agree between the splits, and are as many as the heads and the palette have.

    Args:
        cfg (Config): The config; surplus colours are taken out of it.
        scope (str): The library.

    Returns:
        list[str]: What was changed.

    Raises:
        UsageError: Naming the key, what it holds and what it should.
    """
    if scope not in LIBRARIES:
        return []
    notes, known = [], {}
    for split, loader in find_loaders(cfg).items():
        datasets = list(innermost_datasets(loader['dataset']))
        for dataset in datasets:
            _check_place(f'{split}_dataloader.dataset', dataset, scope)
            for key, names in _settings(dataset, scope):
                _check_list(f'{split}_dataloader.dataset.{key}', names)
            notes += _check_palette(f'{split}_dataloader.dataset.metainfo', dataset.get('metainfo') or {})
        # Wrappers of data sets with different classes have an order of their own.
        if len({classes_of(dataset, scope) for dataset in datasets}) == 1:
            known[split] = datasets[0]
    _check_splits(known, scope)
    dataset = known.get('train' if 'train' in find_loaders(cfg) else 'test')
    classes = dataset and classes_of(dataset, scope)
    if classes and 'backbone' in (cfg.get('model') or {}):
        _check_heads(cfg, scope, classes, dataset['type'])
        notes += _agree_on_mixing(cfg, scope)
    return notes


def classes_of(dataset: dict, scope: str) -> Optional[Tuple[str, ...]]:
    """The class names of a data set, from its config, the file that it names or its type; None if they are unknown."""
    names = None
    for _, found in _settings(dataset, scope):
        names = names if found is None else found
    if isinstance(names, str):
        if not os.path.isfile(os.path.expanduser(names)):
            return None  # an address
        with open(os.path.expanduser(names), encoding='utf-8') as file:
            names = file.read().splitlines()
    return tuple(names) if isinstance(names, (list, tuple)) else None


def _settings(dataset: dict, scope: str) -> Iterator[Tuple[str, Any]]:
    """Where a data set's classes come from, the one that counts last."""
    kind = find_type(registries.DATASETS, dataset['type'], scope) if 'type' in dataset else None
    yield f'{getattr(kind, "__name__", "type")}.METAINFO.classes', getattr(kind, 'METAINFO', {}).get('classes')
    yield 'metainfo.classes', (dataset.get('metainfo') or {}).get('classes')
    if scope == 'mmpretrain':
        yield 'classes', dataset.get('classes')


def _check_place(path: str, dataset: dict, scope: str) -> None:
    """Whether classes and colours are where the libraries read them, and not where older versions did."""
    metainfo = dataset.get('metainfo') or {}
    for key in metainfo:
        right = OLD_KEYS.get(key)
        if right and right not in metainfo:
            raise UsageError(f'{path}.metainfo.{key}: nothing reads {key!r}; write {right!r}')
    kind = find_type(registries.DATASETS, dataset['type'], scope) if 'type' in dataset else None
    if 'classes' in dataset and getattr(kind, '__module__', '').split('.')[0] in ('mmdet', 'mmseg'):
        raise UsageError(f'{path}.classes: {kind.__name__} takes its classes as metainfo=dict(classes=...)')


def _check_list(key: str, names: Any) -> None:
    if isinstance(names, str):
        check_names(key, names)
    elif names is not None and not isinstance(names, (list, tuple)):
        raise UsageError(f"{key} is a {type(names).__name__} ({names!r}); expected a list of names, such as ('a', 'b')")


def check_names(key: str, text: str) -> None:
    """Whether a text in place of a list of names is the path of a file with one name in each line."""
    if '://' in text or os.path.isfile(os.path.expanduser(text)):
        return
    parts = tuple(part.strip() for part in text.split(',') if part.strip())
    if len(parts) > 1:
        raise UsageError(f'{key} is the text {text!r}; write the names apart: {parts!r}')
    if '/' in text or text.endswith('.txt'):
        raise UsageError(f'{key} is the text {text!r}, and there is no such file (from {os.getcwd()})')
    raise UsageError(f'{key} is the text {text!r}; a tuple of one name needs a comma: ({text!r},)')


def _check_palette(key: str, metainfo: dict) -> List[str]:
    names, palette = metainfo.get('classes'), metainfo.get('palette')
    if not all(isinstance(part, (list, tuple)) for part in (names, palette)) or len(names) == len(palette):
        return []
    if len(palette) < len(names):
        raise UsageError(
            f'{key}.palette has {len(palette)} colours, and {key}.classes has {len(names)} names; give each a colour, '
            f'or leave the palette out'
        )
    metainfo['palette'] = palette[: len(names)]
    return [f'{key}.palette: the {len(palette) - len(names)} colours without a class are left out']


def _check_splits(known: Dict[str, dict], scope: str) -> None:
    """Whether the classes of all splits are the same, in the same order: labels are their numbers."""
    train = known.get('train')
    for split in ('val', 'test'):
        other = known.get(split)
        if not train or not other:
            continue
        ours, theirs = classes_of(train, scope), classes_of(other, scope)
        # A type of another benchmark, as in tracking, brings names of its own.
        listed = all((one.get('metainfo') or {}).get('classes') or one.get('classes') for one in (train, other))
        if ours and theirs and ours != theirs and (listed or train['type'] == other['type']):
            raise UsageError(
                f'{split}_dataloader.dataset has other classes than train_dataloader.dataset, or another order, so '
                f'that their labels would differ:\n{side_by_side("train", ours, split, theirs)}\n'
                f'Set the same metainfo=dict(classes=...) in both'
            )


def side_by_side(title: str, left: tuple, other: str, right: tuple, limit: int = 20) -> str:
    """Two lists as a table, from the first line on in which they differ."""
    lines = list(zip_longest(range(max(len(left), len(right))), left, right, fillvalue='-'))
    first = next((i for i, (_, a, b) in enumerate(lines) if a != b), 0)
    shown = lines[first : first + limit]
    width = max(len(str(name)) for name in (title, *(line[1] for line in shown)))
    rows = [f'  {"label":>5}  {title:{width}}  {other}', *(f'  {i:>5}  {a:{width}}  {b}' for i, a, b in shown)]
    rest = len(lines) - first - limit
    return '\n'.join(rows + [f'  and {rest} more'] * (rest > 0))


def _heads(cfg: Config, scope: str) -> Iterator[Tuple[str, dict]]:
    places = [('model', cfg.model)]
    names = {'mmdet': ('bbox_head', 'mask_head'), 'mmseg': ('decode_head', 'auxiliary_head'), 'mmpretrain': ('head',)}
    if scope == 'mmdet' and cfg.model.get('roi_head'):
        places.append(('model.roi_head', cfg.model.roi_head))
    for place, parts in places:
        for name in names[scope]:
            found = parts.get(name) if hasattr(parts, 'get') else None
            if isinstance(found, dict):
                yield f'{place}.{name}', found
            elif isinstance(found, (list, tuple)):
                yield from ((f'{place}.{name}.{i}', head) for i, head in enumerate(found) if isinstance(head, dict))


def _check_heads(cfg: Config, scope: str, classes: tuple, kind: Any) -> None:
    if 'thing_classes' in getattr(find_type(registries.DATASETS, kind, scope), 'METAINFO', {}):
        return  # panoptic models have heads for a part of the classes
    for path, head in _heads(cfg, scope):
        number = head.get('num_classes')
        # In MMSegmentation, two outputs can be one class and its background; configs of MMPretrain's models of
        # ImageNet-21k test on ImageNet-1k.
        fits = number in (None, len(classes)) or (scope == 'mmseg' and number == 2)
        if not fits and not (scope == 'mmpretrain' and number > len(classes) == 1000):
            raise UsageError(
                f'{path}.num_classes is {number}, and the data ({getattr(kind, "__name__", kind)}) has {len(classes)} '
                f'classes ({", ".join(map(str, classes[:3]))}, ...); set it to {len(classes)}, or list the classes of '
                f'your own data in metainfo=dict(classes=...) of the data sets'
            )
        for place, weights in _class_weights(head, path):
            if number is not None and len(weights) not in (number, number + 1):  # and the background
                raise UsageError(f'{place} has {len(weights)} numbers, and {path}.num_classes is {number}')


def _class_weights(value: Any, path: str) -> Iterator[Tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        if key == 'class_weight' and isinstance(item, (list, tuple)):
            yield f'{path}.{key}', item
        else:
            yield from _class_weights(item, f'{path}.{key}')


def _agree_on_mixing(cfg: Config, scope: str) -> List[str]:
    """Mixed batches have labels of as many numbers as the head has, or none of the losses takes them."""
    head = cfg.model.get('head') if scope == 'mmpretrain' else None
    number = head.get('num_classes') if isinstance(head, dict) else None
    place = cfg.model if 'data_preprocessor' in cfg.model else cfg
    preprocessor = place.get('data_preprocessor')
    if not number or not isinstance(preprocessor, dict) or preprocessor.get('num_classes') in (None, number):
        return []
    old, preprocessor['num_classes'] = preprocessor['num_classes'], number
    return [f'data_preprocessor.num_classes: {number}, as model.head.num_classes, in place of {old}']
