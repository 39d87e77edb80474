"""Compare a file's tensors with a whole model: heads with another number of classes, missing parts.

The backbone checks itself (:mod:`matching`): it takes all of its tensors or none. A head may differ; whether that is
intended depends on the purpose of loading.
"""

import logging
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Dict, List, Optional, Tuple, cast

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..errors import CheckpointError
from .matching import _shorten, _wrong_types

# Only for a second loss of segmentors; published files often lack it.
TRAINING_ONLY = ('auxiliary_head.',)


@dataclass(frozen=True)
class Fit:
    """How the tensors of a file fit a model, by the model's names.

    Attributes:
        own (dict): The model's parameters and persistent buffers.
        misshapen (dict): Shapes in the file and in the model.
        missing (list): Tensors of the model that the file lacks, without the counters of batch norms.
        unused (list): Tensors of the file for which the model has no place.
        class_counts (dict): Names of misshapen tensors by the numbers of classes in the file and in the model, where
            that explains the shapes.
        settings (list): The settings of the config under which all shapes would be the file's, if that is clear.
    """

    own: Dict[str, Tensor]
    misshapen: Dict[str, Tuple[tuple, tuple]]
    missing: List[str]
    unused: List[str]
    class_counts: Dict[Tuple[int, int], List[str]]
    settings: List[str]

    def differing(self, purpose: str) -> bool:
        """True if the file was made from another model."""
        names = [*self.misshapen, *(name for name in self.missing if self._counts(name))]
        if purpose == 'test':
            return any(not name.startswith(TRAINING_ONLY) for name in names)
        return bool(names or self.unused)

    def _counts(self, name: str) -> bool:
        """False for buffers that are constants of the model."""
        return isinstance(self.own[name], nn.Parameter) or name.endswith(('running_mean', 'running_var'))

    def describe(self) -> List[str]:
        """What differs, one sentence per kind of difference."""
        found = []
        explained = set()
        for (theirs, ours), names in self.class_counts.items():
            found.append(f'it was trained for {theirs} classes, and the config has {ours} ({_shorten(_layers(names))})')
            explained.update(names)
        others = [
            f'{name} {theirs} instead of {ours}'
            for name, (theirs, ours) in self.misshapen.items()
            if name not in explained
        ]
        if others:
            found.append(f'misshapen ({len(others)}): {_shorten(others)}')
        if self.missing:
            found.append(f'not in the file ({len(self.missing)} tensors): {_shorten(self._parts(self.missing))}')
        if self.unused:
            found.append(f'not in the model ({len(self.unused)} tensors): {_shorten(_parts_of(self.unused))}')
        return found

    def _parts(self, names: List[str]) -> List[str]:
        """Names of whole parts of the model where all of a part is among the names, else of the layers."""
        listed = set(names)
        whole = set(_parts_of(names)) - set(
            _parts_of([name for name in self.own if name not in listed and _is_compared(name)])
        )
        return list(dict.fromkeys(_part(name) if _part(name) in whole else _layer(name) for name in names))


def _part(name: str) -> str:
    return name.split('.')[0]


def _layer(name: str) -> str:
    return name.rpartition('.')[0] or name


def _parts_of(names: List[str]) -> List[str]:
    return list(dict.fromkeys(map(_part, names)))


def _layers(names: List[str]) -> List[str]:
    return list(dict.fromkeys(map(_layer, names)))


def fit_state_dict(model: nn.Module, state: Dict[str, Tensor], purpose: str) -> Optional[str]:
    """Check that a file's tensors fit a model well enough for a purpose, and drop those that do not fit.

    Called before tensors are copied, so nothing is half-loaded if this raises. Afterwards all of ``state`` fits,
    and what the file lacks has the model's own value, so MMEngine has nothing left to report.

    Args:
        model (nn.Module): The model, also inside a parallel or test-time-augmentation wrapper.
        state (dict): The file's tensors by name, changed in place.
        purpose (str): With 'train' (fine-tuning), layers that differ keep their initial values. With 'resume' and
            'test' the file has to fit completely.

    Returns:
        str, optional: What was left out, for the log.

    Raises:
        CheckpointError: If the model differs, and the purpose does not allow it; or if nothing fits.
    """
    source = getattr(getattr(state, '_metadata', None), 'source', {})
    who = f'{source["path"]}: ' if source.get('path') else ''
    # A parallel wrapper's prefix, which MMEngine takes off only after the hooks have run.
    for name in [name for name in state if name.startswith('module.')]:
        state[name[len('module.') :]] = state.pop(name)
    fit = compare(model, state)
    wrong = _wrong_types(state, fit.own)
    if wrong:
        raise CheckpointError(f'{who}the checkpoint does not fit the model, and nothing was loaded: {wrong[0]}')
    if fit.own and len(fit.missing) + len(fit.misshapen) >= sum(_is_compared(name) for name in fit.own):
        raise CheckpointError(
            f'{who}none of its tensors fits the model, and nothing was loaded. It holds '
            f'{_shorten(list(state)) or "none"}; the model has {_shorten(list(fit.own))}. '
            f'Give a checkpoint of this model'
        )
    if purpose != 'train' and fit.differing(purpose):
        raise CheckpointError(_refusal(who, fit, purpose))
    for name in [*fit.misshapen, *fit.unused]:
        state.pop(name, None)
    for name in [*fit.misshapen, *fit.missing]:
        state[name] = fit.own[name].detach()
    found = fit.describe()
    if not found:
        return None
    kept = 'Layers that differ or are missing keep their initial values. ' if fit.misshapen or fit.missing else ''
    return f'{who}{"; ".join(found)}. {kept}Everything else of the checkpoint was loaded'


