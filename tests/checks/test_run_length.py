"""Settings against the length of a run, batches against updates, and what a resumed run and the screen say of them."""

import copy
import logging
import re
import warnings

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage
from mmengine.optim import scheduler as schedulers
from processes import ROOT
from small_runs import small_cfg, train

from xcit_mm.checks.schedule import Run, _kept_share, _misfits_of_schedule, adapt_hooks
from xcit_mm.engine.screen import short_screen, shorten
from xcit_mm.errors import UsageError

pytestmark = pytest.mark.usefixtures('one_thread')
ITERATIONS, EPOCHS = Run(iterations=240, epochs=None), Run(iterations=240, epochs=30)


@pytest.fixture
def cfg(small_models, small_digits, tmp_path):
    """Two epochs of three iterations of four images, without validation."""
    cfg = small_cfg(
        small_models,
        'classifier',
        small_digits,
        tmp_path,
        log_level='INFO',
        train_cfg=dict(max_epochs=2, val_interval=9),
    )
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg[key] = None
    cfg.default_hooks.checkpoint = dict(type='xcit_mm.CheckpointHook', interval=1)
    cfg.param_scheduler = []
    return cfg


@pytest.fixture
def logged(monkeypatch):
    """What is logged, by its level."""
    records = []
    call = MMLogger.callHandlers
    monkeypatch.setattr(MMLogger, 'callHandlers', lambda self, record: (records.append(record), call(self, record)))
    return lambda level=logging.INFO: [record.getMessage() for record in records if record.levelno == level]


class Half(ExponentialMovingAverage):
    """An average of a user's own."""

    def avg_func(self, averaged_param, source_param, steps):
        averaged_param.lerp_(source_param, 0.5)


@pytest.mark.parametrize(
    'average, updates, share',
    [
        (ExponentialMovingAverage(torch.nn.Linear(1, 1), momentum=4e-5), 120, (1 - 4e-5) ** 119),
        (ExponentialMovingAverage(torch.nn.Linear(1, 1), momentum=1e-4), 3000, (1 - 1e-4) ** 2999),
        (MomentumAnnealingEMA(torch.nn.Linear(1, 1), momentum=1e-4, gamma=100), 240, 0.5),
        (StochasticWeightAverage(torch.nn.Linear(1, 1)), 240, 0.5),
        (Half(torch.nn.Linear(1, 1)), 240, 0.5),
    ],
)
def test_how_much_of_the_start_an_average_keeps(average, updates, share):
    found = _kept_share(average, updates)
    assert found == pytest.approx(share, rel=1e-3) if share > 0.5 else found <= 0.5
    assert average.steps == 0


@pytest.mark.parametrize('run, begin', [(ITERATIONS, dict()), (EPOCHS, dict()), (EPOCHS, dict(begin_epoch=15))])
def test_an_average_that_would_not_leave_the_start_is_mended(run, begin):
    def hook_of(momentum):
        hook = EMAHook(momentum=momentum, **begin)
        hook.ema_model = ExponentialMovingAverage(torch.nn.Linear(1, 1), momentum=momentum)
        return hook

    slow, right = hook_of(4e-5), hook_of(0.05)
    (note,) = adapt_hooks([slow, right], run)
    updates = 120 if begin else 240
    assert f'in place of 4e-05, which would leave 99.{5 if begin else 0}%' in note and f'{updates} updates' in note
    assert _kept_share(slow.ema_model, updates) < 0.5
    assert (1 - slow.ema_model.momentum) ** updates == pytest.approx(0.01, rel=0.2)
    assert right.ema_model.momentum == 0.05
    assert adapt_hooks([slow, right], Run(500_000, None)) == []


