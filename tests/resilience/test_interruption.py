"""Training that is interrupted and goes on: checkpoints, data order, random numbers, validation."""

import multiprocessing
import os
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_runs import SignalHook, assert_same, small_cfg, state, train
from torch.utils.data import BatchSampler, RandomSampler

from xcit_mm.errors import UsageError
from xcit_mm.resilience.atomic_writing import write_whole
from xcit_mm.resilience.checkpointing import INTERRUPTED, damage, find_checkpoint
from xcit_mm.resilience.data_order import PositionedBatches, SeededIndex
from xcit_mm.resilience.interruption import REQUEUE

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def handlers_of_signals():
    """A process that was asked to end keeps its handlers until it is gone; here it lives on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# Epochs of 3 iterations for the classifier, which has an average of its weights; iterations for the segmentor.
RUNS = dict(
    classifier={'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 1, 'default_hooks.checkpoint.interval': 1},
    semantic_fpn={'train_cfg.max_iters': 9, 'train_cfg.val_interval': 3, 'default_hooks.checkpoint.interval': 3},
)
LAST = dict(classifier='epoch_3.pth', semantic_fpn='iter_9.pth')


@pytest.fixture(scope='module')
def cfg_of(small_models, small_digits):
    def cfg_of(kind, work_dir, **options):
        return small_cfg(small_models, kind, small_digits, work_dir, **RUNS[kind], **options)

    return cfg_of


@pytest.fixture(scope='module')
def uninterrupted(cfg_of, tmp_path_factory):
    """The last checkpoints of runs without interruption."""
    found = {}

    def run(kind):
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            train(cfg_of(kind, folder))
            found[kind] = folder / LAST[kind]
        return found[kind]

    return run


def resume(cfg):
    return Config({**cfg.to_dict(), 'resume': True, 'experiment_name': cfg.experiment_name + '_resumed'})


@pytest.mark.parametrize(
    'kind, after, workers',
    [('classifier', 4, 0), ('classifier', 6, 2), pytest.param('semantic_fpn', 5, 2, marks=pytest.mark.slow)],
)
def test_a_run_that_is_asked_to_end_goes_on_to_the_same_bits(kind, after, workers, cfg_of, uninterrupted, tmp_path):
    """In the middle of an epoch and at its end; with other numbers of processes that load data."""
    cfg = cfg_of(kind, tmp_path, **{'train_dataloader.num_workers': workers})
    with pytest.raises(SystemExit) as end:
        train(cfg, SignalHook(after))
    assert end.value.code == REQUEUE
    checkpoint = torch.load(tmp_path / INTERRUPTED, weights_only=False)
    assert checkpoint['meta']['iter'] == after
    runner = train(resume(cfg))
    assert runner.iter == 9
    assert_same(state(uninterrupted(kind)), state(tmp_path / LAST[kind]))
    assert not (tmp_path / INTERRUPTED).exists()


def test_a_loading_process_that_is_about_to_begin_lives_on(cfg_of, tmp_path, monkeypatch):
    """A scheduler's signal to all processes may come before one has set anything up."""
    set_num_threads = torch.set_num_threads

    def signalled(number):  # among the first that PyTorch calls there
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGTERM)
        set_num_threads(number)

    monkeypatch.setattr(torch, 'set_num_threads', signalled)
    runner = train(cfg_of('classifier', tmp_path, **{'train_dataloader.num_workers': 2}))
    assert runner.iter == 9


@pytest.mark.parametrize('kind', ['classifier'])
def test_an_interrupted_validation_is_repeated_and_harms_no_average(kind, cfg_of, uninterrupted, tmp_path):
    """While it validates, the model holds its average; the checkpoint must not."""
    cfg = cfg_of(kind, tmp_path)
    with pytest.raises(SystemExit):
        train(cfg, SignalHook(6, signal.SIGUSR1, validating=True))
    validated = []

    class Watch(Hook):
        def after_val_epoch(self, runner, metrics=None):
            validated.append(runner.iter)

    train(resume(cfg), Watch())
    assert validated == [6, 9]
    assert_same(state(uninterrupted(kind)), state(tmp_path / LAST[kind]))


class Stop(Exception):
    pass


