"""For configs of tests, by ``custom_imports``: a hook that sends its own process a signal."""

import os
import signal
import time

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class DyingHook(Hook):
    """Kills one process of a run that was not started again, at an iteration, or sends it another signal.

    Args:
        rank (int): The process.
        iteration (int): Before which iteration.
        note (str): A file for the time of death.
        signal_name (str): Which signal.
    """

    def __init__(self, rank, iteration, note, signal_name='SIGKILL'):
        self.rank, self.iteration, self.note, self.signal_name = rank, iteration, note, signal_name

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        first = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) == 0
        if first and get_rank() == self.rank and runner.iter + 1 == self.iteration and not runner._resume:
            with open(self.note, 'w') as file:
                file.write(str(time.time()))
            os.kill(os.getpid(), signal.Signals[self.signal_name])
