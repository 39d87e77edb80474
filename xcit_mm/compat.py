"""MMEngine's private names, and those of PyTorch's data loader, in one place.

Hooks need to know whether a runner trains or only tests, whether it resumes, and which loops it has built. MMEngine has
no public names for these: ``runner.train_loop``, for one, builds the loop. ``tests/test_compat.py`` holds every name
against the installed versions, and :func:`missing_methods` does so for what would otherwise fail in silence.
"""

from importlib import import_module
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.optim import _ParamScheduler as ParamScheduler
from mmengine.registry import STRATEGIES
from mmengine.runner import BaseLoop
from mmengine.runner.checkpoint import _load_checkpoint_to_model as load_to_model
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm as BatchNorm
from torch import Tensor

__all__ = ['BatchNorm', 'FSDPStrategy', 'Mixin', 'ParamScheduler', 'load_to_model']

FSDPStrategy: Any = STRATEGIES.get('mmengine.FSDPStrategy')  # the module, mmengine._strategy, is private

Mixin: Any = object  # base of mixins, which to type checkers have whatever they are mixed into

# Methods that classes of this project override, by module and class. An override under another name is never called.
OVERRIDDEN: Dict[Tuple[str, str], Tuple[str, ...]] = {
    ('mmengine.hooks', 'CheckpointHook'): ('_save_best_checkpoint', '_save_checkpoint_with_step'),
    ('mmengine.hooks', 'EMAHook'): ('_swap_ema_parameters', '_swap_ema_state_dict'),
    ('mmengine.hooks', 'Hook'): ('_after_epoch', '_after_iter'),
    ('mmengine.infer', 'BaseInferencer'): ('_get_chunk_data', '_load_model_from_metafile', '_load_weights_to_model'),
    ('mmengine.optim', '_ParamScheduler'): ('_get_value',),
    ('mmengine.runner', 'EpochBasedTrainLoop'): ('_decide_current_val_interval',),
    ('mmengine.runner', 'IterBasedTrainLoop'): ('_decide_current_val_interval',),
    ('mmengine._strategy', 'FSDPStrategy'): ('_is_full_state_dict',),
    ('torch.utils.data', 'DataLoader'): ('_get_iterator',),
}


def missing_methods() -> List[str]:
    """The methods of :data:`OVERRIDDEN` that the installed versions do not have, as ``module.Class.method``."""
    return [
        f'{module}.{kind}.{name}'
        for (module, kind), names in OVERRIDDEN.items()
        for name in names
        if not callable(getattr(getattr(import_module(module), kind, None), name, None))
    ]


def built_loop(runner, split: str) -> Optional[BaseLoop]:
    """The loop of 'train', 'val' or 'test' if the runner has built it, else None.

    Runners build the training loop before they load a checkpoint, and none when they only test.
    """
    loop = getattr(runner, f'_{split}_loop', None)  # until then its config
    return loop if isinstance(loop, BaseLoop) else None


def is_resuming(runner) -> bool:
    """True if the runner continues a run, False if it starts one, from a checkpoint or not."""
    return runner._resume


def is_loaded(runner) -> bool:
    """True after the runner has loaded a checkpoint; it stays False where there is none to load."""
    return runner._has_loaded


def checkpoint_of(runner) -> Optional[str]:
    """The checkpoint that the runner is told to load."""
    return runner._load_from


def resume_from(runner, path: str) -> None:
    """Tell a runner that has not loaded anything yet to continue from a checkpoint."""
    runner._resume, runner._load_from = True, path


def part_of(runner, split: str, part: str):
    """The 'dataloader' or 'evaluator' of a split: its config before the runner has built it, None without one."""
    return getattr(runner, f'_{split}_{part}', None)


def set_part(runner, split: str, part: str, cfg) -> None:
    """Replace the config of a 'dataloader' or 'evaluator' that the runner has not built yet."""
    setattr(runner, f'_{split}_{part}', cfg)


def accumulative_counts(optim_wrapper) -> int:
    """Iterations per update of the weights; 1 for wrappers of several optimizers, which do not accumulate."""
    return getattr(optim_wrapper, '_accumulative_counts', 1)


def change_lr_scaling(strategy, change: Callable[[Optional[dict]], Optional[dict]]) -> None:
    """Replace ``auto_scale_lr`` of a strategy by what ``change`` makes of it."""
    strategy._auto_scale_lr = change(strategy._auto_scale_lr)


def update_val_interval(train_loop) -> None:
    """Bring ``train_loop.val_interval`` up to date with the iteration (``dynamic_intervals``)."""
    train_loop._decide_current_val_interval()


def restart_order(sampler) -> None:
    """Let an ``InfiniteSampler`` begin with the first index of its seed, whatever was read ahead."""
    if hasattr(sampler, 'indices') and hasattr(sampler, '_indices_of_rank'):
        sampler.indices = sampler._indices_of_rank()


def base_files(path: str) -> List[str]:
    """The config files that a config file names in ``_base_``."""
    return [Config._get_cfg_path(base, path)[0] for base in Config._get_base_files(path)]


def wrap_iterator(loader, wrap: Callable[[Callable], Any]) -> None:
    """Let ``wrap`` call the function that starts a data loader's worker processes."""
    start = loader._get_iterator
    loader._get_iterator = lambda: wrap(start)


def drop_workers(loader) -> None:
    """End the worker processes that a data loader has started, so that the next iterator starts new ones."""
    loader._iterator = None


def norms(tensors: Sequence[Tensor]) -> List[Tensor]:
    """The 2-norm of each tensor, in few kernel launches where PyTorch has them."""
    if hasattr(torch, '_foreach_norm'):
        return list(torch._foreach_norm(list(tensors)))
    return [torch.linalg.vector_norm(tensor) for tensor in tensors]
