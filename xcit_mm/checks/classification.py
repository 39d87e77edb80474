"""Classification: every image has a label of the config, and every class has images."""

import json
import os
from collections import Counter
from typing import Dict, Iterator, List, Optional

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..datasets.config import (
    MMPRETRAIN_SUFFIXES,
    Data,
    check_exist,
    find_loaders,
    find_type,
    innermost_datasets,
    list_files,
    side_by_side,
    some,
    suffixes,
)
from ..datasets.folder_labels import IMAGENET_FOLDER, folder_labels
from ..errors import UsageError
from .classes import compare_classes

# Data sets whose folders follow the classes of the config, see xcit_mm.datasets.folders.
BY_NAME = ('CustomDataset', 'ImageNet', 'ImageNet21k')


def check_folders(data: Data, datasets: List[Data], cfg: Config) -> None:
    """Check that there is one folder for each class, with images in it; or a list with a label for each image."""
    folder = data.path(data.prefix('img_path') or data.cfg.get('split'))
    check_exist(data, [folder])
    if not data.setting('with_label') or data.cfg.get('split') == 'test':  # ImageNet's, without labels
        _check_labels_are_not_needed(data, cfg)
        return
    expected = _number_of_classes(data, cfg)
    lists = [data.cfg.get('ann_file'), f'meta/{data.cfg["split"]}.txt' if data.cfg.get('split') else None]
    for name in lists:
        if name and os.path.isfile(data.path(name)):
            _check_list(data, data.path(name), folder, expected)
            return
    if getattr(data.kind, '__name__', '') == 'ImageNetV2':
        _check_numbers(data, folder, expected)
        return
    with os.scandir(folder) as entries:
        is_folder = {entry.name: entry.is_dir() for entry in entries}
    found = {name for name in is_folder if is_folder[name]}
    files = [name for name in is_folder if not is_folder[name]]
    if not found:
        raise UsageError(f'{data}: {folder} has no folders of classes. {_why_no_folders(files, folder, data, cfg)}')
    if expected and len(found) != expected:
        raise UsageError(
            f'{data}: {folder} has {len(found)} folders of classes ({some(found)}), and the config has {expected} '
            f'classes. {_why_other_number(found, folder, data, datasets)}For classes of your own, set '
            f'metainfo=dict(classes=...) of the data sets and model.head.num_classes. '
            f'{_advice(data, found)}{_unlabelled(cfg)}'
        )
    for other, names in _other_folders(data, cfg):
        if len(names) == len(found) and names != found:  # another number is the other's own error
            raise UsageError(
                f'{data}: {folder} and {other} have different folders of classes, so their labels would differ. '
                f'Only in {folder}: {some(found - names) or "none"}; only in {other}: {some(names - found) or "none"}'
            )
    _check_order(data, folder, found)
    _count_images(data, folder, found, files)


def _check_order(data: Data, folder: str, found: set) -> None:
    """Check that it is known which folder belongs to which class."""
    own = _module_of(data, '_find_samples'), _module_of(data, 'load_data_list')
    if not all(module.startswith('mmpretrain.') for module in own):
        return  # a custom class assigns the labels
    classes = data.classes
    published = list(getattr(data.kind, 'METAINFO', {}).get('classes') or [])
    declared = (data.cfg.get('metainfo') or {}).get('folders')
    labels = folder_labels(sorted(found), classes, declared, classes == published, str(data))
    if data.kind.__name__ not in BY_NAME and labels != folder_labels(sorted(found)):
        raise UsageError(
            f'{data}: {data.kind.__name__} numbers its folders in the order of their names, which is not that of the '
            f'classes.{side_by_side(sorted(found), classes or (), ("folder", "class"))}\n'
            f"List the classes in this order; or take type='CustomDataset', with which labels follow the classes"
        )


def _module_of(data: Data, method: str) -> str:
    """The module that defines a method of the data set's class."""
    return next(kind.__module__ for kind in data.kind.__mro__ if method in kind.__dict__) + '.'


