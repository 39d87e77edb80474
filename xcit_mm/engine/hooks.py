"""Hooks that check a run before it starts: its checkpoint and its length."""

import logging
from typing import Optional, Tuple

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..checkpoint.fit import fit_state_dict
from ..checks.classes import check_checkpoint_classes
from ..checks.schedule import adapt_hooks, find_misfits, length_of
from ..compat import built_loop, is_resuming
from ..registry import HOOKS


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Compare the whole model with a checkpoint before it is loaded.

    In fine-tuning (``load_from``), layers that differ, such as heads with another number of classes, keep their initial
    values, and one warning names them. In resuming and testing the checkpoint has to fit completely.

    Raises:
        CheckpointError: If it does not fit, or if none of its tensors does.
        UsageError: If it was trained for other classes, or for the same classes in another order.
    """

    priority = 'VERY_HIGH'  # before EMAHook copies the weights

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        wrapped = (DataParallel, DistributedDataParallel)
        if is_model_wrapper(runner.model) and not isinstance(runner.model, wrapped):
            return  # the tensors of a sharded model have other shapes
        training = built_loop(runner, 'train') is not None
        purpose = 'resume' if is_resuming(runner) else 'train' if training else 'test'
        found = fit_state_dict(runner.model, checkpoint.get('state_dict', checkpoint), purpose)
        loop = built_loop(runner, 'train' if training else 'test') or built_loop(runner, 'val')
        metainfo = getattr(loop.dataloader.dataset, 'metainfo', None) if loop else None
        classes = metainfo.get('classes') if isinstance(metainfo, dict) else None
        for text in (found, check_checkpoint_classes(checkpoint.get('meta'), classes, purpose)):
            if text:
                runner.logger.log(logging.WARNING if purpose == 'train' else logging.INFO, text)


@HOOKS.register_module()
class RunLengthHook(Hook):
    """Compare settings with the length of the run; log once what was adapted and what does not fit.

    Adapted are an EMA momentum too small for the run and a log interval longer than the run; see
    :mod:`xcit_mm.checks.schedule`. A total batch size other than the learning rate's is logged too.
    """

    priority = 'LOW'

    def before_train(self, runner) -> None:
        if not isinstance(runner.train_loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            return  # a custom loop may count something else
        run = length_of(runner.train_loop)
        for note in adapt_hooks(runner.hooks, run):
            runner.logger.info(note)
        for misfit in find_misfits(runner, run):
            runner.logger.warning(misfit)
        self._name_batch(runner)

    @staticmethod
    def _name_batch(runner) -> None:
        scale = runner.cfg.get('auto_scale_lr') or {}
        images, factors = images_of_update(runner)
        base = scale.get('base_batch_size')
        if not base or not images or images == base or scale.get('enable'):
            return
        runner.logger.info(
            f'One update uses {images} images ({factors}), and the learning rate of the config is for {base}: '
            f'--auto-scale-lr scales it by {images / base:g}'
        )


def images_of_batch(runner) -> Optional[int]:
    """The batch size of all processes together; None if the config does not say."""
    loader = runner.cfg.get('train_dataloader') or {}
    batch = loader.get('batch_size') or (loader.get('batch_sampler') or {}).get('batch_size')
    return batch and batch * runner.world_size


def images_of_update(runner) -> Tuple[Optional[int], str]:
    """The images per update of the weights, and the factors of that number in words."""
    images = images_of_batch(runner)
    if not images:
        return None, ''
    counts = (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts')
    counts = counts or (runner.cfg.get('strategy') or {}).get('gradient_accumulation_steps') or 1
    processes = f'{runner.world_size} process{"es" * (runner.world_size > 1)}'
    factors = f'batch_size {images // runner.world_size} x {processes}'
    return images * counts, factors + f' x accumulative_counts {counts}' * (counts > 1)
