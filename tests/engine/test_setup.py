"""From a config to a runner: what is added to a user's config, or changed in it, is said."""

import argparse

import pytest
from mmengine.config import Config
from small_runs import small_cfg

from xcit_mm.engine.screen import short_screen
from xcit_mm.engine.setup import add_common_arguments, build_runner

pytestmark = pytest.mark.usefixtures('one_thread')


def notes(cfg):
    """The lines of a runner's log about changes of its config."""
    runner = build_runner(Config(cfg.to_dict()))
    with open(runner.logger.log_file) as file:
        return [line.partition(' - config: ')[2].strip() for line in file if ' - config: ' in line]


def plain(small_models, kind, digits, folder):
    """A config as somebody writes it who does not know this package: with the libraries' hooks alone."""
    cfg = small_cfg(small_models, kind, digits, folder, log_level='INFO')
    cfg.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    cfg.custom_hooks = []
    return cfg


def test_options_that_cannot_be_read_are_refused_with_the_way_to_write_them(capsys):
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    given = parser.parse_args(['c.py', '--cfg-options', 'a.b=[(1,2),x]', 'c=1e-3', '--cfg-options', 'd=word'])
    assert given.cfg_options == {'a.b': [(1, 2), 'x'], 'c': 1e-3, 'd': 'word'}
    for text in ("custom_hooks=[dict(type='EMAHook',momentum=0.01)]", 'lr', 'a=[1,(2]'):
        with pytest.raises(SystemExit):
            parser.parse_args(['c.py', '--cfg-options', text])
        told = capsys.readouterr().err
        assert f'--cfg-options {text}: expected KEY=VALUE' in told and '_base_' in told


def test_changes_of_a_classifiers_config_are_logged_in_one_line_each(small_models, small_digits, tmp_path):
    cfg = plain(small_models, 'classifier', small_digits, tmp_path)
    cfg.val_dataloader.persistent_workers = True
    cfg.train_dataloader.collate_fn = dict(type='default_collate')
    found = notes(cfg)
    assert found[:4] == [
        'val_dataloader: num_workers=0, so without persistent_workers',
        'val_dataloader: collate_fn=default_collate, as MMPretrain wants it',
        'test_dataloader: collate_fn=default_collate, as MMPretrain wants it',
        'default_hooks.checkpoint: xcit_mm.CheckpointHook in place of CheckpointHook',
    ]
    assert found[4].startswith('hooks added: DetectionDataHook, CheckpointFitHook') and 'ResumeHook' in found[4]
    assert 'xcit_mm.LoadImageFromFile in place of mmcv.LoadImageFromFile (train, val, test)' in found[5:]
    assert len(found) == len(set(found))


def test_changes_of_a_detectors_config_are_logged(small_models, small_digits, tmp_path):
    found = notes(plain(small_models, 'detector', small_digits, tmp_path))
    assert 'xcit_mm.CocoDataset in place of CocoDataset (train, val, test)' in found
    assert 'xcit_mm.CocoMetric in place of CocoMetric (val, test)' in found


def test_a_shipped_config_needs_no_hooks_of_resuming(small_models, small_digits, tmp_path):
    found = notes(small_cfg(small_models, 'semantic_fpn', small_digits, tmp_path, log_level='INFO'))
    (added,) = [line for line in found if line.startswith('hooks added')]
    assert not {'ResumeHook', 'NonFiniteHook', 'DataPositionHook'} & set(added.replace(',', '').split())
    assert not any('CheckpointHook in place' in line for line in found)


def test_the_runner_for_divided_models_keeps_its_config_off_the_screen(small_models, small_digits, tmp_path, capfd):
    cfg = small_cfg(small_models, 'classifier', small_digits, tmp_path, log_level='INFO')
    cfg.update(runner_type='FlexibleRunner', strategy=dict(type='SingleDeviceStrategy'))
    cfg.pop('env_cfg', None)  # which MMEngine's other runner does not need either
    with short_screen():
        runner = build_runner(cfg)
    shown = ''.join(capfd.readouterr())
    assert 'config: hooks added' in shown and 'System environment' not in shown and 'backbone=dict' not in shown
    with open(runner.logger.log_file) as file:
        logged = file.read()
    assert 'System environment' in logged and 'backbone=dict' in logged