def _count_images(data: Data, folder: str, found: set, files: List[str]) -> None:
    """Check that every folder has an image, and count the files that are ignored."""
    read = tuple(suffix.lower() for suffix in data.setting('extensions') or MMPRETRAIN_SUFFIXES)
    names = {name: list(list_files(os.path.join(folder, name))) for name in sorted(found)}
    empty = [name for name, inside in names.items() if not any(file.lower().endswith(read) for file in inside)]
    others = [file for inside in names.values() for file in inside if not file.lower().endswith(read)]
    if empty:
        held = f'. They hold {suffixes(others)}; extensions=(...) of the data set says what is read' if others else ''
        raise UsageError(
            f'{data} is incomplete: {len(empty)} of {len(found)} folders of classes in {folder} have no image '
            f'({some(empty)}){held}. {data.advice()}'
        )
    if others:
        print(
            f'Note: {data}: {len(others)} files in {folder} are left out for their suffix: {suffixes(others)}. '
            f'extensions=(...) of the data set says what is read.',
            flush=True,
        )
    loose = [name for name in files if name.lower().endswith(read)]
    if loose:
        print(
            f'Note: {data}: {len(loose)} images lie in {folder} itself, in no folder of a class, and are left out '
            f'({some(loose)}).',
            flush=True,
        )


