"""Going on with a training run that has ended before its end."""

import os
from contextlib import suppress

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop

from ..checkpoint import is_address
from ..errors import UsageError
from ..registry import HOOKS
from .agreement import any_process
from .checkpointing import damage, find_checkpoint

# What torchrun and SLURM tell a run that they have started again.
RESTARTS = ('TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT')
STARTED = '.started'  # a file of the work folder, as old as the run that began there last
VALIDATED = 'last_validation'  # in MMEngine's message hub: its iteration (a name with 'val' first would be logged)


@HOOKS.register_module()
class ResumeHook(Hook):
    """Choose the checkpoint to go on from, and catch up on a validation that the interruption has cost.

    With ``resume=True`` and no ``load_from``, the newest intact checkpoint of the work folder is taken, and newer ones
    that are cut off or damaged are named; MMEngine would take the newest unread. A run that torchrun
    (``--max-restarts``) or SLURM (requeue) starts again goes on by itself, from a checkpoint of its own. A checkpoint
    after which the run would have validated is validated first, unless it was before it was written.

    Raises:
        UsageError: If no checkpoint of the work folder is intact, or the named one is not.
    """

    priority = 'LOWEST'  # the other hooks are ready when it validates

    def before_run(self, runner) -> None:
        if isinstance(runner._train_loop, BaseLoop) and not runner._has_loaded:
            self.choose(runner)

    def choose(self, runner) -> None:
        """Tell the runner which checkpoint to go on from, if any."""
        # torchrun counts a restart on the machine where a process died, and on others only if it saw one die there too.
        restarted = any_process(any(int(os.environ.get(name) or 0) > 0 for name in RESTARTS))
        if runner._resume and runner._load_from:
            self._check(runner._load_from)
        elif runner._resume or restarted:
            path = self._choose(runner, own=not runner._resume)
            if path:
                runner._resume, runner._load_from = True, path
        if not runner._resume and is_main_process():
            with suppress(OSError), open(os.path.join(runner.work_dir, STARTED), 'w'):
                pass

    @staticmethod
    def _check(path: str) -> None:
        if is_address(path) or path.endswith('.safetensors'):
            return
        found = [damage(path) if is_main_process() else None]
        broadcast_object_list(found)
        if found[0]:
            raise UsageError(f'the run cannot go on from {path}: it is {found[0]}. Name another, or --resume alone')

    @staticmethod
    def _choose(runner, own: bool):
        """The checkpoint, the same in every process; ``own``: written since the run began here."""
        found = [None, []]
        if is_main_process():
            started = os.path.join(runner.work_dir, STARTED)
            if not own or os.path.exists(started):
                found = list(find_checkpoint(runner.work_dir, started if own else None))
        broadcast_object_list(found)
        path, damaged = found
        for file, reason in damaged:
            runner.logger.warning(f'the checkpoint {file} is passed over: {reason}')
        if damaged and not path:
            listed = ''.join(f'\n  {file}: {reason}' for file, reason in damaged)
            raise UsageError(
                f'no checkpoint in {runner.work_dir} is intact:{listed}\n'
                f'Remove them, or start without --resume, to begin anew'
            )
        if path:
            runner.logger.info(f'Going on from the newest intact checkpoint, {path}')
        else:
            runner.logger.warning(f'there is no checkpoint in {runner.work_dir} to go on from: the run begins anew')
        return path

    def before_train(self, runner) -> None:
        if not runner._resume or runner.val_loop is None or not self._validation_is_due(runner):
            return
        if runner.message_hub.runtime_info.get(VALIDATED) == runner.iter:
            return
        runner.logger.info('validating what the interrupted run could not')
        runner.val_loop.run()

    @staticmethod
    def _validation_is_due(runner) -> bool:
        """Whether the loop validates just before the iteration that comes next."""
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
        loop._decide_current_val_interval()
        return count % loop.val_interval == 0 or count == last

    def before_val_epoch(self, runner) -> None:
        if isinstance(runner._train_loop, BaseLoop):
            runner.message_hub.update_info(VALIDATED, runner.iter)
