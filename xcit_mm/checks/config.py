"""Mistakes in configs and in ``--cfg-options``: unknown names and values of the wrong kind.

MMEngine takes any key: a misspelt one is added beside the right one and has no effect, or it ends the run with a
traceback. Here it gets one message that names it and the closest valid key.
"""

import difflib
import inspect
from numbers import Number
from typing import Any, Callable, Iterator, List, Optional, Sequence, Set, Tuple

from mmengine import registry as registries
from mmengine.config import Config

from ..datasets.config import find_loaders, find_type, innermost_datasets
from ..errors import UsageError
from .built import BUILT
from .classes import check_classes
from .settings import check_settings
from .variables import check_options as check_variables
from .variables import find_variables

# Registries by the key whose value is looked up in them.
KINDS = {
    'model': 'MODELS',
    'dataset': 'DATASETS',
    'datasets': 'DATASETS',
    'sampler': 'DATA_SAMPLERS',
    'pipeline': 'TRANSFORMS',
    'transforms': 'TRANSFORMS',
    'default_hooks': 'HOOKS',
    'custom_hooks': 'HOOKS',
    'optimizer': 'OPTIMIZERS',
    'param_scheduler': 'PARAM_SCHEDULERS',
    'train_evaluator': 'METRICS',
    'val_evaluator': 'METRICS',
    'test_evaluator': 'METRICS',
    'vis_backends': 'VISBACKENDS',
}
# Keys that builders consume before they call the class.
TAKEN = {'type', '_scope_', '_delete_', 'priority', 'convert_to_iter_based'}
CLOSE, VERY_CLOSE = 0.6, 0.85
# Keys whose value may be a number or a string.
NUMBER_OR_WORD = ('loss_scale', 'interval', 'resume', 'load_from')


def apply_options(cfg: Config, options: Optional[dict]) -> None:
    """Apply ``--cfg-options`` to a config.

    Raises:
        UsageError: If the config has no such setting, or one of another kind.
    """
    if not options:
        return
    variables = find_variables(cfg, options)
    check_options(cfg, {key: value for key, value in options.items() if key.partition('.')[0] not in variables})
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        check_variables(cfg, options, variables)
        raise UsageError(f'--cfg-options do not fit the config {cfg.filename}: {error}') from error
    check_variables(cfg, options, variables)


