"""Training hooks."""

import random

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook

from ..registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Draw the random numbers of every training iteration from the run's seed and the iteration's number.

    MMEngine saves no random state, so that drop path, dropout and the samplers of detectors would continue elsewhere
    after ``--resume``. With this hook a resumed run ends with the weights of one that was never interrupted. Each
    process draws its own numbers.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        seed = ((runner.seed + runner.iter * 1_000_003) * get_world_size() + get_rank()) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
