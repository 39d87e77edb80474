"""Disks that are full or turn read-only, and data that vanishes, while a run trains. As root, on a small tmpfs."""

import os
import shutil
import subprocess

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from small_runs import assert_same, small_cfg, state, train

from xcit_mm.engine.setup import check_work_dir
from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.resilience.checkpointing import damage

pytestmark = pytest.mark.usefixtures('one_thread')
OPTIONS = {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 5, 'default_hooks.checkpoint.interval': 1}


class FaultHook(Hook):
    """Does something before iteration 4, the first of the second epoch."""

    priority = 'HIGHEST'

    def __init__(self, fault):
        self.fault = fault

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == 4:
            self.fault()


@pytest.fixture
def disk(tmp_path):
    """A disk of 32 MiB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=32m', 'tmpfs', str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f'no disk can be mounted here: {done.stderr.decode().strip()}')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(folder):
    """Leave no byte free."""
    with open(folder / 'filler', 'wb', buffering=0) as file:
        for size in (2**20, 2**10, 1):
            try:
                while True:
                    file.write(b'x' * size)
            except OSError:
                pass


@pytest.fixture
def cfg(small_models, small_digits, disk):
    cfg = small_cfg(small_models, 'classifier', small_digits, disk / 'run', **OPTIONS)
    cfg.visualizer.vis_backends = []  # scalars would meet the fault before the checkpoint does
    return cfg


def uninterrupted(cfg, folder):
    again = Config({**cfg.to_dict(), 'work_dir': str(folder), 'experiment_name': f'{cfg.experiment_name}_whole'})
    train(again)
    return state(folder / 'epoch_2.pth')


def resume(cfg):
    return Config({**cfg.to_dict(), 'resume': True, 'experiment_name': f'{cfg.experiment_name}_resumed'})


def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_when_there_is_room(cfg, disk, tmp_path):
    with pytest.raises(UsageError) as error:
        train(cfg, FaultHook(lambda: fill(disk)))
    message = str(error.value)
    assert 'No space left on device, 0 MiB are free' in message and 'epoch_1.pth, is as it was' in message
    assert damage(disk / 'run' / 'epoch_1.pth') is None
    assert not list((disk / 'run').glob('epoch_2*'))
    (disk / 'filler').unlink()
    train(resume(cfg))
    assert_same(uninterrupted(cfg, tmp_path / 'whole'), state(disk / 'run' / 'epoch_2.pth'))


def test_with_one_checkpoint_to_keep_a_full_disk_does_not_cost_it(cfg, disk):
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    with pytest.raises(UsageError, match='No space left'):
        train(cfg, FaultHook(lambda: fill(disk)))
    assert damage(disk / 'run' / 'epoch_1.pth') is None


def test_a_disk_that_turns_read_only_is_named(cfg, disk, tmp_path):
    cfg.work_dir = str(tmp_path / 'run')  # a disk with an open log could not be turned
    cfg.default_hooks.checkpoint.out_dir = str(disk)

    def protect():
        subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)

    try:
        with pytest.raises(UsageError, match=r'Read-only file system.*epoch_1\.pth, is as it was'):
            train(cfg, FaultHook(protect))
        assert damage(disk / 'run' / 'epoch_1.pth') is None
        with pytest.raises(UsageError, match='cannot be written to.*Read-only.*--work-dir'):
            check_work_dir(Config(dict(work_dir=str(disk / 'other'))))
    finally:
        subprocess.run(['mount', '-o', 'remount,rw', str(disk)], check=True)


def test_scalars_that_cannot_be_written_end_the_tool_with_one_message(disk, capsys):
    fill(disk)
    with pytest.raises(SystemExit) as end, clear_errors(), open(disk / 'scalars.json', 'w') as file:
        file.write('x' * 10000)
    assert end.value.code == 1
    assert 'No space left on device' in capsys.readouterr().err


def test_data_that_vanishes_ends_the_run_with_the_last_checkpoint_intact(small_models, small_digits, tmp_path):
    data = tmp_path / 'digits'
    shutil.copytree(small_digits, data)
    cfg = small_cfg(small_models, 'classifier', data, tmp_path / 'run', **OPTIONS)
    with pytest.raises(UsageError, match='none of the last 200 images could be read.*there is no such file'):
        train(cfg, FaultHook(lambda: shutil.rmtree(data)))
    assert damage(tmp_path / 'run' / 'epoch_1.pth') is None


def test_one_image_that_vanishes_is_named_and_passed_over(small_models, small_digits, tmp_path):
    data = tmp_path / 'digits'
    shutil.copytree(small_digits, data)
    cfg = small_cfg(small_models, 'classifier', data, tmp_path / 'run', **OPTIONS)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)  # every image in every epoch
    removed = []

    class Remove(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                removed.append(runner.train_dataloader.dataset.get_data_info(5)['img_path'])
                os.remove(removed[0])

    runner = train(cfg, Remove())
    assert runner.iter == 6
    assert f'{removed[0]}\tthere is no such file' in (next((tmp_path / 'run').glob('*/bad_images.txt'))).read_text()