class StopHook(Hook):
    """Ends the run without warning."""

    def __init__(self, after):
        self.after = after

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.after:
            raise Stop


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(cfg_of, uninterrupted, tmp_path, capsys):
    cfg = cfg_of('classifier', tmp_path)
    with pytest.raises(Stop):
        train(cfg, StopHook(8))
    newest = tmp_path / 'epoch_2.pth'
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    assert 'cut off' in damage(newest)
    train(resume(cfg))
    output = capsys.readouterr()
    assert f'{newest} is skipped: cut off or damaged' in output.out + output.err
    assert_same(state(uninterrupted('classifier')), state(tmp_path / LAST['classifier']))


def test_a_single_bit_is_found(uninterrupted, tmp_path):
    """PyTorch loads such a file without a word."""
    data = bytearray(uninterrupted('classifier').read_bytes())
    (tmp_path / 'whole.pth').write_bytes(data)
    assert damage(tmp_path / 'whole.pth') is None
    with zipfile.ZipFile(uninterrupted('classifier')) as archive:
        tensors = [entry for entry in archive.infolist() if '/data/' in entry.filename]
    largest = max(tensors, key=lambda entry: entry.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 1
    (tmp_path / 'bit.pth').write_bytes(data)
    torch.load(tmp_path / 'bit.pth', weights_only=False)
    assert 'checksum' in damage(tmp_path / 'bit.pth')


def test_no_intact_checkpoint_is_an_error_and_so_is_a_damaged_one_that_is_named(cfg_of, tmp_path):
    cfg = cfg_of('classifier', tmp_path)
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (tmp_path / name).write_bytes(b'PK')
    with pytest.raises(UsageError, match=r'no checkpoint in .* is intact:\n.*epoch_2\.pth: cut off'):
        train(resume(cfg))
    with pytest.raises(UsageError, match=r'cannot resume from .*epoch_1\.pth: it is cut off'):
        train(Config({**resume(cfg).to_dict(), 'load_from': str(tmp_path / 'epoch_1.pth')}))


@pytest.mark.slow
def test_the_hooks_work_in_the_libraries_own_tools(cfg_of, uninterrupted, tmp_path):
    """These make a runner from the config and know nothing of this project."""
    cfg = cfg_of('semantic_fpn', tmp_path)
    runner = Runner.from_cfg(Config(cfg.to_dict()))
    runner.register_hook(StopHook(8))
    with pytest.raises(Stop):
        runner.train()
    (tmp_path / 'iter_6.pth').write_bytes(b'PK')
    runner = Runner.from_cfg(resume(cfg))
    runner.train()
    assert runner._load_from.endswith('iter_3.pth')
    assert_same(state(uninterrupted('semantic_fpn')), state(tmp_path / LAST['semantic_fpn']))


# Which checkpoint is the newest.


def write_checkpoints(folder, *names, pointer=None):
    """Empty checkpoints, each written a second after the one before it."""
    for second, name in enumerate(names):
        torch.save({}, folder / name)
        os.utime(folder / name, (1e9 + second,) * 2)
    if pointer:
        (folder / 'last_checkpoint').write_text(str(pointer))


@pytest.mark.parametrize(
    'names, pointer, newest',
    [
        (['epoch_9.pth', 'epoch_10.pth'], '{}/epoch_10.pth', 'epoch_10.pth'),
        (['epoch_9.pth', 'epoch_10.pth'], '{}/epoch_9.pth', 'epoch_10.pth'),  # ended before it could be named
        (['epoch_12.pth', 'epoch_1.pth', 'epoch_2.pth'], '{}/epoch_2.pth', 'epoch_2.pth'),  # of an earlier run
        (['epoch_1.pth', 'best_acc_epoch_1.pth', 'epoch_2.pth'], None, 'epoch_2.pth'),
        (['epoch_1.pth', 'epoch_2.pth', INTERRUPTED], '{}/interrupted.pth', INTERRUPTED),
        (['epoch_1.pth', 'epoch_2.pth'], '/moved/away/epoch_2.pth', 'epoch_2.pth'),
        ([], None, None),
    ],
)
def test_the_newest_checkpoint(names, pointer, newest, tmp_path):
    write_checkpoints(tmp_path, *names, pointer=pointer and pointer.format(tmp_path))
    path, damaged = find_checkpoint(str(tmp_path))
    assert (path and Path(path).name, damaged) == (newest, [])


def test_the_checkpoint_before_a_damaged_one(tmp_path):
    write_checkpoints(tmp_path, 'epoch_7.pth', 'epoch_1.pth', 'epoch_2.pth', pointer=tmp_path / 'epoch_2.pth')
    (tmp_path / 'epoch_2.pth').write_bytes(b'')
    path, damaged = find_checkpoint(str(tmp_path))
    assert Path(path).name == 'epoch_1.pth'
    assert [Path(file).name for file, _ in damaged] == ['epoch_2.pth']


@pytest.mark.parametrize('variable', ['TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT'])
def test_a_run_that_is_started_again_resumes_by_itself_from_its_own_checkpoints(
    variable, cfg_of, uninterrupted, tmp_path, monkeypatch
):
    write_checkpoints(tmp_path, 'epoch_2.pth', pointer=tmp_path / 'epoch_2.pth')  # of an earlier run
    cfg = cfg_of('classifier', tmp_path)
    with pytest.raises(Stop):
        train(cfg, StopHook(5))
    monkeypatch.setenv(variable, '1')
    runner = train(Config({**cfg.to_dict(), 'experiment_name': f'again_{variable}'}))
    assert runner._resume and runner._load_from.endswith('epoch_1.pth')
    assert_same(state(uninterrupted('classifier')), state(tmp_path / LAST['classifier']))


# Files that are there whole or not at all.


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    write_whole(b'before', tmp_path / 'file')

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError):
        write_whole(b'after', tmp_path / 'file')
    assert (tmp_path / 'file').read_bytes() == b'before' and len(list(tmp_path.iterdir())) == 1


