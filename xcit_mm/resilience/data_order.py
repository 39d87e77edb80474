"""Data order and augmentations that depend on the seed and the position in the order, and on nothing else.

MMEngine's data loaders start every run at the first image, and random augmentations depend on the worker that loads an
image and on what it loaded before. Here each sample carries its own seed, and iteration can start at any position. So a
resumed run sees the same batches as an uninterrupted one, and the result does not depend on ``num_workers``.
"""

import hashlib
import random
import struct
from typing import Iterator, List, Optional, Sequence

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ..compat import built_loop, drop_workers, is_resuming, restart_order
from ..registry import HOOKS


class SeededIndex(int):
    """Index of a sample that carries the seed of its augmentations."""

    seed: int

    def __new__(cls, index: int, seed: int):
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self):
        return SeededIndex, (int(self), self.seed)


class PositionedBatches:
    """Wrap a batch sampler: seed each sample, and optionally skip batches at the start.

    Positions count the samples of all processes, so a global batch gets the same augmentations however many processes
    share it.

    Args:
        batches (BatchSampler): The batch sampler.
        seed (int): Seed of the run.
    """

    def __init__(self, batches, seed: int = 0):
        self.batches, self.seed = batches, seed
        self.epoch, self.skip = 0, 0

    def __getattr__(self, name: str):
        if name == 'batches':  # of a copy that has no attributes yet
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[List[int]]:
        rank, world = get_rank(), get_world_size()
        while True:
            place = rank
            for batch in self.batches:
                places = range(place, place + len(batch) * world, world)
                place += len(batch) * world
                if self.skip:
                    self.skip -= 1
                else:
                    yield [self._seeded(index, p) for index, p in zip(batch, places)]
            if not self.skip:
                return
            self.begin_epoch(self.epoch + 1)  # the whole epoch was skipped

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _seeded(self, index, place: int):
        if not isinstance(index, (int, np.integer)):
            return index
        digest = hashlib.blake2b(struct.pack('<QQQ', self.seed % 2**64, self.epoch, place), digest_size=4).digest()
        return SeededIndex(int(index), int.from_bytes(digest, 'little'))


