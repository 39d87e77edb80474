"""The wheel, as somebody gets it who has no checkout, and who may not have all three libraries."""

import os
import shutil
import sys
import sysconfig
import zipfile

import pytest
from processes import ROOT, call

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
DISTRIBUTIONS = {
    'mmdet': ('mmdet', 'onedl_mmdetection'),
    'mmseg': ('mmseg', 'mmsegmentation', 'onedl_mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl_mmpretrain'),
}


def run_python(code, site, cwd, *options):
    """Run code with the installed package, away from the checkout; its last line of output."""
    env = dict(os.environ, PYTHONPATH=str(site))
    done = call([sys.executable, *options, '-c', code], cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    'installed, named',
    [
        (['onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'], []),
        (['mmengine', 'mmcv', 'mmdet', 'mmsegmentation'], []),
        (['onedl-mmengine', 'mmcv-lite', 'mmengine'], ['onedl-mmengine and mmengine are both installed']),
        (['mmengine', 'mmcv', 'mmcv-lite'], ['mmcv and mmcv-lite are', 'pip uninstall -y mmcv mmcv-lite']),
    ],
)  # fmt: skip
def test_packages_that_overwrite_each_other_are_named(installed, named, tmp_path, monkeypatch, capsys):
    from xcit_mm.package import warn_of_mixed_packages

    for name in installed:
        folder = tmp_path / f'{name.replace("-", "_")}-1.0.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    warn_of_mixed_packages()
    said = capsys.readouterr().err
    assert bool(said) == bool(named) and all(words in said for words in named)


def test_the_wheel_holds_what_users_need_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    checkout = lambda *patterns: {  # noqa: E731
        str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern) if '__pycache__' not in str(p)
    }
    mim = {name[len('xcit_mm/.mim/') :] for name in names if name.startswith('xcit_mm/.mim/')}
    configs = checkout('configs/*.py', 'configs/_base_/*.py', 'configs/_base_/*/*.py', 'configs/*.yml')
    tools = checkout('tools/*.py', 'tools/*.sh') - {'tools/quickstart.py'}
    assert mim == configs | tools | {'model-index.yml', 'README.md'}
    generated = {name for name in names if name.startswith('xcit_mm/configs/')}
    assert generated == {f'xcit_mm/{name[: -len(".py")]}/config.py' for name in checkout('configs/*.py')}
    code = {f'{name}' for name in checkout('xcit_mm/**/*.py') if '.mim' not in name and 'xcit_mm/configs/' not in name}
    assert code <= names
    rest = names - generated - code - {f'xcit_mm/.mim/{name}' for name in mim}
    data = ('xcit_mm/published/data/', 'xcit_mm/py.typed')
    assert all('.dist-info/' in name or name.startswith(data) for name in rest), rest
    assert wheel.stat().st_size < 1e6


def test_everything_is_found_without_the_checkout(installed, tmp_path):
    code = f"""
import xcit_mm
from mmengine.config import Config
from mmengine.registry import MODELS
assert xcit_mm.__file__.startswith({str(installed)!r}), xcit_mm.__file__
names = xcit_mm.list_models()
assert len(names) >= 66 and all(xcit_mm.config_path(name).startswith({str(installed)!r}) for name in names)
cfg = Config.fromfile(xcit_mm.config_path('mask_rcnn_xcit_s12_8_3x_coco'))
assert cfg.model.type == 'MaskRCNN' and cfg.model.backbone.type == 'xcit_mm.XCiT'
assert xcit_mm.load_config('xcit_n12_16_in1k')['model']['head']['in_channels'] == 128
MODELS.build(dict(type='xcit_mm.XCiT', arch='n12', patch_size=16))
try:
    xcit_mm.config_path('mask_rcnn_xcit_s12_8_3x')
except FileNotFoundError as error:
    print(error)
"""
    answer = run_python(code, installed, tmp_path)
    assert answer.startswith(
        "xcit_mm has no config 'mask_rcnn_xcit_s12_8_3x'; did you mean mask_rcnn_xcit_s12_8_3x_coco"
    )


def test_the_installed_tools_start(installed, tmp_path):
    """In one process, since most of the time goes into importing PyTorch."""
    code = f"""
import contextlib, io, pathlib, runpy, sys
tools = sorted(pathlib.Path({str(installed)!r}, 'xcit_mm/.mim/tools').glob('*.py'))
for tool in tools:
    sys.argv, out = [str(tool), '--help'], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(tool), run_name='__main__')
    except SystemExit as end:
        assert not end.code, (tool, end.code)
    assert 'usage' in out.getvalue(), tool
print(len(tools))
"""
    assert int(run_python(code, installed, tmp_path)) >= 8


def test_importing_the_package_imports_nothing_else(installed, tmp_path):
    code = f"""
import sys
import xcit_mm
print(sorted({{'torch', 'mmengine', 'mmcv', 'numpy', 'yaml', *{LIBRARIES}}} & set(sys.modules)))
"""
    assert run_python(code, installed, tmp_path) == '[]'


@pytest.fixture(scope='module')
def without(tmp_path_factory):
    """Environments that lack libraries: their folder is made of links to all the other packages."""
    packages = sysconfig.get_paths()['purelib']

    def make(*absent):
        folder = tmp_path_factory.mktemp('without')
        names = {name for library in absent for name in DISTRIBUTIONS[library]}
        for entry in os.scandir(packages):
            project = entry.name.split('-')[0].split('.')[0]
            if project not in names and 'xcit_mm' not in entry.name and not entry.name.endswith('.pth'):
                os.symlink(entry.path, folder / entry.name)
        return folder

    return make


ALONE = {
    'mmdet': ('mask_rcnn_xcit_n12_8_digits', '(1, 96, 16, 24)', 'model.extract_feat(images)[0]'),
    'mmseg': ('sem_fpn_xcit_n6_8_digits', '(1, 11, 16, 24)', "model(images, mode='tensor')"),
    'mmpretrain': ('xcit_n12_8_digits', '(1, 10)', "model(images, mode='tensor')"),
}


@pytest.mark.parametrize('library', ALONE)
def test_one_library_alone_is_enough(library, without, installed, tmp_path):
    """Its models build and run where the two others do not exist."""
    others = [name for name in LIBRARIES if name != library]
    config, shape, output = ALONE[library]
    code = f"""
import importlib.util, torch, xcit_mm
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
for name in {others}:
    assert importlib.util.find_spec(name) is None, name
cfg = Config.fromfile(xcit_mm.config_path({config!r}))
init_default_scope({library!r})
model, images = MODELS.build(cfg.model).eval(), torch.randn(1, 3, 64, 96)
print(tuple(({output}).shape))
"""
    site = without(*others)
    # -S: the environment's own packages stay out of the way.
    assert run_python(code, f'{installed}{os.pathsep}{site}', tmp_path, '-S') == shape


def test_an_editable_installation_has_links(tmp_path):
    """What pip install -e does, in a copy of what matters to it."""
    for name in ('setup.py', 'README.md', 'model-index.yml', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path)
    for name in ('configs', 'requirements', 'tools'):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / 'xcit_mm').mkdir()
    shutil.copy(ROOT / 'xcit_mm/__init__.py', tmp_path / 'xcit_mm')
    site = tmp_path / 'site'
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--target', site]
    done = call([*command, '-e', tmp_path])
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (tmp_path / 'xcit_mm/.mim' / name).resolve() == tmp_path / name
    assert (tmp_path / 'xcit_mm/configs/xcit_s12_8_in1k/config.py').is_file()
