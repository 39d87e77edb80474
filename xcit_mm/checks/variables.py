"""Variables of config files that nothing reads: changing them changes nothing that is trained or tested.

A file's variables (``train_pipeline``, ``data_root``, ``max_iters``) are substituted when the file is read. Changing
one later has no effect on the places where it was substituted.

==============================  =====================================================================================
where a variable is changed     what is compared
==============================  =====================================================================================
``--cfg-options``               every key at the top that no built part reads (:func:`check_options`)
a file that inherits            each name that it assigns and does not use, with what is built (:func:`check_files`)
==============================  =====================================================================================

Both name the keys that count. What agrees with them, what is left over from a base, and dumped configs pass.
"""

import ast
import importlib.util
import os
import re
from contextlib import suppress
from functools import lru_cache
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from mmengine.config import Config

from ..compat import base_files
from ..errors import UsageError
from .built import BUILT

ALL_DATASETS = '{train} {val} {test}'
# Names that configs give to a setting, and the keys that count: {train} is a data set, ** any depth.
KEYS = {
    'train_pipeline': '{train}.pipeline',
    'val_pipeline': '{val}.pipeline',
    'test_pipeline': '{test}.pipeline {val}.pipeline',
    'data_root': '{train}.data_root {val}.data_root {test}.data_root',
    'dataset_type': '{train}.type {val}.type {test}.type',
    'metainfo': '{train}.metainfo {val}.metainfo {test}.metainfo',
    'classes': '{train}.metainfo.classes {val}.metainfo.classes {test}.metainfo.classes',
    'palette': '{train}.metainfo.palette {val}.metainfo.palette {test}.metainfo.palette',
    'num_classes': 'model.**.num_classes',
    'crop_size': 'model.data_preprocessor.size {train}.pipeline.**.crop_size',
    'max_epochs': 'train_cfg.max_epochs',
    'max_iters': 'train_cfg.max_iters',
    'val_interval': 'train_cfg.val_interval',
    'batch_size': 'train_dataloader.batch_size',
    'num_workers': 'train_dataloader.num_workers',
    'lr': 'optim_wrapper.optimizer.lr',
    'weight_decay': 'optim_wrapper.optimizer.weight_decay',
    'optimizer': 'optim_wrapper.optimizer',
    'data_preprocessor': 'model.data_preprocessor',
    'backbone': 'model.backbone',
    # Of MMCV 1, which nothing reads any more.
    'data': 'train_dataloader val_dataloader test_dataloader',
    'runner': 'train_cfg',
    'lr_config': 'param_scheduler',
    'evaluation': 'val_evaluator train_cfg.val_interval',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger',
    'optimizer_config': 'optim_wrapper',
}
OTHER_NAMES = {
    'val_pipeline': ['valid_pipeline'],
    'dataset_type': ['train_dataset_type'],
    'metainfo': ['meta_info', 'dataset_meta'],
    'classes': ['class_names', 'class_name', 'CLASSES'],
    'palette': ['PALETTE'],
    'num_classes': ['n_classes', 'num_class'],
    'max_epochs': ['epochs', 'total_epochs', 'num_epochs', 'max_epoch', 'n_epochs'],
    'max_iters': ['iters', 'total_iters', 'num_iters', 'max_iter', 'iterations'],
    'batch_size': ['samples_per_gpu', 'train_batch_size', 'train_batch_size_per_gpu', 'batch_size_per_gpu'],
    'num_workers': ['workers_per_gpu', 'train_num_workers'],
    'lr': ['base_lr', 'learning_rate'],
}
NAMES = {other: name for name, others in OTHER_NAMES.items() for other in others}
# Data sets have these in their class, if not in the config.
WITHOUT_KEY = ('classes', 'metainfo')
OLD = ('data', 'runner', 'lr_config', 'evaluation', 'checkpoint_config', 'log_config', 'optimizer_config')
MISSING = object()


def check_options(cfg: Config, options: dict, before: Dict[str, List[str]]) -> None:
    """Check that every ``--cfg-options`` reaches something that is built.

    Args:
        cfg (Config): With the options merged into it.
        options (dict): Values by dotted key.
        before (dict): :func:`find_variables` of the config before that.

    Raises:
        UsageError: With the keys that have an effect.
    """
    for key in options:
        name, _, rest = key.partition('.')
        if name not in before:
            continue
        paths = before[name]
        if paths and all(_get(cfg, path) == cfg.get(name) for path in paths):
            continue  # changed in both places
        if not paths and cfg.get('custom_imports'):
            continue  # custom code may read it
        raise UsageError(
            f'--cfg-options {key} changes nothing; {_what_counts(name, paths, rest)}. {name!r} is a variable of the '
            f'config file, and was filled in when the file was read'
        )


