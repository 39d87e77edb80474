"""Shared fixtures. Everything runs on the CPU with the real libraries."""

import logging
import os
import runpy
import shutil
import sys

import pytest
import torch
from backbones import randomise
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from processes import ROOT, call
from shared_folders import make_once

from xcit_mm.datasets.digits import make_digits
from xcit_mm.ops import dispatch

# What takes longest goes first, so that several processes of tests end at about the same time.
LONGEST = (
    'train_and_test',
    'interruption',
    'downstream',
    'benchmark',
    'classification',
    'model_zoo',
    'published_files',
    'agreement',
    'inference',
)


def pytest_collection_modifyitems(items):
    order = {f'test_{name}.py': place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


def pytest_configure():
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 2)))
    # MMEngine lists the start value of every single parameter at level INFO.
    MMLogger.get_instance('mmengine').setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def no_default_scope():
    """Tests and fixtures that choose a library leave the choice behind, as MMEngine's programs do; none must see it."""
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def one_thread():
    """For models so small that they lose more by waiting for a second thread than it gives them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def covariance_of_few_tokens():
    """For small models that are to take the covariance form as large ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dispatch.LEAST_VALUES_OF_COVARIANCE, 'cpu', 0)
        yield


@pytest.fixture
def tiny():
    """A small arch with all parts, for tests that need no published size."""
    return dict(embed_dims=32, depth=4, num_heads=4)


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    return next(make_once(tmp_path_factory, 'wheel', _build_wheel).glob('*.whl'))


def _build_wheel(folder):
    source = folder / 'source'
    source.mkdir()
    for name in ('xcit_mm', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, source]
    done = call(command, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope='session')
def installed(wheel, tmp_path_factory):
    """A folder with xcit_mm installed from its wheel; for PYTHONPATH, where it comes before the checkout."""

    def install(site):
        done = call([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', site, wheel], cwd=site)
        assert done.returncode == 0, done.stdout + done.stderr

    return make_once(tmp_path_factory, 'site', install)


@pytest.fixture(scope='session')
def small_models(tmp_path_factory):
    """For each kind of model a config and a checkpoint of random weights: the digits configs with a small arch."""
    folder = make_once(tmp_path_factory, 'small_models', _write_small_models)
    return {path.stem: (str(path), str(path.with_suffix('.pth'))) for path in folder.glob('*.py')}


def _write_small_models(folder):
    maps = [32] * 4
    changes = {
        'classifier': ('xcit_n12_8_digits', dict(head=dict(in_channels=32))),
        'detector': ('mask_rcnn_xcit_n12_8_digits', dict(neck=dict(in_channels=maps))),
        'semantic_fpn': ('sem_fpn_xcit_n6_8_digits', dict(neck=dict(in_channels=maps))),
        'upernet': (
            'upernet_xcit_n6_8_digits',
            dict(decode_head=dict(in_channels=maps), auxiliary_head=dict(in_channels=32)),
        ),
    }
    for name, (base, model) in changes.items():
        cfg = Config.fromfile(ROOT / 'configs' / f'{base}.py')
        cfg.model.backbone.arch = dict(embed_dims=32, depth=2, num_heads=4)
        if name != 'classifier':
            cfg.model.backbone.out_indices = (0, 0, 1, 1)
        cfg.merge_from_dict(dict(model=model))
        cfg.dump(folder / f'{name}.py')
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            built = randomise(MODELS.build(cfg.model))
        torch.save({'state_dict': built.state_dict(), 'meta': {}}, folder / f'{name}.pth')


@pytest.fixture(scope='session')
def small_digits(tmp_path_factory):
    """The embedded data set with 12 training and 4 validation scenes of 64 pixels."""

    def make(folder):
        make_digits(folder / 'digits', train=12, val=4, size=64, seed=0)

    return make_once(tmp_path_factory, 'small_digits', make) / 'digits'


@pytest.fixture
def data(digits, tmp_path):
    """A copy of a test module's ``digits``, to damage."""
    for name in ('coco', 'ade'):
        shutil.copytree(digits / name, tmp_path / 'data' / name)
    return tmp_path / 'data'


@pytest.fixture
def run_tool(monkeypatch, tmp_path, capsys):
    """Run a script as the main program, in an empty folder, without the seconds that a new process takes to import."""

    def run(path, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name='__main__')
        return capsys.readouterr().out

    return run