def test_old_checkpoints_go_after_new_ones_are_there(cfg_of, tmp_path, monkeypatch):
    """At every moment one complete checkpoint; at the end as many as asked for."""
    seen = []
    replace = os.replace

    def watch(source, target):
        seen.append(len(list(tmp_path.glob('epoch_*.pth'))))
        replace(source, target)

    monkeypatch.setattr(os, 'replace', watch)
    train(cfg_of('classifier', tmp_path, **{'default_hooks.checkpoint.max_keep_ckpts': 1}))
    assert min(seen[2:]) == 1
    assert [path.name for path in tmp_path.glob('epoch_*.pth')] == ['epoch_3.pth']
    assert len(list(tmp_path.glob('best_*.pth'))) == 1


# Determinism.


@pytest.fixture
def free_of_determinism():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize(
    'kind', [pytest.param(kind, marks=pytest.mark.slow if kind == 'semantic_fpn' else []) for kind in RUNS]
)
def test_the_deterministic_mode_trains_to_the_same_bits(kind, cfg_of, tmp_path, free_of_determinism):
    """With any number of processes that load data."""
    states = []
    for workers in (0, 2):
        options = {'randomness': dict(seed=1, deterministic=True), 'train_dataloader.num_workers': workers}
        train(cfg_of(kind, tmp_path / str(workers), **options))
        assert torch.are_deterministic_algorithms_enabled()
        states.append(state(tmp_path / str(workers) / LAST[kind]))
    assert_same(*states)


# Data order and augmentation.


class Draws(torch.utils.data.Dataset):
    """Samples of nothing but random numbers."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, np.random.rand(), torch.rand(()).item()


def batches(workers, skip=0, epoch=0, seed=3):
    from xcit_mm.resilience.data_order import _SeededFetch

    dataset = Draws()
    dataset.__getitems__ = _SeededFetch(dataset)
    sampler = BatchSampler(RandomSampler(dataset, generator=torch.Generator().manual_seed(0)), 4, drop_last=False)
    placed = PositionedBatches(sampler, seed)
    placed.epoch, placed.skip = epoch, skip
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=placed, num_workers=workers, collate_fn=lambda samples: samples
    )
    return list(loader)


def test_augmentation_depends_on_seed_epoch_and_place_alone():
    alone = batches(0)
    assert batches(1) == batches(2) == alone
    assert batches(0, skip=2) == alone[2:]
    assert all(a[0][0] == b[0][0] and a[0][1:] != b[0][1:] for a, b in zip(alone, batches(0, epoch=1)))
    assert alone[0][0][1:] != batches(0, seed=4)[0][0][1:]
    draws = [sample[1] for batch in alone for sample in batch]
    assert len(set(draws)) == 10


def test_the_endless_order_is_entered_where_it_was_left():
    def indices(skip, count):
        sampler = BatchSampler(InfiniteSampler(Draws(), seed=1), 4, drop_last=True)
        placed = PositionedBatches(sampler, 5)
        placed.skip = skip
        found = [batch for batch, _ in zip(placed, range(count))]
        return [(int(index), index.seed) for batch in found for index in batch]

    assert indices(7, 3) == indices(0, 10)[28:]
    assert all(isinstance(index, SeededIndex) for index in next(iter(PositionedBatches([[1, 2]]))))
