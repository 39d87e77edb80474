"""Settings that contradict each other or have no effect; loops, loaders and metrics that need each other.

===============================================  ====================================================================
what is found                                    what is done
===============================================  ====================================================================
zero workers with settings of workers            these are left out
an argument that data loaders do not take        refused (``shuffle`` belongs to the sampler)
a loader without its loop or metric              refused; MMEngine wants all three or none
``max_iters`` for a loop of epochs               refused, and the other way round
``save_best`` of what the metrics do not give    refused; MMEngine fails after the first validation
a text where transforms want a list of keys      refused
segmentation: batches larger than their crops    noted: all of the rest is padding
===============================================  ====================================================================
"""

import difflib
import inspect
from typing import Any, Iterator, List, Optional, Tuple

from mmengine.config import Config
from mmengine.runner import loops
from torch.utils.data import DataLoader

from ..datasets.config import check_names, find_loaders, innermost_datasets
from ..errors import UsageError

# Settings that a loader without workers refuses or ignores.
OF_WORKERS = ('persistent_workers', 'prefetch_factor', 'timeout', 'multiprocessing_context')
LOADER_KEYS = (set(inspect.signature(DataLoader.__init__).parameters) - {'self', 'shuffle'}) | {
    'disable_subprocess_warning',
    'num_batch_per_epoch',
    *OF_WORKERS,
}
LISTS_OF_KEYS = ('meta_keys', 'algorithm_keys', 'seg_keys')
LOOPS = {'max_epochs': ('EpochBasedTrainLoop', True), 'max_iters': ('IterBasedTrainLoop', False)}


def check_settings(cfg: Config) -> List[str]:
    """Check that settings agree with each other.

    Args:
        cfg (Config): The config; unambiguous mistakes are fixed in place.

    Returns:
        list[str]: Notes for the user.

    Raises:
        UsageError: With the keys that contradict each other, and what to do.
    """
    for split, loader in find_loaders(cfg).items():
        for dataset in innermost_datasets(loader['dataset']):
            _check_keys(f'{split}_dataloader.dataset.pipeline', dataset.get('pipeline') or ())
    agree_workers(cfg)
    neighbours = (cfg.get('knn') or {}).get('ks')
    if neighbours is not None and not isinstance(neighbours, (list, tuple)):
        raise UsageError(f'knn.ks is {neighbours!r}; a tuple of one number needs a comma: ({neighbours!r},)')
    return _padding(cfg)


def agree_workers(cfg: Config) -> List[str]:
    """Remove settings of workers where there are none: PyTorch would refuse them after the data were read.

    Returns:
        list[str]: What was removed, per data loader.
    """
    changes = []
    for split, loader in find_loaders(cfg).items():
        taken = [key for key in OF_WORKERS if not loader.get('num_workers', 0) and loader.pop(key, None)]
        if taken:
            changes.append(f'{split}_dataloader: num_workers=0, so without {", ".join(taken)}')
    return changes


def check_loops(cfg: Config, split: str) -> None:
    """Check that everything MMEngine builds a loop from is there, and fits it.

    Args:
        cfg (Config): The config.
        split (str): 'train' or 'test': the one that is to run.

    Raises:
        UsageError: Naming what is missing, or what the loop does not take.
    """
    for name, loader in find_loaders(cfg).items():
        if name == split or (split, name) == ('train', 'val'):
            _check_loader(f'{name}_dataloader', loader)
    if split == 'train':
        _check_train_cfg(cfg.get('train_cfg'))
        _check_save_best(cfg)
    groups = {
        'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
        'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
        'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
    }
    for name, keys in groups.items():
        missing = [key for key in keys if cfg.get(key) is None]
        if missing and (len(missing) < len(keys) or name == split):
            there = [key for key in keys if key not in missing]
            raise UsageError(
                f'the config has no {", ".join(missing)}'
                + (f', and has {", ".join(there)}' if there else '')
                + f'; {", ".join(keys)} are needed together'
                + ('' if name == split else f', or none of them ({", ".join(f"{key}=None" for key in there)})')
            )


def _check_loader(name: str, loader: dict) -> None:
    if 'shuffle' in loader:
        raise UsageError(
            f'{name}.shuffle: the order is the affair of the sampler; set '
            f"{name}.sampler=dict(type='DefaultSampler', shuffle={loader['shuffle']})"
        )
    for key in set(loader) - LOADER_KEYS:
        near = difflib.get_close_matches(key, LOADER_KEYS, n=1, cutoff=0.7)
        inside = key in ('data_root', 'ann_file', 'pipeline', 'metainfo', 'data_prefix', 'classes', 'indices')
        right = f'{name}.dataset.{key}' if inside else f'{name}.{near[0]}' if near else None
        raise UsageError(
            f'{name} takes no {key!r}; '
            + (f'did you mean {right}?' if right else f'it takes {", ".join(sorted(LOADER_KEYS))}')
        )
    if loader.get('sampler') is None and 'sampler' not in loader:
        shuffle = name == 'train_dataloader'
        raise UsageError(f"{name} has no sampler; add sampler=dict(type='DefaultSampler', shuffle={shuffle})")
    if loader.get('batch_sampler') and loader.get('drop_last'):
        raise UsageError(
            f'{name}: with a batch_sampler, drop_last is its argument: {name}.batch_sampler.drop_last=True'
        )
    for key, least in (('num_workers', 0), ('batch_size', 1)):
        value = loader.get(key, least)
        if value is not None and (not isinstance(value, int) or value < least):
            raise UsageError(f'{name}.{key} must be {least} or more, got {value!r}')