def test_a_run_with_an_average_ends_near_its_weights(cfg, logged):
    """240 images for 30 epochs with ImageNet's 4e-5 gave the start in every validation and in best_*.pth."""
    cfg.train_cfg.max_epochs = 10
    cfg.custom_hooks = [dict(type='EMAHook', momentum=4e-5)]
    cfg.optim_wrapper.optimizer.lr = 1e-2
    cfg.default_hooks.checkpoint.interval = 99
    runner = train(cfg)
    hook = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
    average, model = hook.ema_model.module.head.fc.weight, runner.model.head.fc.weight
    torch.manual_seed(0)
    assert hook.ema_model.momentum == 0.14
    assert any('EMAHook: momentum 0.14 in place of 4e-05' in line for line in logged())
    assert (average - model).norm() < 0.5 * model.norm()


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize(
    'kind, options, run, words',
    [
        ('LinearLR', dict(start_factor=0.1, by_epoch=False, end=500), ITERATIONS, 'warms up until iteration 500'),
        ('LinearLR', dict(start_factor=0.1, by_epoch=False, end=100), ITERATIONS, None),
        ('LinearLR', dict(start_factor=1.0, end_factor=0.1, end=30), EPOCHS, None),
        ('ConstantLR', dict(factor=0.1, by_epoch=False, end=500), ITERATIONS, 'stays below its value'),
        ('ConstantLR', dict(factor=1.0, end=30), EPOCHS, None),
        (
            'PolyLR',
            dict(by_epoch=False, end=80000),
            ITERATIONS,
            'goes on until iteration 80000, and the run ends',
        ),
        ('PolyLR', dict(by_epoch=False, end=240), ITERATIONS, None),
        ('CosineAnnealingLR', dict(T_max=300), EPOCHS, 'goes on until epoch 300, and the run ends at 30'),
        ('CosineAnnealingLR', dict(T_max=10, end=10), EPOCHS, 'ends at epoch 10, and the run at 30'),
        ('CosineAnnealingLR', dict(T_max=10), EPOCHS, 'turns round at epoch 10'),
        ('CosineAnnealingLR', dict(T_max=25, begin=5, end=30), EPOCHS, None),
        ('CosineAnnealingLR', dict(T_max=30), ITERATIONS, 'it never steps. Set by_epoch=False'),
        ('MultiStepLR', dict(milestones=[27, 33]), EPOCHS, 'before the milestones 33'),
        ('MultiStepLR', dict(milestones=[8, 11], by_epoch=False), EPOCHS, 'For epochs: by_epoch=True'),
        ('MultiStepLR', dict(milestones=[20, 27]), EPOCHS, None),
        ('CosineAnnealingMomentum', dict(T_max=300), EPOCHS, 'the momentum does not get there'),
    ],
)
def test_schedules_against_the_length_of_the_run(kind, options, run, words):
    of = optimizer() if kind.endswith('LR') else torch.optim.SGD(optimizer().param_groups[0]['params'], 0.1, 0.9)
    one = getattr(schedulers, kind)(of, **options)
    found = list(_misfits_of_schedule('it', one, run, last=True))
    assert len(found) == bool(words) and all(words in line for line in found)


def test_misfits_are_named_before_the_first_iteration(cfg, logged):
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.param_scheduler = [dict(type='MultiStepLR', milestones=[8, 11])]
    cfg.default_hooks.logger.interval = 50
    runner = train(cfg)
    warnings = logged(logging.WARNING)
    assert sum('param_scheduler.0 (MultiStepLR) counts epochs' in line for line in warnings) == 1
    assert sum('default_hooks.checkpoint counts epochs' in line for line in warnings) == 1
    assert any('default_hooks.logger.interval: 1 in place of 50' in line for line in logged())
    assert sum('(train)' in line for line in logged()) == 4
    assert runner.iter == 4


def test_more_images_to_a_batch_than_there_are(cfg):
    cfg.train_dataloader.update(batch_size=13, drop_last=True)
    cfg.param_scheduler = [dict(type='LinearLR', by_epoch=True, end=2, convert_to_iter_based=True)]
    with pytest.raises(UsageError, match='12 images make no batch of 13, .*batch_size to 12 or less'):
        train(cfg)
    cfg.train_dataloader.drop_last = False
    cfg.experiment_name += 'b'
    assert train(cfg).iter == 2


@pytest.mark.parametrize('batch, counts, base, scale', [(1, 4, 4, 1.0), (4, 1, 8, 0.5), (2, 4, 4, 2.0), (4, 1, 4, 1.0)])
def test_learning_rates_are_scaled_by_the_images_of_an_update(cfg, logged, batch, counts, base, scale):
    cfg.train_cfg.max_epochs = 1
    cfg.train_dataloader.batch_size = batch
    cfg.optim_wrapper.accumulative_counts = counts
    cfg.optim_wrapper.optimizer.lr = 1e-3
    cfg.auto_scale_lr = dict(base_batch_size=base, enable=True)
    runner = train(cfg)
    assert {group['lr'] for group in runner.optim_wrapper.optimizer.param_groups} == {1e-3 * scale}
    assert any(
        line.startswith(f'One update uses {batch * counts} images') and f'LR by {scale:g}' in line for line in logged()
    )
    # What is dumped for another run is the config's own.
    assert runner.cfg.auto_scale_lr.base_batch_size == base


@pytest.mark.parametrize('base, named', [(32, True), (4, False)])
def test_a_batch_that_the_learning_rate_is_not_for_is_named(cfg, logged, base, named):
    cfg.train_cfg.max_epochs = 1
    cfg.auto_scale_lr = dict(base_batch_size=base, enable=False)
    train(cfg)
    found = [line for line in logged() if '--auto-scale-lr' in line]
    assert len(found) == named
    if named:
        assert 'One update uses 4 images (batch_size 4 x 1 process)' in found[0] and 'scales it by 0.125' in found[0]


