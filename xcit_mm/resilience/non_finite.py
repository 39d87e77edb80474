"""Losses and gradients that are NaN or Inf."""

import math
from typing import Dict, List, Optional

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..compat import norms
from ..errors import UsageError
from ..registry import HOOKS
from .consensus import any_process

SKIPPED = 'skipped_iterations'  # in MMEngine's message hub, so that it outlives an interruption
ACTIONS = ('stop', 'skip', 'ignore')
LISTED_IMAGES = 64


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Check losses and gradients for NaN and Inf, and keep them out of the model.

    No update uses such gradients, whichever the action. In mixed precision only the loss counts: overflowing gradients
    are what the loss scaler is for. The message names the iteration, the losses and the images of all processes.

    Args:
        action (str): 'stop' ends the run before anything of the iteration is saved, as the original code does. 'skip'
            restores weights, batch statistics and other buffers, and continues with the next batch. 'ignore' checks
            nothing, as MMEngine.
        max_skips (int): Iterations that a run may skip; one more ends it.

    Raises:
        UsageError: When the run ends.
    """

    priority = 'VERY_HIGH'  # before any hook reads or saves the model

    def __init__(self, action: str = 'stop', max_skips: int = 50):
        if action not in ACTIONS:
            raise ValueError(f'NonFiniteHook: action must be one of {ACTIONS}, got {action!r}')
        self.action, self.max_skips = action, max_skips
        self.bad_gradients = False
        self.handles: List = []
        self.buffers: Dict[str, Tensor] = {}

    def before_train(self, runner) -> None:
        if self.action == 'ignore':
            return
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
        self.handles = [
            w.optimizer.register_step_pre_hook(lambda optimizer, *_: self._look_at(optimizer, runner))
            for w in wrappers
            if hasattr(w.optimizer, 'register_step_pre_hook')
        ]

    def after_train(self, runner) -> None:
        for handle in self.handles:
            handle.remove()

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self.bad_gradients = False
        if self.action == 'skip':
            # Batch statistics are updated in the forward pass, before the loss is known.
            for name, buffer in _model(runner).named_buffers():
                if name in self.buffers and self.buffers[name].shape == buffer.shape:
                    self.buffers[name].copy_(buffer)
                else:
                    self.buffers[name] = buffer.detach().clone()

    def _look_at(self, optimizer, runner) -> None:
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        grads = [p.grad for p in parameters if not p.grad.is_sparse]
        found = [norm.float() for norm in norms(grads)] if grads else [torch.zeros(())]
        bad = not bool(torch.stack(found).isfinite().all())
        if not isinstance(runner.model, DistributedDataParallel) and is_model_wrapper(runner.model):
            bad = any_process(bad)  # each process holds a shard of the gradients
        if bad:
            self.bad_gradients = True
            for parameter in parameters:
                parameter.grad = None  # every optimizer skips those

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        if self.action == 'ignore':
            return
        losses = {name: _number(value) for name, value in (outputs or {}).items() if _is_number(value)}
        bad = {name: value for name, value in losses.items() if 'loss' in name and not math.isfinite(value)}
        if not any_process(bool(bad) or self.bad_gradients):
            return
        message = self._describe(runner, bad, data_batch)
        skips = runner.message_hub.runtime_info.get(SKIPPED, 0) + 1
        if self.action == 'stop':
            raise UsageError(
                f'{message} Training stops; the weights are those before this iteration, and what was saved before is '
                f'as it was. A lower learning rate, gradient clipping (optim_wrapper.clip_grad) or bf16 instead of '
                f'fp16 usually help; to skip such iterations: --cfg-options '
                f'default_hooks.non_finite.action=skip'
            )
        if skips > self.max_skips:
            raise UsageError(
                f'{message} Training stops, since {self.max_skips} iterations were skipped before this one '
                f'(default_hooks.non_finite.max_skips); what was saved before is as it was'
            )
        with torch.no_grad():
            for name, buffer in _model(runner).named_buffers():
                buffer.copy_(self.buffers[name])
        runner.message_hub.update_info(SKIPPED, skips)
        runner.logger.warning(f'{message} The iteration is skipped ({skips} of at most {self.max_skips}).')

    def _describe(self, runner, bad: Dict[str, float], data_batch) -> str:
        found = [None]
        found = all_gather_object((bad, _image_names(data_batch)))
        several = len(found) > 1
        what = '; '.join(
            (f'process {rank}: ' if several else '') + ', '.join(f'{name} is {value}' for name, value in losses.items())
            for rank, (losses, _) in enumerate(found)
            if losses
        )
        # Without a bad loss, the gradients may come from any process.
        guilty = [names for losses, names in found if losses] or [names for _, names in found]
        images = [name for names in guilty for name in names]
        listed = ', '.join(images[:LISTED_IMAGES]) or 'unknown'
        more = f' and {len(images) - LISTED_IMAGES} more' if len(images) > LISTED_IMAGES else ''
        return (
            f'iteration {runner.iter + 1} (epoch {runner.epoch + 1}): {what or "the losses are finite"}'
            f'{", and gradients are not finite" if self.bad_gradients else ""}. Images: {listed}{more}.'
        )


def _model(runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _number(value) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _image_names(data_batch) -> List[str]:
    """Paths of the images of a batch, where their samples have them."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    samples = samples if isinstance(samples, (list, tuple)) else [samples]
    return [str(sample.img_path) for sample in samples if getattr(sample, 'img_path', None)]