def check_options(cfg: Config, options: dict) -> None:
    """Check that ``--cfg-options`` change existing settings, or add arguments that the type at that place takes.

    Args:
        cfg (Config): The config before they are merged into it.
        options (dict): Values by dotted key.

    Raises:
        UsageError: With the key and the closest valid one, or the expected kind of value.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    for key, value in options.items():
        place, kind = cfg, None
        parts = key.split('.')
        for depth, part in enumerate(parts):
            before = '.'.join(parts[:depth])
            if isinstance(place, (list, tuple)):
                if not part.isdigit() or int(part) >= len(place):
                    raise UsageError(
                        f'--cfg-options {key}: {before} is a list of {len(place)}; its items are named by their number '
                        f'from 0, got {part!r}'
                    )
                place = place[int(part)]
                continue
            if place is None:  # such as an init_cfg that is not given
                break
            if not hasattr(place, 'keys'):
                raise UsageError(
                    f'--cfg-options {key}: {before} is {place!r} and holds nothing, so there can be no {part!r} in it'
                )
            kind = KINDS.get(part, kind)
            if part in place:
                place = place[part]
                continue
            if f'{before}.type' in options:  # the arguments are those of the type that is set beside them
                place = {**place, 'type': options[f'{before}.type']}
            known, complete = _known_keys(place, depth, kind, scope)
            near = difflib.get_close_matches(part, known - {part}, n=1, cutoff=CLOSE if complete else VERY_CLOSE)
            if part not in known and (complete or near):
                raise UsageError(
                    f'--cfg-options {key}: {f"{before} has" if before else "a config has"} no {part!r}'
                    + (
                        f'; did you mean {".".join([*parts[:depth], near[0]])}?'
                        if near
                        else f'; it takes {", ".join(sorted(known - TAKEN))}'
                    )
                )
            place = None
            break
        if place is not None and value is not None:
            _check_kind(key, place, value)


def _known_keys(place, depth: int, kind: Optional[str], scope: str) -> Tuple[set, bool]:
    """Keys that a place of the config has or takes, and whether the list is complete."""
    if depth == 0:
        return set(place) | BUILT, True
    known = set(place)
    if 'type' not in place:
        return known, False
    found = _find(place['type'], [kind] if kind else [], scope)
    if found is None:
        return known, False
    arguments, complete = _arguments(found)
    # Deep inside a model, the enclosing class may consume an argument.
    complete = complete and (kind != 'MODELS' or depth == 1 or str(place['type']).startswith('xcit_mm.'))
    return known | arguments | TAKEN, complete


def _check_kind(key: str, old, new) -> None:
    expected = None
    if isinstance(old, bool):
        expected = 'True or False' if not isinstance(new, (bool, int)) else None
    elif isinstance(old, Number):
        is_number = isinstance(new, Number) and not isinstance(new, bool)
        expected = f'a number such as {old}' if not is_number and not key.endswith(NUMBER_OR_WORD) else None
    elif isinstance(old, (list, tuple)):
        is_list = isinstance(new, (list, tuple, dict))
        # A list of indices and the like may also be a single number.
        of_numbers = isinstance(new, Number) and all(isinstance(item, Number) for item in old)
        shown = ','.join(map(str, old)) if len(str(old)) < 60 and not any(map(_is_dict, old)) else 'a,b'
        expected = f'a list, such as "[{shown}]"' if not is_list and not of_numbers else None
    elif _is_dict(old) and not _is_dict(new):
        inside = next(iter(old), 'name')
        expected = f'settings inside of it, such as {key}.{inside}=...'
    if expected:
        raise UsageError(f'--cfg-options {key}: expected {expected}, got {new!r}')


def _is_dict(value) -> bool:
    return hasattr(value, 'keys')


def check_config(cfg: Config) -> List[str]:
    """Check that every type of a config exists and takes the arguments it is given, and its settings agree.

    Args:
        cfg (Config): The config; unambiguous mistakes are fixed in place.

    Returns:
        list[str]: What was changed, and other notes for the user.

    Raises:
        UsageError: With the key and the closest valid one.
    """
    for key in cfg:
        near = difflib.get_close_matches(key, BUILT, n=1, cutoff=0.92)  # 'test_pipeline' is valid
        if near and key not in BUILT and isinstance(cfg[key], (dict, list)):
            raise UsageError(f'the config has {key!r}, which nothing reads; did you mean {near[0]!r}?')
    scope = cfg.get('default_scope')
    if not scope:
        return []  # its types depend on what was imported
    for key in BUILT & set(cfg):
        for path, settings, kinds in _typed(cfg[key], key, []):
            _check_type(path, settings, kinds, scope)
    for split, loader in find_loaders(cfg).items():
        for dataset in innermost_datasets(loader['dataset']):
            if 'type' not in dataset:
                outer = loader['dataset'].get('type')
                raise UsageError(
                    f'{split}_dataloader.dataset (of type {outer!r}) has a data set without a type, with '
                    f'{", ".join(dataset) or "nothing"}; only a wrapper such as RepeatDataset has one inside'
                )
    return check_classes(cfg, scope) + check_settings(cfg)


def _typed(value, path: str, kinds: List[str]) -> Iterator[Tuple[str, dict, List[str]]]:
    """All dicts with a type, with their path and the registries that may know the type."""
    name = next((part for part in reversed(path.split('.')) if not part.isdigit()), '')
    inside_model = 'MODELS' in kinds
    if name in KINDS and not inside_model and kinds != ['HOOKS']:
        kinds = [KINDS[name]] if name != 'model' else ['MODELS', 'TASK_UTILS']
        inside_model = name == 'model'
    elif inside_model and (name.endswith('_cfg') or name in ('cfg', 'roi_layer')):
        return  # these are read by other functions
    if _is_dict(value):
        if 'type' in value and kinds:
            yield path, value, kinds
        if str(value.get('type')).split('.')[-1] == 'Albu':
            return  # its transforms are Albumentations'
        inner = value.items()
        if value.get('type') and not inside_model:
            kinds = []
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    else:
        return
    for key, item in inner:
        yield from _typed(item, f'{path}.{key}', kinds)


def _find(kind, places: Sequence[str], scope: str) -> Optional[Callable]:
    for place in places or ('MODELS', 'DATASETS', 'TRANSFORMS', 'HOOKS', 'METRICS', 'LOOPS', 'OPTIM_WRAPPERS'):
        found = find_type(getattr(registries, place), kind, scope)
        if found is not None:
            return found
    return None


def _check_type(path: str, settings: dict, places: List[str], scope: str) -> None:
    kind = settings['type']
    found = _find(kind, places, scope)
    if found is None:
        names = {name for place in places for name in _names(getattr(registries, place), scope)}
        prefix, _, name = str(kind).rpartition('.')
        if 'MODELS' in places and path.count('.') > 1 and name.islower():
            return  # the name of something that the enclosing class creates
        lower = {name.lower(): name for name in names}
        cutoff = VERY_CLOSE if 'MODELS' in places else CLOSE
        near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=cutoff)
        if near:
            right = f'{prefix}.{lower[near[0]]}' if prefix else lower[near[0]]
            raise UsageError(f'{path}.type: there is no {kind!r}; did you mean {right!r}?')
        return
    arguments, complete = _arguments(found)
    for key in set(settings) - arguments - TAKEN:
        # In models, the enclosing class may consume it.
        complete = complete and ('MODELS' not in places or str(kind).startswith('xcit_mm.'))
        cutoff = CLOSE if complete else 0.9 if 'MODELS' in places else VERY_CLOSE
        near = difflib.get_close_matches(key, arguments, n=1, cutoff=cutoff)
        if complete or near:
            explained = getattr(found, 'explain_arguments', lambda given: None)(settings)
            if explained:
                raise UsageError(f'{path}: {explained}')
            hint = f'did you mean {near[0]!r}?' if near else f'it takes {", ".join(sorted(arguments))}'
            raise UsageError(
                f'{path}.{key}: {kind if isinstance(kind, str) else kind.__name__} takes no {key!r}; {hint}'
            )


def _names(registry, scope: str) -> set:
    names = set()
    with registry.switch_scope_and_registry(scope) as scoped:
        while scoped is not None:
            names.update(scoped.module_dict)
            scoped = scoped.parent
    if registry is registries.MODELS:
        names.add('XCiT')
    return names


def _arguments(kind: Callable) -> Tuple[set, bool]:
    """Argument names of a class and of its bases, and whether the list is complete (no ``**kwargs``)."""
    names: Set[str] = set()
    complete = True
    classes: Sequence[Any] = kind.__mro__ if inspect.isclass(kind) else (kind,)
    for number, one in enumerate(classes):
        function = one.__dict__.get('__init__') if inspect.isclass(one) else one
        if function is None or one is object:
            continue
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # implemented in C
            return names, False
        names.update(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            # A class without **kwargs ends the list; but a **kwargs before it may go elsewhere.
            return names - {'self'}, not any(c is not one for c in classes[:number] if '__init__' in c.__dict__)
        complete = False
    return names - {'self'}, complete
