"""Hooks of training and testing."""

import logging
import os
import random
from collections import Counter

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..checkpoint.heads import fit_state_dict
from ..datasets.loading import BadImageReport
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
        if found:
            runner.logger.log(logging.WARNING if purpose == 'train' else logging.INFO, found)


@HOOKS.register_module()
class BadImagesHook(Hook):
    """Name the images that could not be read, once each, and count them after every epoch.

    They are met by :class:`xcit_mm.datasets.loading.LoadImageFromFile`, mostly in the processes that load data, and
    listed in ``bad_images.txt`` beside the log.
    """

    priority = 'VERY_LOW'

    def __init__(self):
        self.report = None
        self.counted = 0

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
        if is_main_process():
            for file in self.report.update():
                runner.logger.warning(f'bad image {file.path}: {file.reason}; {file.consequence}')

    def _after_epoch(self, runner, mode: str = 'train') -> None:
        self._after_iter(runner, 0)
        files = self.report.files.values()
        if not is_main_process() or len(files) == self.counted:
            return
        self.counted = len(files)
        counts = Counter(file.consequence for file in files)
        summary = ', '.join(f'{consequence}: {number}' for consequence, number in counts.items())
        runner.logger.warning(f'bad images so far: {len(files)} ({summary}). They are listed in {self.report.path}')
