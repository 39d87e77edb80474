"""MMEngine's runners as the tools use them: short console output, checked batches, learning rates per update."""

from typing import Optional

from mmengine.runner import FlexibleRunner, Runner

from ..checks.schedule import check_batches
from .hooks import images_of_batch, images_of_update
from .screen import shorten


class ToolRunner(Runner):
    """Runner that scales the learning rate by the images per update, gradient accumulation included."""

    def build_logger(self, *args, **kwargs):
        logger = super().build_logger(*args, **kwargs)
        shorten(logger)
        return logger

    def build_train_loop(self, loop):
        loop = super().build_train_loop(loop)
        check_batches(loop.dataloader, self.world_size)
        return loop

    def scale_lr(self, optim_wrapper, auto_scale_lr=None) -> None:
        """As MMEngine does, but by ``batch_size`` x processes x ``accumulative_counts``."""
        super().scale_lr(optim_wrapper, by_update(self, auto_scale_lr))


class FlexibleToolRunner(FlexibleRunner):
    """MMEngine's runner for sharded models (FSDP, DeepSpeed), with short console output from its first line."""

    def build_strategy(self, *args, **kwargs):
        strategy = super().build_strategy(*args, **kwargs)
        shorten(strategy.logger)
        return strategy


def by_update(runner, auto_scale_lr: Optional[dict]) -> Optional[dict]:
    """``auto_scale_lr`` with a base for which MMEngine, which counts one batch, scales by the images per update."""
    images, factors = images_of_update(runner)
    scaling = auto_scale_lr or {}
    base = scaling.get('base_batch_size')
    if not images or not scaling.get('enable') or not base:
        return auto_scale_lr
    runner.logger.info(
        f'One update uses {images} images ({factors}), and the learning rate of the config is for {base}. '
        f'Scaling the original LR by {images / base:g}'
    )
    return {**scaling, 'base_batch_size': base * images_of_batch(runner) / images}
