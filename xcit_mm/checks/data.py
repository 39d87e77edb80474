"""Missing, empty and incomplete folders, found before any data is read.

Folders are listed and no image is opened, so this takes a second or two even for ImageNet.
"""

import os
from typing import Sequence

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..datasets.config import MMPRETRAIN_SUFFIXES, Data, check_exist, find_loaders, find_type, innermost_datasets
from ..errors import UsageError
from .classification import check_classification, check_folders
from .detection import check_coco
from .label_maps import check_labels
from .segmentation import check_maps, check_segmentation

BASES = ('mmpretrain.BaseDataset', 'mmseg.BaseSegDataset')

# Data sets of MMPretrain that download themselves.
DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check that the files and folders of the splits exist and are complete, as far as a listing tells.

    Raises:
        UsageError: With what is missing, how to get it, and how to use a copy elsewhere.
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
    of_library = {library: [data for data in datasets if library in _names(data)] for library in BASES}
    check_classification(of_library['mmpretrain.BaseDataset'], cfg)
    check_segmentation(of_library['mmseg.BaseSegDataset'], cfg)
    for data in datasets:
        if '://' in data.root:
            continue
        names = _names(data)
        if 'mmdet.CocoDataset' in names:
            check_coco(data)
        elif 'mmseg.BaseSegDataset' in names:
            check_maps(data)
        elif 'mmpretrain.CustomDataset' in names:
            check_folders(data, datasets, cfg)
    check_labels([data for data in of_library['mmseg.BaseSegDataset'] if '://' not in data.root])


def _names(data: Data) -> set:
    """Library and name of the class that reads the data, and of its parents."""
    return {f'{kind.__module__.split(".")[0]}.{kind.__name__}' for kind in getattr(data.kind, '__mro__', ())}


def _check_paths(data: Data) -> None:
    prefixes = data.cfg.get('data_prefix')
    if not data.root and not prefixes and not data.cfg.get('ann_file'):
        return  # a data set that needs no files
    parts = [data.cfg.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]
    if data.name in DOWNLOADED and not os.path.exists(data.root):
        return
    if data.name.startswith('ImageNet') and data.cfg.get('split') and not any(parts):
        parts = [data.cfg['split']]  # the folder
        if os.path.isdir(data.root) and not os.path.isdir(data.path(parts[0])):
            images = [name for name in os.listdir(data.root) if name.lower().endswith(MMPRETRAIN_SUFFIXES)]
            if images:
                raise UsageError(
                    f'{data}: {data.root} has no folder {parts[0]!r}, and holds {len(images)} images itself. To read '
                    f"these, split='' in the data set (--cfg-options {data.split}_dataloader.dataset.split=), and "
                    f'with_label=False where the model learns without labels'
                )
    check_exist(data, [data.path(part) for part in parts if isinstance(part, str) and part] or [data.root])
