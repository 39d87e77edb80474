"""Classes of a config: lists of names, the same in every split, as many as the heads have, with a colour each.

=============================================  ======================================================================
what is found                                  what is done
=============================================  ======================================================================
a text, a set or a number for a list of names  refused; the path of a file with one name in each line is none of them
fewer colours than classes                     refused; surplus colours (left over from a base) are taken away
train and val with other names or order        refused, with both lists
heads, weights of losses with another number   refused
classes where older versions had them          refused, with the right place
batches mixed by another number of classes     made to agree with the head
=============================================  ======================================================================

Only what the three libraries' types are known to mean is looked at.
"""

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from mmengine import registry as registries
from mmengine.config import Config

from ..datasets.config import Data, check_names, find_loaders, find_type, innermost_datasets, side_by_side
from ..errors import UsageError

# Names of classes and colours in metainfo that nothing reads, and the right ones.
OLD_KEYS = {'CLASSES': 'classes', 'class': 'classes', 'class_names': 'classes', 'PALETTE': 'palette'}
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')


def check_classes(cfg: Config, scope: str) -> List[str]:
    """Check that classes are lists, agree between the splits, and are as many as the heads and the palette have.

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
    notes: List[str] = []
    known: Dict[str, dict] = {}
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
    # A detector that takes class names as input may have others in each data set.
    reads_text = any(key in (cfg.get('model') or {}) for key in ('language_model', 'text_encoder', 'text_model'))
    _check_splits(known, scope, reads_text)
    learnt = known.get('train' if 'train' in find_loaders(cfg) else 'test')
    classes = classes_of(learnt, scope) if learnt else None
    if learnt and classes and 'backbone' in (cfg.get('model') or {}):
        _check_heads(cfg, scope, classes, learnt['type'])
        notes += _agree_on_mixing(cfg, scope)
    return notes


def classes_of(dataset: dict, scope: str) -> Optional[Tuple[str, ...]]:
    """The class names of a data set, from its config, the file that it names or its type; None if they are unknown."""
    classes = _data('', dataset, scope).classes
    return None if classes is None else tuple(classes)


def _data(split: str, dataset: dict, scope: str) -> Data:
    return Data(split, dataset, find_type(registries.DATASETS, dataset['type'], scope) if 'type' in dataset else None)


def compare_classes(train: Data, other: Data) -> None:
    """Check that another split has the classes of training in the same order: labels are their numbers.

    Raises:
        UsageError: With both lists side by side, if both are known and differ.
    """
    ours, theirs = train.known_classes, other.known_classes
    if ours and theirs and ours != theirs:
        raise UsageError(
            f'{other.split}_dataloader.dataset has other classes than {train.split}_dataloader.dataset, or another '
            f'order, so that their labels would differ.{side_by_side(ours, theirs, (train.split, other.split))}\n'
            f'Set the same metainfo=dict(classes=...) in both'
        )


def _settings(dataset: dict, scope: str) -> Iterator[Tuple[str, Any]]:
    """Where a data set's classes come from, the one that counts last."""
    kind = _data('', dataset, scope).kind
    yield f'{getattr(kind, "__name__", "type")}.METAINFO.classes', getattr(kind, 'METAINFO', {}).get('classes')
    yield 'metainfo.classes', (dataset.get('metainfo') or {}).get('classes')
    if scope == 'mmpretrain':
        yield 'classes', dataset.get('classes')


def _check_place(path: str, dataset: dict, scope: str) -> None:
    """Check that classes and colours are where the libraries read them, and not where older versions did."""
    metainfo = dataset.get('metainfo') or {}
    for key in metainfo:
        right = OLD_KEYS.get(key)
        if right and right not in metainfo:
            raise UsageError(f'{path}.metainfo.{key}: nothing reads {key!r}; write {right!r}')
    kind = _data('', dataset, scope).kind
    if 'classes' in dataset and getattr(kind, '__module__', '').split('.')[0] in ('mmdet', 'mmseg'):
        raise UsageError(f'{path}.classes: {kind.__name__} takes its classes as metainfo=dict(classes=...)')


def _check_list(key: str, names: Any) -> None:
    if isinstance(names, str):
        check_names(key, names)
    elif key.endswith('metainfo.classes') and isinstance(names, (list, tuple)):
        twice = next((name for name in names if list(names).count(name) > 1), None)
        if twice is not None:
            labels = [str(label) for label, name in enumerate(names) if name == twice]
            raise UsageError(f'{key} names {twice!r} more than once, as the labels {", ".join(labels)}')
    elif names is not None and not isinstance(names, (list, tuple)):
        raise UsageError(f"{key} is a {type(names).__name__} ({names!r}); expected a list of names, such as ('a', 'b')")


def _check_palette(key: str, metainfo: dict) -> List[str]:
    names, palette = metainfo.get('classes'), metainfo.get('palette')
    if not isinstance(names, (list, tuple)) or not isinstance(palette, (list, tuple)) or len(names) == len(palette):
        return []
    if len(palette) < len(names):
        raise UsageError(
            f'{key}.palette has {len(palette)} colours, and {key}.classes has {len(names)} names; give each a colour, '
            f'or leave the palette out'
        )
    metainfo['palette'] = palette[: len(names)]
    return [f'{key}.palette: the {len(palette) - len(names)} colours without a class are left out']


def _check_splits(known: Dict[str, dict], scope: str, reads_text: bool) -> None:
    """Check that training and validation have the same classes in the same order: labels are their numbers.

    Data for testing may be left over from a base while a model is trained. When it is tested, its checkpoint says which
    classes it was trained for.
    """
    train, val = known.get('train'), known.get('val')
    if not train or not val or reads_text:
        return
    # A type of another benchmark, as in tracking, brings names of its own.
    listed = all((one.get('metainfo') or {}).get('classes') or one.get('classes') for one in (train, val))
    comparable = listed or train['type'] == val['type'] or scope == 'mmseg'
    if comparable:
        compare_classes(_data('train', train, scope), _data('val', val, scope))


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
        if not fits and not (scope == 'mmpretrain' and (number or 0) > len(classes) == 1000):
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
    listed: Any = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    if not classes or not _is_list(listed):
        return None
    of_file, classes = list(map(str, listed)), list(map(str, classes))
    ours, theirs = list(map(_plain, classes)), list(map(_plain, of_file))
    if ours == theirs:
        return None
    if purpose == 'train' and len(of_file) != len(classes):  # other heads, which is said elsewhere
        return None
    what = 'the same classes in another order' if sorted(ours) == sorted(theirs) else 'other classes'
    found = f'{what}.{side_by_side(of_file, classes, ("checkpoint", "config"))}'
    if purpose == 'train':
        return f'the checkpoint was trained for {found}\nIts heads are taken over and learn the classes of the config'
    raise UsageError(
        f'the checkpoint was trained for {found}\nEvery label would mean another class. Set metainfo.classes of the '
        f'data sets to the list of the checkpoint'
        + ('; to train for other classes, begin a run with load_from' if purpose == 'resume' else '')
    )


def _plain(name: str) -> str:
    """A name as versions of the libraries agree on it: 'bed ' and 'traffic_light' are 'bed' and 'traffic light'."""
    return ' '.join(name.replace('_', ' ').split()).casefold()


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0