def _check_numbers(data: Data, folder: str, expected: Optional[int]) -> None:
    """Check that the folders are named by their labels, as ImageNet-V2's."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    bad = [name for name in names if not name.isdigit() or (expected and int(name) >= expected)]
    if bad or not names:
        raise UsageError(
            f'{data}: the folders of {folder} are to be the numbers of the classes, from 0 to '
            f'{expected - 1 if expected else "..."}; found {some(bad) or "none"}'
        )


def _check_list(data: Data, path: str, folder: str, expected: Optional[int]) -> None:
    """Check that each line of a list is ``NAME NUMBER``, with a number that the config has."""
    if path.endswith('.json'):
        raise UsageError(
            f"{data}: {path} is JSON, which type='BaseDataset' reads; {data.name} reads a text with one image in each "
            f'line, NAME NUMBER'
        )
    counts: Dict[int, int] = Counter()
    folders: Dict[str, Counter] = {}
    bad: List[str] = []
    images: List[str] = []
    with open(path) as file:
        for number, line in enumerate(file, 1):
            name, _, label = line.strip().rpartition(' ')
            if label.isdigit() and name:
                counts[int(label)] += 1
                images.append(name)
                folders.setdefault(name.split('/')[0], Counter())[int(label)] += 1
            else:
                bad.append(f'line {number}: {line.strip()[:80]!r}')
    if bad:
        words = {text.rstrip("'").rsplit(' ', 1)[-1] for text in bad}
        classes = data.classes or []
        named = [name for name in classes if name in words]
        hint = f' The labels are written as numbers: {named[0]} is {classes.index(named[0])}.' if named else ''
        raise UsageError(
            f'{data}: {len(bad)} of {len(bad) + len(images)} lines of {path} are not NAME NUMBER, separated by a '
            f'space; {bad[0]}.{hint}'
        )
    if not images:
        raise UsageError(f'{data}: {path} lists no images')
    beyond = sorted(label for label in counts if expected and label >= expected)
    if expected and beyond:
        from_one = ' They seem to begin at 1; labels begin at 0.' if 0 not in counts and beyond == [expected] else ''
        raise UsageError(
            f'{data}: {path} has labels up to {beyond[-1]} ({sum(counts[label] for label in beyond)} images), and the '
            f'config has {expected} classes, 0 to {expected - 1}.{from_one}'
        )
    _compare_with_folders(data, path, folders)
    some_images = images[:: max(1, len(images) // 20)]
    if '://' not in folder and not any(os.path.exists(os.path.join(folder, name)) for name in some_images):
        raise UsageError(
            f'{data}: {folder} has none of {len(some_images)} images that {path} names, such as {some_images[0]}. '
            f'{data.advice()}'
        )
    absent = [str(label) for label in range(expected or 0) if label not in counts]
    if expected and absent and data.split == 'train':
        if expected - len(absent) == 1:
            raise UsageError(f'{data}: all {len(images)} images of {path} have one label, of {expected} classes')
        print(f'Note: {data}: {path} has no image of {len(absent)} classes ({", ".join(absent[:5])}).', flush=True)


def _compare_with_folders(data: Data, path: str, folders: Dict[str, Counter]) -> None:
    """Check that a list labels images in a folder named like a class with that class."""
    classes = list(map(str, data.classes or ()))
    usual = {folder: labels.most_common(1)[0][0] for folder, labels in folders.items() if folder in classes}
    if any(classes[label] != folder for folder, label in usual.items()):
        by_list = [next((folder for folder, at in usual.items() if at == label), '-') for label in range(len(classes))]
        raise UsageError(
            f'{data}: the labels in {path} number the folders of the images in another order than the classes of the '
            f'config.{side_by_side(by_list, classes, ("folder", "class"))}\n'
            f'Write the classes in the order of the list'
        )


def _number_of_classes(data: Data, cfg: Config) -> Optional[int]:
    classes = data.classes
    of_head = _head_classes(cfg)
    if not classes:  # whatever folders there are
        return of_head
    if of_head and of_head != len(classes):
        raise UsageError(
            f'{data} has {len(classes)} classes, and model.head.num_classes is {of_head}; for classes of your own, set '
            f'metainfo=dict(classes=...) of the data sets and model.head.num_classes'
        )
    return len(classes)


def _head_classes(cfg: Config) -> Optional[int]:
    head = (cfg.get('model') or {}).get('head')
    return head.get('num_classes') if isinstance(head, dict) else None


def _learns_from_labels(cfg: Config) -> bool:
    """True if the model is a plain classifier; others, such as DINO, need no labels."""
    return str(cfg.model.get('type')).split('.')[-1] in ('ImageClassifier', 'DistilledClassifier')


def _unlabelled(cfg: Config) -> str:
    if _learns_from_labels(cfg) or _head_classes(cfg):
        return ''
    return '. This model needs no labels: with_label=False of the data set takes images in any folders'


def _check_labels_are_not_needed(data: Data, cfg: Config) -> None:
    if data.split == 'train' and _learns_from_labels(cfg):
        raise UsageError(f'{data} has no labels (with_label=False), and {cfg.model.type} learns from them')
    if data.split != 'train' and _evaluators(cfg, data.split):
        names = ', '.join(str(metric.get('type')) for metric in _evaluators(cfg, data.split))
        why = "ImageNet's split='test' has none" if data.cfg.get('split') == 'test' else 'with_label=False'
        if 'Accuracy' in names:
            raise UsageError(f'{data} has no labels ({why}), and the metric {names} compares with them')


def _why_no_folders(files: List[str], folder: str, data: Data, cfg: Config) -> str:
    images = [name for name in files if name.lower().endswith(MMPRETRAIN_SUFFIXES)]
    if images:
        listing = data.path(os.path.join('meta', f'{data.cfg.get("split") or "val"}.txt'))
        as_list = f'list them with their class number, one "NAME NUMBER" in each line, in {listing}'
        if data.is_own and not any(name.startswith('ILSVRC') for name in images):
            return (
                f'Its {len(images)} images lie side by side. Sort them into a folder for each class, with the name of '
                f'the class; or {as_list}{_unlabelled(cfg)}'
            )
        return (
            f'Its {len(images)} images lie side by side, as ILSVRC ships those for validation. Sort them into a folder '
            f'for each class, with the well-known valprep.sh (github.com/soumith/imagenetloader.torch) run inside '
            f'{folder}; or {as_list}{_unlabelled(cfg)}'
        )
    archives = [name for name in files if name.endswith('.tar')]
    if archives:
        return (
            f'It holds {len(archives)} archives ({some(archives)}), as ILSVRC ships the training images. Unpack each '
            f'into a folder of its name: '
            f'cd {folder} && for f in *.tar; do mkdir ${{f%.tar}} && tar xf $f -C ${{f%.tar}}; done'
        )
    return f'It holds {some(files) or "nothing"}. {data.advice()}'


def _advice(data: Data, found: set) -> str:
    """Where to get missing data; nothing about ImageNet if the folders have other names."""
    own = data.name == 'ImageNet' and not any(map(IMAGENET_FOLDER.fullmatch, found))
    return data.where_else() if own else data.advice()


def _why_other_number(found: set, folder: str, data: Data, datasets: List[Data]) -> str:
    if len(found) == 1:
        (only,) = found
        inside = [entry.name for entry in os.scandir(os.path.join(folder, only)) if entry.is_dir()]
        if inside:
            return f'{len(inside)} folders lie one level deeper, in {os.path.join(folder, only)}. '
    for other, names in _same_data(data, datasets):
        if names - found:
            return f'Missing here and present in {other}: {some(names - found)}. '
    classes = set(data.classes or ())
    if classes & found:
        lists = (('Classes without a folder', classes - found), ('Folders that are no class', found - classes))
        return ''.join(f'{what}: {some(names)}. ' for what, names in lists if names)
    return ''


def _folders(data: Data) -> Optional[set]:
    folder = data.path(data.prefix('img_path') or data.cfg.get('split'))
    return {entry.name for entry in os.scandir(folder) if entry.is_dir()} if os.path.isdir(folder) else None


def _same_data(data: Data, datasets: List[Data]) -> Iterator[tuple]:
    """The folders of the other splits of the same data that the run uses, with their folders of classes."""
    for other in datasets:
        if other is not data and other.kind is data.kind and other.root == data.root:
            names = _folders(other)
            if names is not None:
                yield other.path(other.prefix('img_path') or other.cfg.get('split')), names


def _other_folders(data: Data, cfg: Config) -> Iterator[tuple]:
    """The same for all splits of the config whose labels come from their folders, wherever they are."""
    if (data.cfg.get('metainfo') or {}).get('folders'):
        return
    for other in _classified(cfg):
        same = other.cfg is not data.cfg and other.kind is data.kind and other.classes == data.classes
        if same and not other.cfg.get('ann_file') and '://' not in other.root and other.setting('with_label'):
            names = _folders(other)
            if names is not None:
                yield other.path(other.prefix('img_path') or other.cfg.get('split')), names


def _classified(cfg: Config) -> List[Data]:
    """The data sets of all splits that are MMPretrain's or inherit from them."""
    found = []
    for split, loader in find_loaders(cfg).items():
        for dataset in innermost_datasets(loader['dataset']):
            kind = find_type(DATASETS, dataset['type'], cfg.get('default_scope') or 'mmengine')
            if any(parent.__module__.startswith('mmpretrain.') for parent in getattr(kind, '__mro__', ())):
                found.append(Data(split, dataset, kind))
    return found


