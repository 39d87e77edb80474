"""Resuming an interrupted training run."""

import os
from collections import Counter
from contextlib import suppress
from typing import Dict, Iterator

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ..checkpoint import is_address
from ..compat import built_loop, checkpoint_of, is_loaded, is_resuming, resume_from, update_val_interval
from ..errors import UsageError
from ..registry import HOOKS
from .checkpointing import damage, find_checkpoint
from .consensus import any_process

# Environment variables in which torchrun and SLURM count restarts.
RESTARTS = ('TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT')
STARTED = '.started'  # file in the work folder whose date is the start of the latest run
VALIDATED = 'last_validation'  # in MMEngine's message hub: its iteration (a name with 'val' first would be logged)


@HOOKS.register_module()
class ResumeHook(Hook):
    """Choose the checkpoint to resume from, and run a validation that the interruption has skipped.

    With ``resume=True`` and no ``load_from``, take the newest intact checkpoint of the work folder, and warn of newer
    ones that are truncated or damaged; MMEngine takes the newest without looking. A run that torchrun
    (``--max-restarts``) or SLURM (requeue) restarts resumes by itself, from its own checkpoints. If the run would have
    validated right after the checkpoint, and has not, it validates first.

    Settings of the optimizer and the schedule come from the checkpoint; warn of those that differ in the config.

    Raises:
        UsageError: If no checkpoint of the work folder is intact, or if the named one is not.
    """

    priority = 'LOWEST'  # the other hooks are ready when it validates

    def before_run(self, runner) -> None:
        if built_loop(runner, 'train') and not is_loaded(runner):
            self.choose(runner)

    def choose(self, runner) -> None:
        """Tell the runner which checkpoint to resume from, if any."""
        # torchrun counts a restart on the machine where a process died, and on others only if it saw one die there too.
        restarted = any_process(any(int(os.environ.get(name) or 0) > 0 for name in RESTARTS))
        path = checkpoint_of(runner)
        if is_resuming(runner) and path:
            self._check(path)
        elif is_resuming(runner) or restarted:
            path = self._choose(runner, own=not is_resuming(runner))
            if path:
                resume_from(runner, path)
        if not is_resuming(runner) and is_main_process():
            with suppress(OSError), open(os.path.join(runner.work_dir, STARTED), 'w'):
                pass

    @staticmethod
    def _check(path: str) -> None:
        if is_address(path) or path.endswith('.safetensors'):
            return
        found = [damage(path) if is_main_process() else None]
        broadcast_object_list(found)
        if found[0]:
            raise UsageError(f'the run cannot resume from {path}: it is {found[0]}. Name another, or --resume alone')

    @staticmethod
    def _choose(runner, own: bool):
        """The checkpoint, the same in every process; with ``own`` only those written since the run began."""
        found: list = [None, []]
        if is_main_process():
            started = os.path.join(runner.work_dir, STARTED)
            if not own or os.path.exists(started):
                found = list(find_checkpoint(runner.work_dir, started if own else None))
        broadcast_object_list(found)
        path, damaged = found
        for file, reason in damaged:
            runner.logger.warning(f'the checkpoint {file} is skipped: {reason}')
        if damaged and not path:
            listed = ''.join(f'\n  {file}: {reason}' for file, reason in damaged)
            raise UsageError(
                f'no checkpoint in {runner.work_dir} is intact:{listed}\n'
                f'Remove them, or leave --resume out, to start from scratch'
            )
        if path:
            runner.logger.info(f'Resuming from the newest intact checkpoint, {path}')
        else:
            runner.logger.warning(
                f'there is no checkpoint in {runner.work_dir} to resume from: training starts from scratch'
            )
        return path

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not is_resuming(runner) or built_loop(runner, 'train') is None:
            return
        found = list(overridden_settings(runner, checkpoint))
        if found:
            runner.logger.warning(
                f'The run continues with settings of the checkpoint, not with those of the config: {"; ".join(found)}. '
                f'To train with those of the config: --cfg-options load_from=CHECKPOINT, without --resume'
            )

    def before_train(self, runner) -> None:
        if is_resuming(runner) and runner.iter >= runner.max_iters:
            runner.logger.warning(
                f'Nothing is left to train: the checkpoint is at iteration {runner.iter}, and the run ends at '
                f'{runner.max_iters}. train_cfg sets its length'
            )
        if not is_resuming(runner) or runner.val_loop is None or not self._validation_is_due(runner):
            return
        if runner.message_hub.runtime_info.get(VALIDATED) == runner.iter:
            return
        runner.logger.info('validating first, since the interrupted run did not')
        runner.val_loop.run()

    @staticmethod
    def _validation_is_due(runner) -> bool:
        """True if the loop would have validated just before the next iteration."""
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            count, last = loop.epoch, loop.max_epochs
            hook = next((hook for hook in runner.hooks if hasattr(hook, 'resumed')), None)
            if hook is not None and hook.resumed and hook.resumed['done']:
                return False
        elif isinstance(loop, IterBasedTrainLoop):
            count, last = loop.iter, loop.max_iters
        else:
            return False
        if count == 0 or count < loop.val_begin:
            return False
        update_val_interval(loop)
        return count % loop.val_interval == 0 or count == last

    def before_val_epoch(self, runner) -> None:
        if built_loop(runner, 'train'):
            runner.message_hub.update_info(VALIDATED, runner.iter)


def overridden_settings(runner, checkpoint: dict) -> Iterator[str]:
    """Settings of optimizer and schedules that differ between checkpoint and config, with both values.

    Args:
        runner (Runner): With optimizer and schedules as the config says.
        checkpoint (dict): The checkpoint that replaces them.
    """
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    groups = (checkpoint.get('optimizer') or {}).get('param_groups') or []
    if optimizer is not None and len(groups) == len(optimizer.param_groups):
        pairs: Dict[str, set] = {}  # the same for most groups
        for ours, theirs in zip(optimizer.param_groups, groups):
            for key, (old, new) in _differences(ours, theirs).items():
                pairs.setdefault(key, set()).add((str(old), str(new)))
        for key, values in sorted(pairs.items()):
            shown = ', '.join(f'{old} (config: {new})' for new, old in sorted(values)[:3])
            yield f'{key.replace("initial_", "")} {shown}{", ..." if len(values) > 3 else ""}'
    ours, theirs = runner.param_schedulers, checkpoint.get('param_schedulers')
    if not isinstance(ours, list) or not isinstance(theirs, list):
        return
    if len(ours) != len(theirs):
        yield f'{len(theirs)} schedules (config: {len(ours)})'
    for number, (one, state) in enumerate(zip(ours, theirs)):
        changes = _differences(one.state_dict(), state)
        if changes:
            shown = ', '.join(f'{key} {old} (config: {new})' for key, (new, old) in sorted(changes.items()))
            yield f'param_scheduler.{number} ({type(one).__name__}): {shown}'


def _differences(ours: dict, theirs: dict) -> dict:
    """What two states of a group or a schedule have differently, by key; not what changes while they go on."""
    keys = (set(ours) & set(theirs)) - {'params', 'param_names', 'base_values', 'last_step', 'verbose'}
    moving = {key[len('initial_') :] for key in keys if key.startswith('initial_')}
    return {
        key: (_plain(ours[key]), _plain(theirs[key]))
        for key in keys - moving
        if not key.startswith('_') and _plain(ours[key]) != _plain(theirs[key])
    }


def _plain(value):
    return sorted(value) if isinstance(value, Counter) else list(value) if isinstance(value, tuple) else value