def find_variables(cfg: Config, options: dict) -> Dict[str, List[str]]:
    """Top-level keys that options change and nothing reads, with the keys that have an effect instead."""
    found = {}
    for name in {key.partition('.')[0] for key in options}:
        hidden = name == 'data_preprocessor' and name in (cfg.get('model') or {})
        if hidden or (name not in BUILT and (name in cfg or keys_that_count(cfg, name))):
            plain = _without_scopes(cfg.to_dict())
            found[name] = keys_that_count(plain, name) or list(_places(plain, plain.get(name)))
    return found


def _what_counts(name: str, paths: Sequence[str], rest: str = '') -> str:
    if not paths:
        return 'nothing that is built reads it'
    shown = [f'{path}.{rest}' if rest else path for path in paths[:4]]
    option = ', or --data-root FOLDER' if NAMES.get(name, name) == 'data_root' else ''
    verb = 'counts is' if len(shown) == 1 else 'count are'
    return f'what {verb} {", ".join(shown)}{", ..." if len(paths) > 4 else ""}{option}'


def keys_that_count(cfg: dict, name: str) -> List[str]:
    """The keys of a config that set what a variable of that name usually stands for."""
    name = NAMES.get(name, name)
    found = []
    for pattern in KEYS.get(name, '').split():
        for path in _expand(cfg, pattern):
            value = _get(cfg, path)
            if value is not MISSING or (name in WITHOUT_KEY and _get(cfg, path.split('.')[0]) is not MISSING):
                found.append(path)
    return list(dict.fromkeys(found))


def _expand(cfg: dict, pattern: str) -> Iterator[str]:
    """The paths that match a pattern."""
    split = re.match(r'\{(\w+)\}', pattern)
    if split:
        loader = f'{split[1]}_dataloader'
        dataset = (cfg.get(loader) or {}).get('dataset')
        for path in _dataset_paths(dataset, f'{loader}.dataset') if dataset else ():
            yield from _expand(cfg, path + pattern[split.end() :])
    elif '**' in pattern:
        start, key = pattern.split('.**.')
        for path, _ in _walk(_get(cfg, start), start):
            if path.endswith(f'.{key}'):
                yield path
    else:
        yield pattern


def _dataset_paths(dataset: dict, path: str) -> Iterator[str]:
    if isinstance(dataset.get('datasets'), (list, tuple)):
        for number, inner in enumerate(dataset['datasets']):
            yield from _dataset_paths(inner, f'{path}.datasets.{number}')
    elif isinstance(dataset.get('dataset'), dict):
        yield from _dataset_paths(dataset['dataset'], f'{path}.dataset')
    else:
        yield path


