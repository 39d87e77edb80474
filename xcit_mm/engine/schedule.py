"""The learning rate of the original release."""

import math
from typing import List

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin

from ..compat import ParamScheduler
from ..registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class EpochCosineLR(LRSchedulerMixin, ParamScheduler):
    r"""timm's cosine schedule as the release steps it: constant within an epoch, and one epoch late.

    In epoch e, counted from 0, the learning rate is that of t = max(e - 1, 0):

    .. math::
        \text{lr}(t) = \begin{cases}
            l_0 + (l - l_0)\, t / w & t < w \\
            l_1 + (l - l_1)\, (1 + \cos(\pi t / T)) / 2 & t \ge w
        \end{cases}

    with the optimizer's rate l, ``warmup_lr`` l_0, ``warmup_epochs`` w, ``eta_min`` l_1 and ``T_max`` T. Neither l_0
    nor l_1 depends on the batch size; --auto-scale-lr scales l.

    Args:
        optimizer (Optimizer | BaseOptimWrapper): Wrapped optimizer.
        T_max (int): Epochs of the cosine, the warm-up included.
        warmup_epochs (int): Epochs of the linear warm-up.
        warmup_lr (float): Learning rate of the first two epochs.
        eta_min (float): Learning rate that the cosine ends in.
        begin, end, last_step, verbose: As for MMEngine's schedulers, in epochs.

    Raises:
        ValueError: If it is to be stepped after iterations.
    """

    def __init__(
        self,
        optimizer,
        T_max: int,
        warmup_epochs: int = 5,
        warmup_lr: float = 1e-6,
        eta_min: float = 1e-5,
        by_epoch: bool = True,
        **kwargs,
    ):
        if not by_epoch:
            raise ValueError('EpochCosineLR is constant within an epoch; it takes by_epoch=True alone')
        self.T_max, self.eta_min = T_max, eta_min
        self.warmup_epochs, self.warmup_lr = warmup_epochs, warmup_lr
        super().__init__(optimizer, **kwargs)

    def _get_value(self) -> List[float]:
        """The learning rates of the groups in epoch ``last_step``."""
        t = max(self.last_step - 1, 0)
        if t < self.warmup_epochs:
            return [self.warmup_lr + (lr - self.warmup_lr) * t / self.warmup_epochs for lr in self.base_values]
        share = (1 + math.cos(math.pi * min(t / self.T_max, 1))) / 2
        return [self.eta_min + (lr - self.eta_min) * share for lr in self.base_values]
