"""Preemption: on a signal, save a checkpoint and exit with a code that asks for a restart."""

import atexit
import os
import signal
import sys
import threading
from functools import partial
from typing import Callable, Sequence

import torch
from mmengine.dist import is_distributed
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from ..compat import accumulative_counts, wrap_iterator
from ..registry import HOOKS
from .checkpointing import save_interrupted
from .consensus import any_process, smallest
from .resuming import VALIDATED

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again later


@HOOKS.register_module()
class InterruptionHook(Hook):
    """Save a checkpoint and exit with code 75 when the process gets a signal.

    The signal takes effect after the current iteration, in all processes together, whichever got it first. With
    gradient accumulation the run continues to the next update. A validation that is interrupted is repeated after
    ``--resume``. Further signals change nothing: schedulers tend to send several.

    Args:
        signals (Sequence[str]): Names of the signals.

    Raises:
        SystemExit: With code 75, after the checkpoint is written.
    """

    priority = 'LOWEST'  # after a regular checkpoint

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGUSR1')):
        self.signals = [getattr(signal, name) for name in signals if hasattr(signal, name)]
        self.received = None
        self.previous: dict = {}
        self.common_batches = 0

    def before_train(self, runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals in the main thread only
        self.received = None
        self.previous = {number: signal.signal(number, self._receive) for number in self.signals}
        loops = (runner.train_loop, runner.val_loop)
        for loader in {id(loop.dataloader): loop.dataloader for loop in loops if loop is not None}.values():
            if hasattr(signal, 'sigwaitinfo'):
                loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn, self.signals)
                wrap_iterator(loader, partial(_start_blocked, signals=self.signals))

    def _receive(self, number, frame) -> None:
        if self.received is None:
            self.received = number
            name = signal.Signals(number).name
            os.write(2, f'\n{name}: training ends after this iteration, with a checkpoint\n'.encode())

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        wrapper = runner.optim_wrapper
        done = runner.iter + 1
        if done < runner.max_iters and done % accumulative_counts(wrapper):
            return
        if any_process(self.received is not None):
            self._end(runner, done)

    def before_val_epoch(self, runner) -> None:
        if self.previous:
            # Processes may have one batch more than others, after which these do not ask any more.
            self.common_batches = smallest(len(runner.val_loop.dataloader))

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self.previous or batch_idx >= self.common_batches or not isinstance(runner, Runner):
            return
        if not any_process(self.received is not None):
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                hook.after_val_epoch(runner)  # gives the model its own weights back
        runner.message_hub.pop_info(VALIDATED, None)
        self._end(runner, runner.iter)

    def _end(self, runner, iterations: int) -> None:
        path = save_interrupted(runner, iterations)
        runner.logger.warning(
            f'Training was asked to end and did so after iteration {iterations} of {runner.max_iters}, checkpoint '
            f'{path}. Continue with --resume. Exit code {REQUEUE}'
        )
        # The handlers stay: srun kills the other processes when the first exits, and they should end by themselves.
        if is_distributed():
            end_processes(REQUEUE)
        sys.exit(REQUEUE)

    def after_train(self, runner) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self.previous = {}


def end_processes(code: int = 0) -> None:
    """Exit a member of a process group once all members are done; does nothing without a group.

    Not by Python's normal exit: there, destroying a distributed model can deadlock with gloo's threads, and threads
    that live longer than the group can abort the process.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _start_blocked(start: Callable, signals: Sequence[int]):
    """Start the data-loading workers with the signals blocked, since one can arrive while they start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(init, signals: Sequence[int], worker_id: int) -> None:
    """Keep a data-loading worker alive until the iteration is done, although it gets the signal too."""
    threading.Thread(target=_obey_parent_alone, args=(signals, os.getppid()), daemon=True).start()
    if init is not None:
        init(worker_id)


def _obey_parent_alone(signals: Sequence[int], parent: int) -> None:
    """Obey a SIGTERM of the parent, by which PyTorch ends its workers, and ignore those of a scheduler."""
    while signal.sigwaitinfo(signals).si_pid != parent:
        pass
    os._exit(0)
