"""Each private name of MMEngine that :mod:`xcit_mm.compat` lists is there, and means what this project takes it for.

These tests fail, and are not skipped, where a version of MMEngine or PyTorch has changed one.
"""

import ast
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from xcit_mm import compat


class Numbers(Dataset):
    metainfo = {}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.ones(1))


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).sum())


class Seen(Hook):
    """What the accessors tell of a runner after it has loaded its checkpoint."""

    def before_train(self, runner):
        self.loops = {split: type(compat.built_loop(runner, split)).__name__ for split in ('train', 'val', 'test')}
        self.resuming, self.loaded = compat.is_resuming(runner), compat.is_loaded(runner)


def make(kind, folder, **options):
    loader = dict(batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), dataset=Numbers())
    return kind(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), accumulative_counts=3),
        default_scope='mmengine',
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)),
        experiment_name=f'compat_{kind.__name__}_{len(options)}_{folder.name}',
        **options,
    )


def test_no_overridden_method_is_missing():
    assert compat.missing_methods() == []


def test_a_missing_method_is_named(monkeypatch):
    monkeypatch.setitem(compat.OVERRIDDEN, ('mmengine.hooks', 'Hook'), ('_after_lunch',))
    assert compat.missing_methods() == ['mmengine.hooks.Hook._after_lunch']


@pytest.mark.parametrize('kind', [Runner, FlexibleRunner])
def test_a_runner_tells_what_it_does(kind, tmp_path):
    runner, seen = make(kind, tmp_path), Seen()
    assert compat.built_loop(runner, 'train') is None and not compat.is_loaded(runner)
    assert compat.part_of(runner, 'train', 'dataloader')['batch_size'] == 2
    assert compat.part_of(runner, 'val', 'evaluator') is None
    compat.set_part(runner, 'train', 'dataloader', dict(compat.part_of(runner, 'train', 'dataloader'), batch_size=4))
    runner.register_hook(seen)
    runner.train()
    assert runner.train_dataloader.batch_size == 4
    assert seen.loops == dict(train='IterBasedTrainLoop', val='NoneType', test='NoneType')
    assert (seen.resuming, seen.loaded, compat.checkpoint_of(runner)) == (False, False, None)
    assert compat.accumulative_counts(runner.optim_wrapper) == 3

    again, seen = make(kind, tmp_path / 'again'), Seen()
    compat.resume_from(again, str(tmp_path / 'iter_1.pth'))
    again.register_hook(seen)
    again.train()
    assert (seen.resuming, seen.loaded, again.iter) == (True, True, 1)
    assert compat.checkpoint_of(again).endswith('iter_1.pth')


def test_the_scaling_of_a_strategy_is_changed(tmp_path):
    runner = make(FlexibleRunner, tmp_path, auto_scale_lr=dict(base_batch_size=2))
    compat.change_lr_scaling(runner.strategy, lambda found: dict(found, enable=True))
    runner.train()  # the strategy scales 0.1 by the batch over the base
    assert runner.strategy._auto_scale_lr == dict(base_batch_size=2, enable=True)


def test_the_interval_of_validation_follows_the_iteration(tmp_path):
    runner = make(Runner, tmp_path)
    loop = IterBasedTrainLoop(runner, runner._train_dataloader, 10, val_interval=1, dynamic_intervals=[(5, 3)])
    loop._iter = 7
    compat.update_val_interval(loop)
    assert loop.val_interval == 3


def test_an_infinite_sampler_begins_anew():
    sampler = InfiniteSampler(range(10), seed=1)
    read = iter(sampler)
    first, later = ([next(read) for _ in range(3)] for _ in range(2))
    assert first != later
    compat.restart_order(sampler)
    read = iter(sampler)
    assert [next(read) for _ in range(3)] == first


def test_workers_are_started_by_the_wrapper_and_dropped():
    calls = []

    def wrap(start):
        calls.append('start')
        return start()

    loader = DataLoader(Numbers(), num_workers=1, persistent_workers=True)
    compat.wrap_iterator(loader, wrap)
    first = iter(loader)
    assert calls == ['start'] and iter(loader) is first
    compat.drop_workers(loader)
    assert iter(loader) is not first and calls == ['start', 'start']


def test_bases_of_a_config_are_files(tmp_path):
    (tmp_path / 'base.py').write_text('a = 1\n')
    (tmp_path / 'cfg.py').write_text("_base_ = './base.py'\n")
    (base,) = compat.base_files(str(tmp_path / 'cfg.py'))
    assert (tmp_path / 'base.py').samefile(base)
    assert Config.fromfile(tmp_path / 'cfg.py').a == 1


def test_gradient_accumulation_of_a_wrapper_is_read():
    parameter = nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.SGD([parameter], 0.1), accumulative_counts=4)
    assert compat.accumulative_counts(wrapper) == 4


@pytest.mark.parametrize('foreach', [True, False])
def test_norms_are_those_of_each_tensor(foreach, monkeypatch):
    if not foreach:
        monkeypatch.delattr(torch, '_foreach_norm')
    tensors = [torch.tensor([3.0, 4.0]), torch.tensor([[float('inf')]])]
    assert [float(norm) for norm in compat.norms(tensors)] == [5.0, float('inf')]


def test_every_kind_of_batch_norm_is_known():
    assert issubclass(nn.BatchNorm2d, compat.BatchNorm) and issubclass(nn.SyncBatchNorm, compat.BatchNorm)


def test_no_other_module_imports_private_names_or_reads_private_attributes_of_runners():
    package = Path(compat.__file__).parent
    found = []
    for path in sorted(package.rglob('*.py')):
        if path.name == 'compat.py' or path.relative_to(package).parts[0] in ('configs', '.mim'):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mmengine'):
                private = [alias.name for alias in node.names if alias.name.startswith('_')]
                private += [part for part in node.module.split('.') if part.startswith('_')]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'runner':
                private = [node.attr] if node.attr.startswith('_') else []
            else:
                continue
            found += [f'{path.relative_to(package)}:{node.lineno} {name}' for name in private]
    assert not found, f'put these into compat.py: {", ".join(found)}'