def test_a_resumed_run_names_what_its_checkpoint_overrides(cfg, logged, tmp_path):
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4)]
    cfg.optim_wrapper.optimizer.update(lr=1e-3, weight_decay=0.05)
    train(cfg)
    assert not any('settings of the checkpoint' in line for line in logged(logging.WARNING))
    again = copy.deepcopy(cfg)
    again.update(resume=True, experiment_name=cfg.experiment_name + 'again')
    again.train_cfg.max_epochs = 3
    again.optim_wrapper.optimizer.update(lr=5e-4, weight_decay=0.3)
    again.param_scheduler[0].end = 9
    runner = train(again)
    (line,) = [line for line in logged(logging.WARNING) if 'settings of the checkpoint' in line]
    for words in (
        'lr 0.001 (config: 0.0005)',
        '0.05 (config: 0.3)',
        'param_scheduler.0 (LinearLR)',
        'end 4 (config: 9)',
    ):
        assert words in line
    assert runner.optim_wrapper.param_groups[0]['lr'] == pytest.approx(1e-3)
    # With the config as it was, there is nothing to say, but that the run has been there.
    cfg.update(resume=True, experiment_name=cfg.experiment_name + 'end')
    train(cfg)
    assert sum('settings of the checkpoint' in line for line in logged(logging.WARNING)) == 1
    assert any('Nothing is left to train' in line for line in logged(logging.WARNING))


@pytest.fixture
def small_tool_run(small_models, small_digits, tmp_path):
    def prepare(kind, folder, **options):
        cfg = Config.fromfile(small_models[kind][0])
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.num_workers = 0
        if 'max_epochs' in cfg.train_cfg:
            cfg.train_cfg.max_epochs = 1
        else:
            cfg.train_cfg.max_iters = 2
        cfg.merge_from_dict(options)
        cfg.visualizer.name = str(tmp_path)  # MMEngine keeps one of each name for the whole process
        cfg.dump(tmp_path / 'run.py')
        return [tmp_path / 'run.py', '--data-root', small_digits / folder, '--out-dir', tmp_path / 'out']

    return prepare


@pytest.mark.parametrize(
    'kind, folder, data',
    [
        pytest.param(
            'detector', 'coco', r'train: 12 images, \d+ objects: (\w+ \d+, ){9}\w+ \d+', marks=pytest.mark.slow
        ),
        ('classifier', 'imagenet', r'train: \d+ images: (\d_\w+ \d+, ){9}\d_\w+ \d+'),
        pytest.param('semantic_fpn', 'ade', 'train: 12 images', marks=pytest.mark.slow),
    ],
)
def test_the_screen_shows_what_the_run_is_about(kind, folder, data, small_tool_run, run_tool, tmp_path):
    shown = run_tool(ROOT / 'tools/train.py', *small_tool_run(kind, folder))
    lines = shown.splitlines()
    until = next(number for number, line in enumerate(lines) if re.search(r'(Epoch|Iter)\(train\)', line))
    head = '\n'.join(lines[:until])
    assert until < 20 and re.search(f'data      {data}', head)
    length = '2 iterations' if kind == 'semantic_fpn' else '1 epoch of'
    for part in ('device    CPU', 'data      val: ', 'M parameters', f'schedule  {length}', 'log       '):
        assert part in head
    for noise in ('Could not import', 'System environment', 'Config:', 'Hooks will be', 'loading annotations'):
        assert noise not in shown
    (log,) = (tmp_path / 'out').glob('*/*.log')
    text = log.read_text()
    assert all(part in text for part in ('System environment', 'Config:', 'Hooks will be', 'device    CPU'))


@pytest.mark.slow
def test_verbose_shows_all(small_tool_run, run_tool):
    shown = run_tool(ROOT / 'tools/train.py', *small_tool_run('semantic_fpn', 'ade'), '--verbose')
    assert all(part in shown for part in ('System environment', 'Config:', 'Hooks will be', 'device    CPU'))


def test_prints_and_named_warnings_of_the_libraries_go_to_the_log(capsys, tmp_path):
    early = MMLogger.get_instance('early', log_level='INFO')
    with warnings.catch_warnings(record=True) as shown, short_screen():
        warnings.simplefilter('always')
        print('Could not import OneDL. Skipping OneDL datasets.')
        print('a note', flush=True)
        print('loading annotations into memory...')
        code = compile(
            "import warnings; warnings.warn('faster_coco_eval is not installed')", 'site-packages/x.py', 'exec'
        )
        exec(code, {})
        exec(compile("import warnings; warnings.warn('too many workers')", 'site-packages/y.py', 'exec'), {})
        early.warning('Failed to search registry with scope "mmdet"')
        logger = MMLogger('a_run', log_file=str(tmp_path / 'log'))
        shorten(logger)
        logger.info('System environment')
        logger.warning('a warning to act on')
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == 'a note' and 'a warning to act on' in captured.out.splitlines()[1]
    assert len(captured.out.splitlines()) == 2 and captured.err == ''
    assert [str(warning.message) for warning in shown] == ['too many workers']
    text = (tmp_path / 'log').read_text()
    for part in ('OneDL', 'loading annotations', 'faster_coco_eval', 'Failed to search', 'System env', 'to act on'):
        assert part in text
