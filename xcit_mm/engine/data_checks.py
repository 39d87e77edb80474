"""What can be known to be wrong with the data before any of it is read: missing, empty and incomplete folders.

Folders are listed, and no image is opened, so that this takes a second or two for ImageNet as well.
"""

import inspect
import os
import re
from typing import Iterator, List, NamedTuple, Optional, Sequence

from mmengine.config import Config
from mmengine.registry import DATASETS

from .errors import UsageError

# How to get each data set, by the type that reads it.
SOURCES = {
    'CocoDataset': (
        'COCO 2017: download train2017.zip, val2017.zip and annotations_trainval2017.zip from cocodataset.org '
        'and unpack them side by side'
    ),
    'ADE20KDataset': (
        'ADE20K: download ADEChallengeData2016.zip (scene parsing benchmark, sceneparsing.csail.mit.edu) and unpack it'
    ),
    'ImageNet': 'ImageNet-1k: folders train/<class>/ and val/<class>/ of the ILSVRC 2012 images (image-net.org)',
}
DIGITS = 'the embedded digits: python tools/make_digits.py data/digits'
ADE20K_IMAGES = {'training': 20210, 'validation': 2000}
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # MMPretrain's


class Data(NamedTuple):
    """One data set of a config.

    Attributes:
        split (str): 'train', 'val' or 'test'.
        cfg (dict): Its config, without wrappers.
        kind (type, optional): The class that reads it, if it is known.
    """

    split: str
    cfg: dict
    kind: Optional[type]

    @property
    def name(self) -> str:
        kind = self.cfg['type']
        return (kind if isinstance(kind, str) else kind.__name__).split('.')[-1]

    @property
    def root(self) -> str:
        return self.cfg.get('data_root') or ''

    def __str__(self) -> str:
        return f'the data for {self.split} ({self.name})'

    def path(self, part: Optional[str]) -> str:
        return os.path.join(self.root, part or '') or '.'

    def prefix(self, key: str) -> Optional[str]:
        """A folder of ``data_prefix``, which is a dict, or one folder alone."""
        prefix = self.cfg.get('data_prefix')
        return prefix.get(key) if isinstance(prefix, dict) else prefix

    def setting(self, key: str):
        """An argument, from the config or the default of the class."""
        if key in self.cfg:
            return self.cfg[key]
        for kind in self.kind.__mro__:
            parameter = inspect.signature(kind.__init__).parameters.get(key)
            if parameter is not None:
                return parameter.default
        return None

    def how_to_get(self) -> str:
        return DIGITS if 'digits' in self.root else SOURCES.get(self.name, 'the data set')

    def where_else(self) -> str:
        root = self.root.rstrip('/') or '.'
        return f'To use a copy elsewhere: --data-root FOLDER, or ln -s FOLDER {root}'


def innermost_datasets(dataset: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else None)
    if inner is None:
        yield dataset
    for child in inner or ():
        yield from innermost_datasets(child)