def _check_keys(path: str, pipeline: Any) -> None:
    for number, step in enumerate(pipeline):
        if isinstance(step, (list, tuple)):
            _check_keys(f'{path}.{number}', step)
        elif hasattr(step, 'get'):
            for key in LISTS_OF_KEYS:
                if isinstance(step.get(key), str):
                    check_names(f'{path}.{number}.{key}', step[key])
            if isinstance(step.get('transforms'), (list, tuple)):
                _check_keys(f'{path}.{number}.transforms', step['transforms'])


def _check_train_cfg(train: Optional[dict]) -> None:
    if not train:
        return
    if 'type' in train and 'by_epoch' in train:
        raise UsageError(
            f'train_cfg has a type ({_name(train["type"])}) and by_epoch={train["by_epoch"]}, which says the same '
            f'again. One of them comes from a base: with _delete_=True in train_cfg, the config sets all of it'
        )
    if 'type' not in train and 'by_epoch' not in train:
        raise UsageError(
            "train_cfg needs a type: 'EpochBasedTrainLoop' (max_epochs) or 'IterBasedTrainLoop' (max_iters)"
        )
    for other, key in (('max_epochs', 'max_iters'), ('max_iters', 'max_epochs')):
        name, by_epoch = LOOPS[key]
        if _name(train.get('type')) != name and train.get('by_epoch') is not by_epoch:
            continue
        if other in train or key not in train:
            found = f'got {other}={train[other]}' if other in train else 'which is missing'
            raise UsageError(
                f'train_cfg: {name} counts {key.split("_")[1]} ({key}), {found}. To count {other.split("_")[1]}: '
                f"train_cfg=dict(_delete_=True, type='{LOOPS[other][0]}', {other}=..., val_interval=...)"
            )
        known = set(inspect.signature(getattr(loops, name).__init__).parameters) - {'self', 'runner', 'dataloader'}
        for wrong in set(train) - known - {'type', 'by_epoch', '_scope_'}:
            near = difflib.get_close_matches(wrong, known, n=1)
            hint = f'did you mean {near[0]!r}?' if near else f'it takes {", ".join(sorted(known))}'
            raise UsageError(f'train_cfg: {name} takes no {wrong!r}; {hint}')


def _check_save_best(cfg: Config) -> None:
    """Check that the metrics return what ``save_best`` names; only known types are checked."""
    best = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best')
    given, evaluators = [], cfg.get('val_evaluator')
    for evaluator in [evaluators] if hasattr(evaluators, 'get') else evaluators or ():
        names = list(_metric_names(evaluator)) if hasattr(evaluator, 'get') else []
        if not names:
            return
        given += names
    for wanted in [best] if isinstance(best, str) else best or ():
        if given and wanted != 'auto' and wanted not in given:
            near = difflib.get_close_matches(wanted, given, n=1, cutoff=0.5)
            raise UsageError(
                f'default_hooks.checkpoint.save_best is {wanted!r}, and val_evaluator does not give it; it gives '
                f'{", ".join(given)}. ' + (f'Did you mean {near[0]!r}?' if near else "save_best='auto' takes the first")
            )


def _metric_names(evaluator: dict) -> Iterator[str]:
    kind = _name(evaluator.get('type'))
    if evaluator.get('prefix') or evaluator.get('collect_dir'):
        return
    if kind == 'CocoMetric' and not evaluator.get('metric_items') and not evaluator.get('classwise'):
        for metric in _as_list(evaluator.get('metric', 'bbox')):
            if metric in ('bbox', 'segm'):
                yield from (f'coco/{metric}_mAP{part}' for part in ('', '_50', '_75', '_s', '_m', '_l'))
            else:
                yield from (f'coco/AR@{part}' for part in ('100', '300', '1000', 's@1000', 'm@1000', 'l@1000'))
    elif kind == 'IoUMetric':
        names = {'mIoU': ('mIoU', 'mAcc'), 'mDice': ('mDice', 'mAcc'), 'mFscore': ('mFscore', 'mPrecision', 'mRecall')}
        yield 'aAcc'
        for metric in _as_list(evaluator.get('iou_metrics', ['mIoU'])):
            yield from names.get(metric, ())
    elif kind == 'Accuracy' and not evaluator.get('thrs'):
        yield from (f'accuracy/top{k}' for k in _as_list(evaluator.get('topk', (1,))))


def _padding(cfg: Config) -> List[str]:
    """MMSegmentation pads every batch to the size of its data preprocessor."""
    preprocessor: Any = (cfg.get('model') or {}).get('data_preprocessor')
    size = preprocessor.get('size') if hasattr(preprocessor, 'get') else None
    loader = find_loaders(cfg).get('train')
    if cfg.get('default_scope') != 'mmseg' or not isinstance(size, (list, tuple)) or not loader:
        return []
    for dataset in innermost_datasets(loader['dataset']):
        crops = [step for step in dataset.get('pipeline') or () if _name(step.get('type')) == 'RandomCrop']
        crop = crops[-1].get('crop_size') if crops else None
        if isinstance(crop, (list, tuple)) and any(part > of for part, of in zip(size, crop)):
            share = 1 - min(crop[0], size[0]) * min(crop[1], size[1]) / (size[0] * size[1])
            return [
                f'model.data_preprocessor.size is {tuple(size)} and RandomCrop gives {tuple(crop)}: {share:.0%} of '
                f'every batch is padding. Set model.data_preprocessor.size to the crop too'
            ]
    return []


def _as_list(value: Any) -> Tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _name(kind: Any) -> str:
    return str(kind if isinstance(kind, str) or kind is None else getattr(kind, '__name__', kind)).split('.')[-1]
