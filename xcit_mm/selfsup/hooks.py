"""The schedules of DINO, and the head that linear evaluation writes."""

import math
from pathlib import Path
from typing import Optional

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch.nn.utils import clip_grad_norm_

from ..registry import HOOKS


@HOOKS.register_module()
class DINOHook(Hook):
    """Schedules of :class:`~xcit_mm.selfsup.dino.DINO`, and its treatment of gradients (section 3.1 and appendix C).

    The learning rate and the weight decay have schedulers of MMEngine and MMPretrain. All schedules depend on the
    iteration alone, so a resumed run continues exactly.

    Args:
        momentum (float): Initial momentum of the teacher; rises to 1 by a cosine.
        teacher_temp (float): The teacher's temperature after its warm-up.
        warmup_teacher_temp (float): The teacher's temperature in the first epoch.
        warmup_teacher_temp_epochs (int): Epochs in which it rises, linearly.
        freeze_last_layer_epochs (int): Epochs in which the last layer of the student's head stays fixed.
        clip_grad (float, optional): Largest l2 norm of a gradient. Each parameter is clipped by its own norm, as in the
            original code; MMEngine's ``clip_grad`` clips by the norm of all parameters together.
    """

    priority = 'ABOVE_NORMAL'  # before checkpoints are written

    def __init__(
        self,
        momentum: float = 0.996,
        teacher_temp: float = 0.07,
        warmup_teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        freeze_last_layer_epochs: int = 1,
        clip_grad: Optional[float] = 3.0,
    ):
        self.momentum = momentum
        self.teacher_temp, self.warmup_teacher_temp = teacher_temp, warmup_teacher_temp
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.freeze_last_layer_epochs = freeze_last_layer_epochs
        self.clip_grad = clip_grad

    def momentum_at(self, iteration: int, iterations: int) -> float:
        """Momentum of the teacher after an iteration, counted from 0."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * iteration / iterations)) / 2

    def teacher_temp_at(self, epoch: int) -> float:
        """Temperature of the teacher in an epoch, counted from 0."""
        warmup = self.warmup_teacher_temp_epochs
        if epoch >= warmup:
            return self.teacher_temp
        return self.warmup_teacher_temp + (self.teacher_temp - self.warmup_teacher_temp) * epoch / max(1, warmup - 1)

    def before_train(self, runner) -> None:
        # Just before the step gradients are complete, averaged over processes, and unscaled in mixed precision.
        self._handle = runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self._treat_gradients(runner))

    def after_train(self, runner) -> None:
        self._handle.remove()

    def _treat_gradients(self, runner) -> None:
        student = _model(runner).student
        if self.clip_grad:
            for parameter in student.parameters():
                if parameter.grad is not None:
                    clip_grad_norm_([parameter], self.clip_grad)
        if runner.epoch < self.freeze_last_layer_epochs:
            for parameter in student['neck'].last_layer.parameters():
                parameter.grad = None  # the optimizer then skips it, weight decay included

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        temperature = _model(runner).head.teacher_temp = self.teacher_temp_at(runner.epoch)
        runner.message_hub.update_scalar('train/teacher_temp', temperature)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        momentum = self.momentum_at(runner.iter, runner.max_iters)
        _model(runner).update_teacher(momentum)
        runner.message_hub.update_scalar('train/teacher_momentum', momentum)


@HOOKS.register_module()
class LinearHeadHook(Hook):
    """Write the head of a LinearProbe alone, to ``linear_head.pth`` of the work folder, after every epoch."""

    priority = 'VERY_LOW'

    def after_train_epoch(self, runner) -> None:
        if is_main_process():
            state = {f'head.{name}': value.cpu() for name, value in _model(runner).head.state_dict().items()}
            meta = dict(epoch=runner.epoch + 1, config=runner.cfg.filename)
            torch.save(dict(state_dict=state, meta=meta), Path(runner.work_dir) / 'linear_head.pth')


def _model(runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