def find_loaders(cfg: Config) -> dict:
    """Data loaders of the config by their name, 'train', 'val' and 'test'."""
    loaders = {split: cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')}
    return {split: loader for split, loader in loaders.items() if loader}


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Make sure that the files and folders of the splits exist and are complete, as far as their listing tells.

    Raises:
        UsageError: Naming what is missing, how to get it and how to point elsewhere.
    """
    datasets = [
        Data(split, dataset, None)
        for split, loader in find_loaders(cfg).items()
        if split in splits
        for dataset in innermost_datasets(loader['dataset'])
    ]
    for data in datasets:
        _check_paths(data)
    scope = cfg.get('default_scope') or 'mmengine'
    datasets = [data._replace(kind=find_type(DATASETS, data.cfg['type'], scope)) for data in datasets]
    for data in datasets:
        if '://' in data.root:
            continue
        names = {f'{kind.__module__.split(".")[0]}.{kind.__name__}' for kind in getattr(data.kind, '__mro__', ())}
        if 'mmdet.CocoDataset' in names:
            _check_coco(data)
        elif 'mmseg.BaseSegDataset' in names:
            _check_maps(data)
        elif 'mmpretrain.CustomDataset' in names:
            _check_classes(data, datasets, cfg)


def find_type(registry, kind, scope: str) -> Optional[type]:
    """The class behind a ``type`` of a config; None if it is unknown."""
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(scope) as scoped:
        return scoped.get(kind)


def _check_paths(data: Data) -> None:
    prefixes = data.cfg.get('data_prefix')
    if not data.root and not prefixes and not data.cfg.get('ann_file'):
        return  # a data set that needs no files
    parts = [data.cfg.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]
    if data.cfg.get('split') and not any(parts):
        parts = [data.cfg['split']]  # MMPretrain's name for the folder
    _check_exist(data, [data.path(part) for part in parts if isinstance(part, str) and part] or [data.root])


def _check_exist(data: Data, paths: List[str]) -> None:
    missing = [path for path in paths if '://' not in path and not os.path.exists(path)]
    if missing:
        raise UsageError(
            f'{data} is not where the config expects it. Missing: {", ".join(missing)} (from {os.getcwd()}). '
            f'To get it: {data.how_to_get()}. {data.where_else()}'
        )


def _some(names, limit: int = 3) -> str:
    names = sorted(names)
    return ', '.join(names[:limit]) + (', ...' if len(names) > limit else '')


def _list_files(folder: str) -> Iterator[str]:
    """The files below a folder by their path from there, as MMEngine lists them: without hidden ones."""
    pending = ['']
    while pending:
        inside = pending.pop()
        with os.scandir(os.path.join(folder, inside)) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(os.path.join(inside, entry.name))
                elif not entry.name.startswith('.'):
                    yield os.path.join(inside, entry.name)


def _stems(folder: str, suffix: str) -> set:
    return {name[: -len(suffix)] for name in _list_files(folder) if name.endswith(suffix)}


# Detection.


def _check_coco(data: Data) -> None:
    """Whether the annotations are a whole JSON file that names images of the folder; it is not parsed."""
    annotations = data.path(data.cfg.get('ann_file'))
    images = data.path(data.prefix('img'))
    if not os.path.isfile(annotations):
        return
    with open(annotations, 'rb') as file:
        start = file.read(1 << 16)
        size = os.path.getsize(annotations)
        file.seek(max(0, size - 64))
        end = file.read().rstrip()
    if not start.lstrip().startswith(b'{') or not end.endswith(b'}'):
        raise UsageError(
            f'{data}: {annotations} is not a whole COCO annotation file: {size} bytes, beginning with {start[:16]!r} '
            f'and ending with {end[-16:]!r}, expected a JSON object {{...}}. It may be cut off or a saved web page. '
            f'To get it: {data.how_to_get()}'
        )
    names = [name.decode() for name in re.findall(rb'"file_name"\s*:\s*"([^"\\]+)"', start)[:20]]
    if names and not any(os.path.exists(os.path.join(images, name)) for name in names):
        found = _some(entry.name for entry in os.scandir(images))
        raise UsageError(
            f'{data}: {images} has none of the first {len(names)} images that {annotations} names, such as {names[0]}. '
            f'It holds {found or "nothing"}. To get it: {data.how_to_get()}. {data.where_else()}'
        )


# Segmentation.


def _check_maps(data: Data) -> None:
    """Whether every image has its map of classes, and every map its image."""
    image_suffix, map_suffix = data.setting('img_suffix'), data.setting('seg_map_suffix')
    images, maps = data.path(data.prefix('img_path')), data.prefix('seg_map_path')
    _check_exist(data, [images])
    image_names = _stems(images, image_suffix)
    if not image_names:
        raise UsageError(f'{data}: there is no image (*{image_suffix}) in {images}. To get it: {data.how_to_get()}')
    listed = data.path(data.cfg.get('ann_file')) if data.cfg.get('ann_file') else None
    wanted = image_names
    if listed and os.path.isfile(listed):
        with open(listed) as file:
            wanted = {line.strip() for line in file if line.strip()}
    without_image = wanted - image_names
    without_map = set()
    if maps is not None:
        map_names = _stems(data.path(maps), map_suffix)
        without_map = wanted - map_names
        if wanted is image_names:
            without_image = map_names - image_names
    if without_map or without_image:
        found = [
            f'{what}: {len(names)} ({_some(names)})'
            for names, what in ((without_map, 'images without a map'), (without_image, 'missing images'))
            if names
        ]
        counts = f'{len(image_names)} images' + (f' and {len(map_names)} maps' if maps is not None else '')
        whole = 'The whole ADE20K has 20,210 images for training and 2,000 for validation, each with a map. '
        raise UsageError(
            f'{data} is incomplete: {counts} in {images} and {data.path(maps)}; {"; ".join(found)}. '
            f'{whole if data.name == "ADE20KDataset" else ""}To get it: {data.how_to_get()}. To use a part of it, list '
            f'the names, without suffix, in a text file, and give that as ann_file'
        )
    expected = ADE20K_IMAGES.get(os.path.basename(images.rstrip('/')))
    if data.name == 'ADE20KDataset' and wanted is image_names and expected and len(image_names) != expected:
        print(f'Note: {images} has {len(image_names)} images; in the whole ADE20K it has {expected}.', flush=True)


# Classification.


def _check_classes(data: Data, datasets: List[Data], cfg: Config) -> None:
    """Whether there is one folder for each class, with images in it."""
    folder = data.path(data.prefix('img_path') or data.cfg.get('split'))
    _check_exist(data, [folder])
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
            f'{data}: {folder} has {len(found)} folders of classes ({_some(found)}), and the config has {expected} '
            f'classes. {_why_other_number(found, folder, data, datasets)}To get it: {data.how_to_get()}. For classes '
            f'of your own, set metainfo=dict(classes=...) of the data sets and model.head.num_classes. '
            f'{data.where_else()}'
        )
    for other, names in _same_data(data, datasets):
        if len(names) == len(found) and names != found:  # another number is the other's own error
            raise UsageError(
                f'{data}: {folder} and {other} have different folders of classes, so their labels would differ. '
                f'Only in {folder}: {_some(found - names) or "none"}; only in {other}: {_some(names - found) or "none"}'
            )
    suffixes = tuple(data.setting('extensions') or IMAGE_SUFFIXES)
    empty = [
        name
        for name in sorted(found)
        if not any(file.lower().endswith(suffixes) for file in _list_files(os.path.join(folder, name)))
    ]
    if empty:
        raise UsageError(
            f'{data} is incomplete: {len(empty)} of {len(found)} folders of classes in {folder} have no image '
            f'({_some(empty)}). To get it: {data.how_to_get()}'
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
            f'It holds {len(archives)} archives ({_some(archives)}), as ILSVRC ships the training images. Unpack each '
            f'into a folder of its name: '
            f'cd {folder} && for f in *.tar; do mkdir ${{f%.tar}} && tar xf $f -C ${{f%.tar}}; done'
        )
    return f'It holds {_some(files) or "nothing"}. To get it: {data.how_to_get()}. {data.where_else()}'


def _why_other_number(found: set, folder: str, data: Data, datasets: List[Data]) -> str:
    if len(found) == 1:
        (only,) = found
        inside = [entry.name for entry in os.scandir(os.path.join(folder, only)) if entry.is_dir()]
        if inside:
            return f'{len(inside)} folders lie one level deeper, in {os.path.join(folder, only)}. '
    for other, names in _same_data(data, datasets):
        if names - found:
            return f'Missing here and present in {other}: {_some(names - found)}. '
    return ''


def _same_data(data: Data, datasets: List[Data]) -> Iterator[tuple]:
    """The folders of the other splits of the same data that the run uses, with their folders of classes."""
    for other in datasets:
        if other is not data and other.kind is data.kind and other.root == data.root:
            folder = other.path(other.prefix('img_path') or other.cfg.get('split'))
            if os.path.isdir(folder):
                yield folder, {entry.name for entry in os.scandir(folder) if entry.is_dir()}
