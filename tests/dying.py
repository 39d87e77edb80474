"""For configs of tests, by ``custom_imports``: a hook that kills its own process."""

import os
import signal
import time

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class DyingHook(Hook):
    """Kills one process of a run that was not started again, at an iteration.

    Args:
        rank (int): The process.
        iteration (int): Before which iteration.
        note (str): A file for the time of death.
    """

    def __init__(self, rank, iteration, note):
        self.rank, self.iteration, self.note = rank, iteration, note

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        first = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) == 0
        if first and get_rank() == self.rank and runner.iter + 1 == self.iteration and not runner._resume:
            with open(self.note, 'w') as file:
                file.write(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
