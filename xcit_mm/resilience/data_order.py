"""Training data as a function of the seed and of the place in the order alone.

MMEngine's data loaders begin every run and every epoch at the first image, and its random augmentations depend on which
process loads an image and what that process loaded before. Here each sample brings its own seed along, and the order
can be entered anywhere: so training goes on after an interruption as if there had been none, and the result does not
depend on the number of processes that load data.
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
    """Index of a sample, with the seed of its augmentation."""

    seed: int

    def __new__(cls, index: int, seed: int):
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self):
        return SeededIndex, (int(self), self.seed)


class PositionedBatches:
    """A batch sampler that gives seeds to its samples and can begin after any batch.

    Place and seed of a sample count those of all processes, so that the same global batch has the same augmentations
    however many processes share it.

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
            self.begin_epoch(self.epoch + 1)  # all of this one lies before the beginning

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _seeded(self, index, place: int):
        if not isinstance(index, (int, np.integer)):
            return index
        digest = hashlib.blake2b(struct.pack('<QQQ', self.seed % 2**64, self.epoch, place), digest_size=4).digest()
        return SeededIndex(index, int.from_bytes(digest, 'little'))


class _SeededFetch:
    """What PyTorch's loader calls for the samples of a batch, in whichever process."""

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
    """Batches of a loader without end, from any one on; takes the place of MMEngine's in its loop by iterations.

    Args:
        loader (DataLoader): The loader, whose batch sampler is a :class:`PositionedBatches`.
        unused (int): How many calls of ``next`` mean batches before the beginning. MMEngine 0.10.7 passes over them by
            loading them.
    """

    def __init__(self, loader, unused: int = 0):
        self.loader, self.unused = loader, unused
        self.iterator: Optional[Iterator] = None

    def __iter__(self):
        return self

    def skip_iter(self, num_iters: int) -> None:
        """Nothing to do: the loader begins where it should."""

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
    """Go on with the next batch of the data order after ``--resume``, also in the middle of an epoch, and give every
    sample the random numbers of its place in that order.

    With :class:`IterationSeedHook`, which does the same for the model, a resumed run ends with
    the weights of one that was never interrupted. The place in the epoch is kept in the checkpoint's ``meta``. Data
    sets without indices (``IterableDataset``) and loops of other kinds than MMEngine's two are left as they are.
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
        # A loader refuses another sampler because it may be in use; this one is not yet.
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
        self._reseed_sampler(runner.seed)
        if isinstance(loop, IterBasedTrainLoop):
            self.batches.skip = loop.iter
            loads_to_skip = not hasattr(loop.dataloader_iterator, 'skip_iter')
            loop.dataloader_iterator = _Endless(loop.dataloader, loop.iter if loads_to_skip else 0)
        elif self.resumed and self.resumed['epoch'] == loop.epoch:
            self._enter_epoch(runner, loop)

    def _reseed_sampler(self, seed: int) -> None:
        """MMEngine takes the seed from the checkpoint after it has given another one to the sampler."""
        sampler = self.batches.sampler
        if getattr(sampler, 'seed', None) == self.seed:
            sampler.seed = seed
        restart_order(sampler)

    def _enter_epoch(self, runner, loop: EpochBasedTrainLoop) -> None:
        done, batches = self.resumed['done'], self.resumed['batches']
        if batches != len(self.batches):
            runner.logger.warning(
                f'the epoch has {len(self.batches)} batches now and had {batches} when the checkpoint was written: '
                f'the run goes on at the same share of the epoch, and will not equal an uninterrupted one'
            )
            done = round(done * len(self.batches) / batches)
        if not done:
            return
        self.batches.skip = done
        runner.logger.info(f'going on after batch {done} of {len(self.batches)} of epoch {loop.epoch + 1}')
        run_iter = loop.run_iter
        # The loop counts the batches of an epoch from the first that it gets; until the epoch ends they have an offset.
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
            runner.train_loop.dataloader_iterator.iterator = None  # which ends the processes that load data

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.batches is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
            epoch, done = self.place
            meta = checkpoint['meta']
            meta['place'] = dict(
                epoch=meta['epoch'], done=done if epoch == meta['epoch'] else 0, batches=len(self.batches)
            )


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