def _refusal(who: str, fit: Fit, purpose: str) -> str:
    text = f'{who}the checkpoint is not of this model, and nothing was loaded: {"; ".join(fit.describe())}. '
    if purpose == 'resume':
        return text + (
            'Resume a run with the config it was started with; to start a new one from its weights, use '
            '--cfg-options load_from=FILE without --resume'
        )
    if fit.settings and not fit.missing:
        return text + (
            f'To test it, use the config it was trained with, or set {" and ".join(fit.settings)} (and the classes of '
            f'the data set); to fine-tune it, train with --cfg-options load_from=FILE'
        )
    return text + (
        'With random weights in these layers a test is meaningless: give a checkpoint of the whole model, or the '
        'config that the checkpoint was trained with'
    )


def compare(model: nn.Module, state: Dict[str, Tensor]) -> Fit:
    """Find out which tensors of a model would be loaded, without loading any.

    The modules themselves are asked, since many rename or reshape a file's tensors on the way.

    Raises:
        CheckpointError: From an XCiT backbone that the file does not fit.
    """
    metadata = getattr(state, '_metadata', {})  # one that names the file can be empty otherwise
    own: Dict[str, Tensor] = {}
    missing: List[str] = []
    unused: List[str] = []
    errors: List[str] = []
    settings: Dict[str, int] = {}

    def visit(module: nn.Module, state: dict, prefix: str = '') -> None:
        module = _unwrapped(module)
        number = getattr(module, 'num_classes', None)
        if isinstance(number, int) and number > 0:
            settings[prefix] = number
        module._load_from_state_dict(state, prefix, metadata.get(prefix[:-1], {}), True, missing, unused, errors)
        for name, child in module._modules.items():
            if child is not None:
                inside = f'{prefix}{name}.'
                visit(child, {key: value for key, value in state.items() if key.startswith(inside)}, inside)
        for hook in module._load_state_dict_post_hooks.values():  # LoRA's: only its adapters are ever saved
            hook(module, SimpleNamespace(missing_keys=missing, unexpected_keys=unused))

    _collect(model, own)
    with _nothing_changed(model):
        visit(model, dict(state))
    misshapen = {}
    for error in errors:
        shapes = re.findall(r'torch\.Size\(\[([\d, ]*)\]\)', error)
        if error.startswith('size mismatch for ') and len(shapes) == 2:
            name = error[len('size mismatch for ') :].split(': ')[0]
            theirs, ours = (tuple(int(n) for n in shape.split(',') if n.strip()) for shape in shapes)
            misshapen[name] = theirs, ours
    class_counts, wanted = _explain(misshapen, settings)
    return Fit(
        own=own,
        misshapen=misshapen,
        missing=[name for name in missing if name in own and _is_compared(name)],
        unused=list(dict.fromkeys(unused)),
        class_counts=class_counts,
        settings=wanted,
    )


def _is_compared(name: str) -> bool:
    return not name.endswith('num_batches_tracked')


def _unwrapped(module: nn.Module) -> nn.Module:
    while is_model_wrapper(module) or isinstance(module, BaseTTAModel):
        module = cast(nn.Module, module.module)
    return module


def _collect(module: nn.Module, own: Dict[str, Tensor], prefix: str = '') -> None:
    module = _unwrapped(module)
    persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
    own.update({prefix + k: v for k, v in {**module._parameters, **persistent}.items() if v is not None})
    for name, child in module._modules.items():
        if child is not None:
            _collect(child, own, f'{prefix}{name}.')


@contextmanager
def _nothing_changed(model: nn.Module):
    """Within it, parameters are on the meta device, buffers are copies, and nothing is logged."""
    kept = [(module, module._parameters, module._buffers) for module in model.modules()]
    level = logging.root.manager.disable
    try:
        for module, parameters, buffers in kept:
            module._parameters = {
                name: value if value is None else nn.Parameter(value.detach().to('meta'), requires_grad=False)
                for name, value in parameters.items()
            }
            module._buffers = {name: value if value is None else value.clone() for name, value in buffers.items()}
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='for .*: copying from a non-meta parameter')
            yield
    finally:
        logging.disable(level)
        for module, parameters, buffers in kept:
            module._parameters, module._buffers = parameters, buffers


def _explain(misshapen: dict, num_classes: Dict[str, int]):
    """Which shapes differ because of the number of classes, and the settings under which they would not."""
    class_counts: Dict[Tuple[int, int], List[str]] = {}
    settings: Dict[str, int] = {}
    for name, (theirs, ours) in misshapen.items():
        owners = [prefix for prefix in num_classes if name.startswith(prefix)]
        if not owners or theirs[1:] != ours[1:]:
            continue
        owner = max(owners, key=len)
        count = _count_classes(theirs[0], ours[0], num_classes[owner])
        if count:
            class_counts.setdefault((count, num_classes[owner]), []).append(name)
            settings[f'model.{owner}num_classes'] = count
    if sum(map(len, class_counts.values())) < len(misshapen):
        settings = {}
    return class_counts, [f'{key}={count}' for key, count in settings.items()]


def _count_classes(their_rows: int, our_rows: int, our_classes: int) -> Optional[int]:
    """The classes behind an output of ``their_rows``, if ours has ``our_rows`` for ``our_classes``; None if unclear."""
    background = int(our_rows == our_classes + 1)  # softmax heads of detectors
    per_class, rest = divmod(our_rows - background, our_classes)
    if rest or not per_class or (their_rows - background) % per_class:
        return None
    return (their_rows - background) // per_class or None