def _walk(value: Any, path: str) -> Iterator[Tuple[str, Any]]:
    """All nested values, with their paths."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        yield from _walk(item, f'{path}.{key}' if path else str(key))


def _get(cfg: Any, path: str) -> Any:
    """The value at a dotted path, or MISSING."""
    for part in path.split('.'):
        if isinstance(cfg, (dict, Config)) and part in cfg:
            cfg = cfg[part]
        elif isinstance(cfg, (list, tuple)) and part.isdigit() and int(part) < len(cfg):
            cfg = cfg[int(part)]
        else:
            return MISSING
    return cfg


def _places(cfg: dict, value: Any) -> Iterator[str]:
    """Paths at which built parts hold a value; for strings, also as part of a longer one."""
    if value is None or isinstance(value, bool):
        return
    for name in sorted(BUILT & set(cfg)):
        for path, found in _walk(cfg[name], name):
            inside = isinstance(value, str) and isinstance(found, str) and len(value) > 3 and value in found
            if inside or (type(found) is type(value) and found == value):
                yield path


class _File(NamedTuple):
    """What a config file says at its top level.

    Attributes:
        path (str): The file.
        bases (list[str]): The files that it inherits.
        assigned (set[str]): Names that it gives a value.
        used (set[str]): Names of its own that it reads a value of.
        used_of_bases (set[str]): Names of its bases.
    """

    path: str
    bases: List[str]
    assigned: set
    used: set
    used_of_bases: set


def check_files(path: str) -> None:
    """Check that all variables that config files assign reach something that is built.

    Args:
        path (str): The config file. Those that it inherits are checked too, except those of installed packages.

    Raises:
        UsageError: Naming the file, the variable and the keys that count.
    """
    pending, used = [os.path.abspath(path)], set()
    while pending:
        file = _read(pending.pop())
        if file is None:
            continue
        if any(part in file.path for part in ('site-packages', f'{os.sep}.mim{os.sep}')):
            continue
        pending += file.bases
        used |= file.used
        # A dumped config uses none of its names, and says nothing of which were used before.
        if file.bases or file.used & file.assigned:
            _check_file(file, sorted((file.assigned - used) - (BUILT - {'data_preprocessor'})))
        used |= file.used_of_bases


def _check_file(file: _File, names: Sequence[str]) -> None:
    """Check that names that a file assigns and does not use agree with what is built."""
    if not names:
        return
    ours = _load(file.path)
    theirs = {key: value for base in file.bases for key, value in _load(base).items()}
    for name in names:
        new, old = ours.get(name, MISSING), theirs.get(name, MISSING)
        if new is MISSING or new == old or (name == 'data_preprocessor' and name not in ours.get('model', {})):
            continue
        paths = keys_that_count(ours, name)
        if old is not MISSING and not isinstance(old, (int, float)) and NAMES.get(name, name) != 'num_classes':
            # First where the base's value is in effect still; a file may have replaced it everywhere.
            in_effect = [path for path in paths if _same(_get(ours, path), old)]
            paths = in_effect or list(_places(ours, old)) or paths
        if name in OLD and _numbers(new) <= {number for path in paths for number in _numbers(_get(ours, path))}:
            continue
        elsewhere = () if isinstance(new, (int, float)) else _places({**ours, name: None}, new)
        if paths and not any(_same(_get(ours, path), new) for path in paths) and not any(elsewhere):
            raise UsageError(
                f'the config {file.path} sets {name}, which nothing reads; {_what_counts(name, paths)}. {name!r} is a '
                f'variable, and no other setting of the file uses it'
            )


def _same(found: Any, value: Any) -> bool:
    """Equal, lists and tuples alike; of lists of transforms and the like, in every item."""
    if isinstance(found, (list, tuple)) and isinstance(value, (list, tuple)):
        return len(found) == len(value) and all(map(_same, found, value))
    if isinstance(found, str) and isinstance(value, str):
        return found.rstrip('/') == value.rstrip('/')
    return found == value


def _numbers(value: Any) -> set:
    return {item for _, item in _walk(value, '') if isinstance(item, (int, float))}


@lru_cache(maxsize=64)
def _load(path: str) -> dict:
    with suppress(Exception):  # a base alone can refer to what another has
        return _without_scopes(Config.fromfile(path, import_custom_modules=False).to_dict())
    return {}


def _without_scopes(value: Any) -> Any:
    """Without the ``_scope_`` that MMEngine adds to what comes from another package."""
    if isinstance(value, dict):
        return {key: _without_scopes(item) for key, item in value.items() if key != '_scope_'}
    return type(value)(map(_without_scopes, value)) if type(value) in (list, tuple) else value


def _read(path: str) -> Optional[_File]:
    try:
        with open(path, encoding='utf-8') as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return None
    if not path.endswith('.py'):
        return None
    bases, assigned, used, used_of_bases = [], set(), set(), set()
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else ()
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if '_base_' in names:
            with suppress(Exception):
                bases += base_files(path)
            continue
        assigned |= names
        used |= _used_names(statement)
        for node in ast.walk(statement):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == '_base_':
                used_of_bases.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                used_of_bases |= set(re.findall(r'_base_\.(\w+)', node.value))
    bases += [base for base in (_imported(node, path) for node in ast.walk(tree)) if base]
    return _File(path, [os.path.abspath(base) for base in bases], assigned, used, used_of_bases)


def _used_names(statement: ast.stmt) -> set:
    """The names that a statement reads, other than to modify them."""
    changed: Sequence[ast.AST] = ()
    if isinstance(statement, (ast.Assign, ast.AugAssign)):
        changed = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        changed = [statement.value.func]
    elif isinstance(statement, ast.Delete):
        changed = statement.targets
    roots = set()
    for node in changed:
        while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
            node = node.func if isinstance(node, ast.Call) else node.value
        roots.add(node)
    nodes = (node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    return {node.id for node in nodes if node not in roots}


def _imported(node: ast.AST, path: str) -> Optional[str]:
    """The file of a base of a config in pure Python: ``from .base import *``."""
    if not isinstance(node, ast.ImportFrom):
        return None
    parts = (node.module or '').split('.')
    if node.level:
        folder = path
        for _ in range(node.level):
            folder = os.path.dirname(folder)
        file = os.path.join(folder, *parts) + '.py'
        return file if os.path.isfile(file) else None
    if 'configs' not in parts:
        return None
    with suppress(Exception):
        spec = importlib.util.find_spec(node.module or '')
        return spec.origin if spec else None
    return None
