"""Losses and gradients that are NaN or infinite: named, skipped or the end."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from processes import run_group
from small_runs import assert_same, small_cfg, state, train

from xcit_mm.engine.setup import adapt_to_device, build_runner
from xcit_mm.errors import UsageError

pytestmark = pytest.mark.usefixtures('one_thread')


class PoisonHook(Hook):
    """Makes the images of one iteration NaN, after they are read."""

    def __init__(self, *iterations):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 in self.iterations:
            data_batch['inputs'] = data_batch['inputs'].float() * float('nan')


@pytest.fixture
def cfg(small_models, small_digits, tmp_path):
    return small_cfg(
        small_models,
        'classifier',
        small_digits,
        tmp_path / 'run',
        **{'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 5, 'default_hooks.checkpoint.interval': 1},
    )


def test_training_stops_before_the_update_and_names_the_images(cfg, tmp_path):
    with pytest.raises(UsageError) as error:
        train(cfg, PoisonHook(5))
    message = str(error.value)
    assert 'iteration 5 (epoch 2): loss is nan, and gradients are not finite' in message
    assert message.count('.png') + message.count('.jpg') == 4 and 'train' in message
    assert 'default_hooks.non_finite.action=skip' in message
    assert [path.name for path in (tmp_path / 'run').glob('epoch_*.pth')] == ['epoch_1.pth']


def test_a_skipped_iteration_leaves_nothing_behind(cfg, tmp_path):
    """Neither in the weights nor in the statistics of batch norm, the average of both, or the optimizer."""
    cfg.default_hooks.non_finite.action = 'skip'

    class Compare(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.before = [t.clone() for t in runner.model.state_dict().values()]

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            same = all(torch.equal(a, b) for a, b in zip(self.before, runner.model.state_dict().values()))
            assert same == (runner.iter + 1 == 2)

    runner = train(cfg, PoisonHook(2), Compare())
    assert runner.iter == 6 and runner.message_hub.get_info('skipped_iterations') == 1
    saved = state(tmp_path / 'run' / 'epoch_2.pth')
    for part in ('state_dict', 'ema_state_dict'):
        assert all(torch.isfinite(value).all() for value in saved[part].values()), part


def test_skipping_is_bounded(cfg):
    cfg.default_hooks.non_finite.update(action='skip', max_skips=2)
    with pytest.raises(UsageError, match='iteration 4 .* 2 iterations were skipped'):
        train(cfg, PoisonHook(1, 2, 4))


def test_gradients_alone_are_enough(cfg):
    """A finite loss whose gradient is not, as of a square root at zero."""

    class RootHook(Hook):
        def before_train(self, runner):
            head = runner.model.head
            get_loss = head._get_loss

            def with_root(*args, **kwargs):
                losses = get_loss(*args, **kwargs)
                root = (head.fc.weight * 0).square().sum().sqrt()
                return dict(losses, loss=losses['loss'] + root)

            head._get_loss = with_root

    with pytest.raises(UsageError, match='the losses are finite, and gradients are not finite'):
        train(cfg, RootHook())


def test_a_watched_run_is_the_same_as_one_that_is_not(cfg, tmp_path):
    train(cfg)
    watched = state(tmp_path / 'run' / 'epoch_2.pth')
    cfg.default_hooks.non_finite.action = 'ignore'
    cfg.experiment_name += '_ignored'
    train(cfg)
    assert_same(watched, state(tmp_path / 'run' / 'epoch_2.pth'))


@OPTIM_WRAPPERS.register_module(force=True)
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's mixed precision, which wants a GPU, with PyTorch's autocast and loss scale for the CPU."""

    def __init__(self, scale, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        self.cast_dtype, self._scale_update_param = torch.bfloat16, None


def in_mixed_precision(cfg, scale):
    cfg.optim_wrapper.update(type='CPUAmpOptimWrapper', scale=scale, _scope_='mmengine')
    return cfg


needs_cpu_scaler = pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='PyTorch 2.3 is the first with it')


@needs_cpu_scaler
@pytest.mark.parametrize('action', ['stop', 'skip'])
def test_a_loss_that_is_no_number_in_mixed_precision(action, cfg, tmp_path):
    cfg.default_hooks.non_finite.action = action
    in_mixed_precision(cfg, 2.0**10)
    if action == 'stop':
        with pytest.raises(UsageError, match=r'iteration 5 \(epoch 2\): loss is nan.*Images: .*png'):
            train(cfg, PoisonHook(5))
        return
    runner = train(cfg, PoisonHook(2))
    assert runner.message_hub.get_info('skipped_iterations') == 1
    saved = state(tmp_path / 'run' / 'epoch_2.pth')
    for part in ('state_dict', 'ema_state_dict'):
        assert all(torch.isfinite(value).all() for value in saved[part].values()), part


@needs_cpu_scaler
def test_gradients_that_overflow_in_mixed_precision_are_the_loss_scales_affair(cfg):
    """The scale is halved, and the run goes on without a word."""

    class OverflowHook(Hook):
        def before_train(self, runner):
            overflow = lambda grad: grad * 1e38 if runner.iter == 1 else grad  # noqa: E731
            runner.model.head.fc.weight.register_hook(overflow)

    runner = train(in_mixed_precision(cfg, 2.0**10), OverflowHook())
    assert runner.iter == 6 and runner.message_hub.runtime_info.get('skipped_iterations') is None
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**9
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


def member(rank, world, folder):
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world))
    found = {}
    for action in ('stop', 'skip'):
        cfg = Config.fromfile(f'{folder}/cfg.py')
        cfg.update(work_dir=f'{folder}/{action}', experiment_name=action)
        cfg.default_hooks.non_finite.action = action
        adapt_to_device(cfg)
        runner = build_runner(cfg)
        runner.register_hook(PoisonHook(2) if rank == 1 else Hook())
        try:
            runner.train()
        except UsageError as error:
            found[action] = str(error)
            found['iterations'] = runner.iter
        else:
            found[action] = runner.message_hub.get_info('skipped_iterations')
            found['weights'] = runner.model.module.state_dict()
    torch.save(found, f'{folder}/found_{rank}.pth')


@pytest.mark.slow
def test_all_processes_stop_or_skip_though_one_alone_has_the_bad_images(cfg, tmp_path):
    cfg.update(launcher='pytorch')
    cfg.train_dataloader.batch_size = 2
    cfg.dump(tmp_path / 'cfg.py')
    run_group(member, tmp_path, limit=600)
    first, second = (torch.load(tmp_path / f'found_{rank}.pth', weights_only=False) for rank in range(2))
    assert first['stop'] == second['stop'] and first['iterations'] == second['iterations'] == 1
    assert 'iteration 2 (epoch 1): process 1: loss is nan' in first['stop'] and first['stop'].count('.png') == 2
    assert first['skip'] == second['skip'] == 1
    assert all(value.isfinite().all() for value in first['weights'].values())
    for name, parameter in first['weights'].items():
        if 'running' not in name:  # of batch norm, which each process has for itself
            assert torch.equal(parameter, second['weights'][name]), name


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match="action must be one of .*'retry'"):
        HOOKS.build(dict(type='xcit_mm.NonFiniteHook', action='retry'))