class _SeededFetch:
    """Fetch the samples of a batch (``__getitems__``), each with its own random state."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __call__(self, indices: Sequence[int]) -> list:
        return [self._fetch(index) for index in indices]

    def _fetch(self, index):
        if not isinstance(index, SeededIndex):
            return self.dataset[index]
        random.seed(index.seed)
        np.random.seed(index.seed)
        torch.default_generator.manual_seed(index.seed)
        return self.dataset[int(index)]


class _Endless:
    """Endless batches of a loader that can start at any one; replaces MMEngine's in ``IterBasedTrainLoop``.

    Args:
        loader (DataLoader): The loader, whose batch sampler is a :class:`PositionedBatches`.
        unused (int): Number of initial calls of ``next`` to answer with None. MMEngine 0.10.7 skips batches by loading
            them.
    """

    def __init__(self, loader, unused: int = 0):
        self.loader, self.unused = loader, unused
        self.iterator: Optional[Iterator] = None

    def __iter__(self):
        return self

    def skip_iter(self, num_iters: int) -> None:
        """Nothing to do: the batch sampler skips."""

    def __next__(self):
        if self.unused:
            self.unused -= 1
            return None
        if self.iterator is None:
            self.iterator = iter(self.loader)
        try:
            return next(self.iterator)
        except StopIteration:
            self.loader.batch_sampler.begin_epoch(self.loader.batch_sampler.epoch + 1)
            self.iterator = iter(self.loader)
            return next(self.iterator)


@HOOKS.register_module()
class DataPositionHook(Hook):
    """After ``--resume``, continue with the next batch, also within an epoch, and seed every sample by its position.

    With :class:`IterationSeedHook`, which does the same for the model, a resumed run ends with the same weights as an
    uninterrupted one. The position in the epoch is kept in the checkpoint's ``meta``. ``IterableDataset`` and loops
    other than MMEngine's two are left alone.
    """

    priority = 'LOWEST'

    def __init__(self):
        self.batches: Optional[PositionedBatches] = None
        self.place = (0, 0)  # epoch, and how many of its batches are done
        self.resumed: Optional[dict] = None

    def before_run(self, runner) -> None:
        loop = built_loop(runner, 'train')
        if loop is None or self.batches is not None:
            return
        loader = loop.dataloader
        if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)) or loader.batch_sampler is None:
            return
        self.seed = runner.seed
        self.batches = PositionedBatches(loader.batch_sampler)
        # A loader refuses a new sampler because the old one may be in use; here it is not yet.
        object.__setattr__(loader, 'batch_sampler', self.batches)
        drop_workers(loader)  # which MMEngine 0.10.7 may have started
        loader.dataset.__getitems__ = _SeededFetch(loader.dataset)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if is_resuming(runner):
            self.resumed = checkpoint.get('meta', {}).get('place')

    def before_train(self, runner) -> None:
        if self.batches is None:
            return
        loop = runner.train_loop
        self.batches.seed = runner.seed
        self._reseed_sampler(self.batches.sampler, runner.seed)
        if isinstance(loop, IterBasedTrainLoop):
            self.batches.skip = loop.iter
            loads_to_skip = not hasattr(loop.dataloader_iterator, 'skip_iter')
            loop.dataloader_iterator = _Endless(loop.dataloader, loop.iter if loads_to_skip else 0)
        elif self.resumed and self.resumed['epoch'] == loop.epoch:
            self._enter_epoch(runner, loop, self.batches, **self.resumed)

    def _reseed_sampler(self, sampler, seed: int) -> None:
        """Give the sampler the checkpoint's seed, which MMEngine reads after it has built the sampler."""
        if getattr(sampler, 'seed', None) == self.seed:
            sampler.seed = seed
        restart_order(sampler)

    @staticmethod
    def _enter_epoch(
        runner, loop: EpochBasedTrainLoop, sampler: PositionedBatches, epoch: int, done: int, batches: int
    ) -> None:
        if batches != len(sampler):
            runner.logger.warning(
                f'the epoch has {len(sampler)} batches now and had {batches} when the checkpoint was written: '
                f'the run continues at the same share of the epoch, and will not equal an uninterrupted one'
            )
            done = round(done * len(sampler) / batches)
        if not done:
            return
        sampler.skip = done
        runner.logger.info(f'continuing after batch {done} of {len(sampler)} of epoch {loop.epoch + 1}')
        run_iter = loop.run_iter
        # The loop counts batches from the first one it gets: add an offset until the epoch ends.
        loop.run_iter = lambda idx, data_batch: run_iter(idx + done, data_batch)

    def before_train_epoch(self, runner) -> None:
        if self.batches is not None:
            self.batches.epoch = runner.epoch

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self.place = (runner.epoch, batch_idx + 1)

    def after_train_epoch(self, runner) -> None:
        runner.train_loop.__dict__.pop('run_iter', None)

    def after_train(self, runner) -> None:
        if isinstance(runner.train_loop, IterBasedTrainLoop) and self.batches is not None:
            runner.train_loop.dataloader_iterator.iterator = None  # ends the workers

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.batches is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
            epoch, done = self.place
            meta = checkpoint['meta']
            meta['place'] = dict(
                epoch=meta['epoch'], done=done if epoch == meta['epoch'] else 0, batches=len(self.batches)
            )


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed the random generators before every training iteration, from the run's seed, the iteration and the rank.

    MMEngine saves no random state, so drop path, dropout and the samplers of detectors would differ after ``--resume``.
    With this hook a resumed run ends with the same weights as an uninterrupted one.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        seed = ((runner.seed + runner.iter * 1_000_003) * get_world_size() + get_rank()) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
