"""MMEngine's runner as the tools use it: a short screen, data that make a batch, and learning rates by update."""

from mmengine.runner import Runner

from ..checks.schedule import check_batches
from .hooks import images_of_update
from .screen import shorten


class ToolRunner(Runner):
    """Runner whose learning rate is scaled by the images of one update, whatever number of batches these come in."""

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
        images, product = images_of_update(self)
        scale = dict(auto_scale_lr or {})
        if scale.get('enable') and scale.get('base_batch_size') and images:
            base = scale['base_batch_size']
            self.logger.info(
                f'{images} images ({product}) make one update, and the learning rate of the config is for {base}. '
                f'Scaling the original LR by {images / base:g}'
            )
            # MMEngine counts the images of one batch.
            batch = images // ((self.cfg.get('optim_wrapper') or {}).get('accumulative_counts') or 1)
            scale['base_batch_size'] = base * batch / images
        super().scale_lr(optim_wrapper, scale)