def _evaluators(cfg: Config, split: str) -> List[dict]:
    evaluators = cfg.get(f'{split}_evaluator') or []
    return [evaluators] if isinstance(evaluators, dict) else list(evaluators)


def _check_categories(data: Data) -> None:
    """Check that annotations of OpenMMLab's own format (JSON) list the classes as the config does."""
    path = data.path(data.cfg.get('ann_file'))
    if not data.classes or not os.path.isfile(path) or not _module_of(data, 'load_data_list').startswith('mmengine.'):
        return
    try:
        with open(path) as file:
            metainfo = json.load(file)['metainfo']
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f'{data}: {path} is not of the form {{"metainfo": ..., "data_list": [...]}} '
            f'({type(error).__name__}: {error})'
        ) from None
    classes = metainfo.get('classes') or [
        category.get('category_name') for category in sorted(metainfo.get('categories', ()), key=lambda one: one['id'])
    ]
    if classes and list(classes) != data.classes:
        raise UsageError(
            f'{data}: {path} has other classes, or another order of them, than the config; its labels are numbers, and '
            f'follow the file.{side_by_side(classes, data.classes, ("file", "config"))}\n'
            f'Write the classes of the config as the file has them'
        )


def check_classification(datasets: List[Data], cfg: Config) -> None:
    """Check that data sets of training and testing, and metrics and classes, belong together.

    Args:
        datasets (list[Data]): Those of MMPretrain that the run uses.
        cfg (Config): Also for what the run does not use: classes of training that a test is compared with.
    """
    if not datasets:
        return
    everything = _classified(cfg)
    trained = next((data for data in everything if data.split == 'train' and data.classes), None)
    used = {data.split for data in datasets}
    if trained and 'train' not in used and _head_classes(cfg) not in (None, len(trained.known_classes)):
        trained = None  # a test of a model that these data did not train
    for data in everything:
        if trained and data.split in used:
            compare_classes(trained, data)
    for data in datasets:
        _check_categories(data)
        number = _head_classes(cfg) or (len(data.classes) if data.classes else None)
        if len(data.classes or range(number or 0)) == 1 and data.split == 'train' and _learns_from_labels(cfg):
            raise UsageError(f'{data} has one class: there is nothing to tell apart')
        multi = 'MultiLabelDataset' in {kind.__name__ for kind in data.kind.__mro__}
        for metric in _evaluators(cfg, data.split) if cfg.model.get('head') and data.split != 'train' else ():
            kind = str(metric.get('type')).split('.')[-1]
            topk = metric.get('topk', 1)
            most = max([topk] if isinstance(topk, int) else topk, default=1)
            if kind == 'Accuracy' and number and most > number:
                raise UsageError(
                    f'{data.split}_evaluator.topk is {topk}, and there are {number} classes; set topk=(1,)'
                )
            if kind in ('Accuracy', 'SingleLabelMetric') and multi:
                raise UsageError(
                    f'{data} has several labels for an image, and {kind} compares with one; take '
                    f"type='MultiLabelMetric' or 'AveragePrecision' as {data.split}_evaluator"
                )
            if number and metric.get('num_classes') not in (None, number) and kind.endswith('Metric'):
                raise UsageError(
                    f'{data.split}_evaluator.num_classes is {metric["num_classes"]}, and there are {number} classes'
                )
