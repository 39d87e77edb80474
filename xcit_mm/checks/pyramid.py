"""Necks and heads read the feature maps of an XCiT's pyramid, and all of them."""

import inspect
import os
from typing import Any, Iterator, List, Optional, Set, Tuple

from mmengine.config import Config
from mmengine.registry import MODELS

from ..datasets.config import find_type
from ..errors import UsageError

# Necks of MMDetection that read only the coarsest map.
ONLY_THE_LAST = ('DilatedEncoder', 'CTResNetNeck')


def check_pyramid(cfg: Config, training: bool = True) -> None:
    """Compare the maps of the pyramid with those that necks and heads read.

    An unused map costs time and memory, and in data-parallel training its layers get no gradient, which ends the run at
    the second iteration. So unused maps are reported, and DDP gets ``find_unused_parameters``.

    Args:
        cfg (Config): The config, changed if there are several processes and unused maps.
        training (bool): Whether a training run follows.

    Raises:
        UsageError: If the neck or a head takes another number of maps, or maps of other channels.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    model = cfg.get('model') or {}
    neck: Any = model.get('neck') or []
    necks: List[dict] = [neck] if hasattr(neck, 'keys') else list(neck)
    pyramid = _pyramid(model.get('backbone'), necks, scope)
    if pyramid is None:
        return
    where, strides, channels, necks = pyramid
    readers = list(_readers(model, necks, strides, scope))
    for place, settings, _ in readers:
        _check_channels(place, settings, where, strides, channels, scope)
    used = set().union(*(maps for *_, maps in readers)) if readers else set(range(len(strides)))
    unused = [stride for number, stride in enumerate(strides) if number not in used]
    if not training or not unused:
        return
    kept = tuple(stride for stride in strides if stride not in unused)
    changes = [f'{where}.out_strides={kept}']
    if necks and isinstance(necks[0].get('in_channels'), (list, tuple)):
        changes += [
            f'model.{readers[0][0]}.in_channels={[channels] * len(kept)}',
            f'model.{readers[0][0]}.start_level=0',
        ]
    elif scope == 'mmseg':
        changes.append('count in_index of the heads among these')
    said = (
        f'{where} makes maps that nothing reads, of stride {", ".join(map(str, unused))}. Set {" and ".join(changes)}.'
    )
    if cfg.get('launcher', 'none') != 'none':
        wrapper = cfg.get('model_wrapper_cfg')
        if wrapper and str(wrapper.get('type')).endswith('DistributedDataParallel'):
            wrapper.setdefault('find_unused_parameters', True)
        else:
            cfg.find_unused_parameters = True
        said += ' Until then every iteration looks for layers without a gradient (find_unused_parameters=True).'
    if os.environ.get('RANK', '0') == '0':
        print(said, flush=True)


def _pyramid(backbone, necks: List[dict], scope: str) -> Optional[Tuple[str, tuple, Optional[int], List[dict]]]:
    """Where the pyramid is made, its strides and channels, and the necks behind it; None if there is none."""
    from ..models import MultiScaleAdapter, XCiT
    from ..models.adapter import check_strides
    from ..models.xcit import _arch_settings

    if necks and find_type(MODELS, necks[0].get('type'), scope) is MultiScaleAdapter:
        strides = tuple(necks[0].get('out_strides', MultiScaleAdapter.STRIDES))
        return 'model.neck.0', strides, necks[0].get('in_channels'), necks[1:]
    kind = find_type(MODELS, (backbone or {}).get('type'), scope)
    if not (inspect.isclass(kind) and issubclass(kind, XCiT) and backbone.get('out_type') == 'pyramid'):
        return None
    try:
        channels = _arch_settings(backbone.get('arch', 's12'))['embed_dims']
        strides = check_strides(backbone.get('out_strides', MultiScaleAdapter.STRIDES))
    except ValueError:  # the backbone reports this better
        return None
    return 'model.backbone', strides, channels, necks


def _readers(model: dict, necks: List[dict], strides: tuple, scope: str) -> Iterator[Tuple[str, dict, Set[int]]]:
    """Known readers of the pyramid: path in the config, settings, and which maps."""
    count = len(strides)
    every = set(range(count))
    if necks:
        place = 'neck' if hasattr(model['neck'], 'keys') else f'neck.{len(model["neck"]) - len(necks)}'
        kind = find_type(MODELS, necks[0].get('type'), scope)
        start, end = _setting(necks[0], kind, 'start_level', 0), _setting(necks[0], kind, 'end_level', -1)
        if getattr(kind, '__name__', '') in ONLY_THE_LAST:
            yield place, necks[0], {count - 1}
        elif end in (-1, None):
            yield place, necks[0], set(range(start, count))
        else:  # MMSegmentation's is the first that is left out, MMDetection's the last that is read
            yield place, necks[0], set(range(start, end + (_library(kind) != 'mmseg'))) & every
    elif scope == 'mmseg':
        for part in ('decode_head', 'auxiliary_head'):
            heads: Any = model.get(part) or []
            alone = hasattr(heads, 'keys')
            places = {part: heads} if alone else {f'{part}.{i}': head for i, head in enumerate(heads)}
            for place, head in places.items():
                yield place, head, _read_by_head(place, head, strides, scope)


def _read_by_head(place: str, head: dict, strides: tuple, scope: str) -> Set[int]:
    count = len(strides)
    if not hasattr(find_type(MODELS, head.get('type'), scope), '_init_inputs'):  # it may read any map
        return set(range(count))
    index = head.get('in_index', -1)
    index = [index] if isinstance(index, int) else list(index)
    if any(not -count <= i < count for i in index):
        raise UsageError(
            f'model.{place}.in_index is {head["in_index"]}, and the pyramid has {count} maps, of strides '
            f'{", ".join(map(str, strides))}; they are numbered from 0'
        )
    return {i % count for i in index}


def _check_channels(place: str, settings: dict, where: str, strides: tuple, channels, scope: str) -> None:
    """Check that ``in_channels`` has as many numbers as there are maps, and the right ones."""
    given = settings.get('in_channels')
    if given is None or _library(find_type(MODELS, settings.get('type'), scope)) not in ('mmdet', 'mmseg'):
        return  # a custom class
    several = isinstance(given, (list, tuple))
    numbers = list(given) if several else [given]
    if place.startswith('neck') and several and len(numbers) != len(strides):
        hint = f'set {where}.out_strides={strides[-len(numbers) :]}, or ' if len(numbers) < len(strides) else ''
        raise UsageError(
            f'model.{place} ({settings["type"]}) is for {len(numbers)} of the maps (in_channels={numbers}), and '
            f'{where} makes {len(strides)}, of strides {", ".join(map(str, strides))}; {hint}give in_channels '
            f'{len(strides)} numbers'
        )
    if channels is not None and any(number != channels for number in numbers):
        right = [channels] * len(numbers) if several else channels
        raise UsageError(
            f'model.{place}.in_channels is {given}, and every map of {where} has {channels} channels; set it to {right}'
        )


def _setting(settings: dict, kind, name: str, otherwise):
    """An argument of a config, or its default in the class."""
    if name in settings:
        return settings[name]
    parameter = inspect.signature(kind).parameters.get(name) if inspect.isclass(kind) else None
    return otherwise if parameter is None or parameter.default is parameter.empty else parameter.default


def _library(kind) -> str:
    return getattr(kind, '__module__', '').partition('.')[0]
