"""Hooks of training and testing."""

import logging
import os
import random
from collections import Counter
from typing import Optional, Tuple

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..checkpoint.heads import fit_state_dict
from ..checks.classes import check_checkpoint_classes
from ..checks.schedule import adapt_hooks, find_misfits, length_of
from ..datasets.loading import BLANK, PIXELS_IGNORED, BadImageReport
from ..errors import UsageError
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


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Compare the whole model with the checkpoint that it is about to be loaded from.

    In a training run that starts from weights (``load_from``), layers that differ, such as heads of another number of
    classes, keep their start values, and one warning names them. A model that is resumed or tested has to be the one
    that the checkpoint was made from.

    Raises:
        CheckpointError: If it is not; or if nothing of the checkpoint fits.
        UsageError: If it was trained for other classes, or for the same in another order.
    """

    priority = 'VERY_HIGH'  # before EMAHook copies the weights

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        wrapped = (DataParallel, DistributedDataParallel)
        if is_model_wrapper(runner.model) and not isinstance(runner.model, wrapped):
            return  # the tensors of a model that is divided between devices have other shapes
        # The loop is built just before the checkpoint is loaded, and only when the runner trains.
        training = isinstance(runner._train_loop, BaseLoop)
        purpose = 'resume' if runner._resume else 'train' if training else 'test'
        found = fit_state_dict(runner.model, checkpoint.get('state_dict', checkpoint), purpose)
        names = ('_train_loop' if training else '_test_loop', '_val_loop')
        loop = next((one for one in (getattr(runner, name, None) for name in names) if isinstance(one, BaseLoop)), None)
        metainfo = getattr(loop.dataloader.dataset, 'metainfo', None) if loop else None
        classes = metainfo.get('classes') if isinstance(metainfo, dict) else None
        for text in (found, check_checkpoint_classes(checkpoint.get('meta'), classes, purpose)):
            if text:
                runner.logger.log(logging.WARNING if purpose == 'train' else logging.INFO, text)


@HOOKS.register_module()
class BadImagesHook(Hook):
    """Name the images that could not be read, once each, and count them after every epoch.

    Maps with labels outside of the classes are often all of them; one for each set of such labels is named.

    They are met by :class:`xcit_mm.datasets.loading.LoadImageFromFile`, mostly in the processes that load data, and
    listed in ``bad_images.txt`` beside the log.
    """

    priority = 'VERY_LOW'

    def __init__(self):
        self.report = None
        self.counted = 0
        self.told = set()

    @staticmethod
    def path(runner) -> str:
        """Where the list is. Data sets are told when they are built, which may be before any hook is called."""
        return os.path.abspath(os.path.join(runner.log_dir, 'bad_images.txt'))

    def before_run(self, runner) -> None:
        if self.report is None:  # a runner can train and then test
            self.report = BadImageReport(self.path(runner))

    def before_train(self, runner) -> None:
        from .bad_images import guard_built  # which imports data sets

        guard_built(runner.train_dataloader.dataset, self.path(runner))

    def _after_iter(self, runner, batch_idx: int, data_batch=None, outputs=None, mode: str = 'train') -> None:
        if not is_main_process():
            return
        for file in self.report.update():
            if file.consequence == PIXELS_IGNORED:
                if file.reason in self.told:
                    continue
                self.told.add(file.reason)
            runner.logger.warning(f'bad image {file.path}: {file.reason}; {file.consequence}')
        loader = getattr(runner, f'{mode}_dataloader') if mode != 'train' else None
        if loader and batch_idx + 1 == len(loader):
            blank = [file for file in self.report.files.values() if file.consequence == BLANK]
            if len(blank) >= len(loader.dataset):
                raise UsageError(
                    f'none of the {len(loader.dataset)} images for {mode} could be read, so that there is nothing to '
                    f'score; the first is {blank[0].path}: {blank[0].reason}'
                )

    def _after_epoch(self, runner, mode: str = 'train') -> None:
        self._after_iter(runner, 0)
        files = self.report.files.values()
        if not is_main_process() or len(files) == self.counted:
            return
        self.counted = len(files)
        counts = Counter(file.consequence for file in files)
        summary = ', '.join(f'{consequence}: {number}' for consequence, number in counts.items())
        runner.logger.warning(f'bad images so far: {len(files)} ({summary}). They are listed in {self.report.path}')


@HOOKS.register_module()
class RunLengthHook(Hook):
    """Compare a run's settings with its length, and say once what does not fit and what was changed.

    An average of weights that would hardly leave the start and a log interval longer than the run are changed; see
    :mod:`xcit_mm.checks.schedule`. A batch other than the one that the learning rate is for is named too.
    """

    priority = 'LOW'

    def before_train(self, runner) -> None:
        if not isinstance(runner.train_loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            return  # a loop of somebody's own may count something else
        run = length_of(runner.train_loop)
        for note in adapt_hooks(runner.hooks, run):
            runner.logger.info(note)
        for misfit in find_misfits(runner, run):
            runner.logger.warning(misfit)
        self._name_batch(runner)

    @staticmethod
    def _name_batch(runner) -> None:
        scale = runner.cfg.get('auto_scale_lr') or {}
        images, product = images_of_update(runner)
        base = scale.get('base_batch_size')
        if not base or not images or images == base or scale.get('enable'):
            return
        runner.logger.info(
            f'{images} images ({product}) make one update, and the learning rate of the config is for {base}: '
            f'--auto-scale-lr scales it by {images / base:g}'
        )


def images_of_batch(runner) -> Optional[int]:
    """The images that all processes together compute at once; None if the config does not say."""
    loader = runner.cfg.get('train_dataloader') or {}
    batch = loader.get('batch_size') or (loader.get('batch_sampler') or {}).get('batch_size')
    return batch and batch * runner.world_size


def images_of_update(runner) -> Tuple[Optional[int], str]:
    """The images that make one update of the weights, and the numbers that they are the product of."""
    images = images_of_batch(runner)
    if not images:
        return None, ''
    counts = (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts')
    counts = counts or (runner.cfg.get('strategy') or {}).get('gradient_accumulation_steps') or 1
    processes = f'{runner.world_size} process{"es" * (runner.world_size > 1)}'
    product = f'batch_size {images // runner.world_size} x {processes}'
    return images * counts, product + f' x accumulative_counts {counts}' * (counts > 1)
