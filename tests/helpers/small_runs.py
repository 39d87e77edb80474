"""Small training runs: the digits configs with a tiny arch and a few images."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import traceback

import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from xcit_mm.engine.setup import _move_data_root, build_runner

FOLDERS = dict(classifier='imagenet', detector='coco', semantic_fpn='ade', upernet='ade')
_numbers = itertools.count()


def small_cfg(small_models, kind, data, work_dir, **options):
    """A config of ``conftest.small_models`` on a data set of make_digits; 12 training images, batches of 4."""
    cfg = Config.fromfile(small_models[kind][0])
    _move_data_root(cfg, str(data / FOLDERS[kind]))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.indices = 12
    cfg.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'launcher': 'none',
            'log_level': 'WARNING',
            'experiment_name': f'{kind}_{next(_numbers)}',
            'train_dataloader.batch_size': 4,
            'train_dataloader.dataset.serialize_data': False,
            'val_dataloader.dataset.serialize_data': False,
            **options,
        }
    )
    return cfg


class SignalHook(Hook):
    """Sends this process, and those that load data for it, a signal while it trains or validates."""

    def __init__(self, after, number=signal.SIGTERM, validating=False):
        self.after, self.number, self.validating = after, number, validating

    def send(self):
        processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        subprocess.run(['kill', f'-{int(self.number)}', *map(str, processes)], check=True)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.validating and runner.iter + 1 == self.after:
            self.send()

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.validating and runner.iter == self.after:
            self.send()


def train(cfg, *hooks):
    """Train, and return the runner."""
    runner = build_runner(Config(cfg.to_dict()))
    for hook in hooks:
        runner.register_hook(hook)
    try:
        runner.train()
    except BaseException as error:
        # A process that ends takes those with it that load data; this one lives on, and lets go of their loaders.
        iterator = getattr(runner._train_loop, 'dataloader_iterator', None)
        if hasattr(iterator, 'iterator'):
            iterator.iterator = None
        traceback.clear_frames(error.__traceback__)
        raise
    return runner


def state(path):
    """All that decides how a run goes on."""
    checkpoint = torch.load(path, weights_only=False)
    names = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    return {name: checkpoint[name] for name in names if name in checkpoint}


def assert_same(ours, theirs, where=''):
    """Equal to the bit, in all nested parts."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f'{where}.{key}')
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for number, pair in enumerate(zip(ours, theirs)):
            assert_same(*pair, f'{where}[{number}]')
    else:
        assert ours == theirs, where
