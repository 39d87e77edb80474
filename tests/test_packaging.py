"""The distributions: what an index gets, and what a bare environment does with it."""

import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser

import pytest
from processes import ROOT

import xcit_mm


def run(*command, cwd):
    """Run a command; its output, or its error as the failure."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
    """The sdist of this checkout, and the wheel that is built from it."""
    pytest.importorskip('build', reason='pip install build')
    folder = tmp_path_factory.mktemp('packaging')
    source, out = folder / 'source', folder / 'dist'
    source.mkdir()
    for name in ('configs', 'requirements', 'tools', 'xcit_mm'):
        made = ('__pycache__', '.mim', *(['configs'] if name == 'xcit_mm' else []))  # by an editable installation
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*made))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != '.git':
            shutil.copy2(path, source)
    run(sys.executable, '-m', 'build', '--no-isolation', '-o', out, source, cwd=folder)
    return next(out.glob('*.tar.gz')), next(out.glob('*.whl'))


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        return Parser().parsestr(archive.read(name).decode())


@pytest.mark.slow
def test_an_index_takes_both_distributions(distributions):
    pytest.importorskip('twine', reason='pip install twine')
    sdist, wheel = distributions
    assert 'PASSED' in run(sys.executable, '-m', 'twine', 'check', '--strict', sdist, wheel, cwd=sdist.parent)
    with tarfile.open(sdist) as archive:
        names = {name.split('/', 1)[1] for name in archive.getnames() if '/' in name}
    assert {'LICENSE', 'README.md', 'model-index.yml', 'configs/xcit_s12_8_in1k.py', 'tools/train.py'} <= names


@pytest.mark.slow
def test_neither_family_is_forced_on_users_of_the_other(distributions):
    needed = metadata(distributions[1]).get_all('Requires-Dist')
    always = [line for line in needed if 'extra ==' not in line]
    assert sorted(re.match(r'[\w-]+', line)[0] for line in always) == ['numpy', 'safetensors', 'torch']
    for family in ('onedl', 'openmmlab'):
        lines = (ROOT / f'requirements/{family}.txt').read_text().splitlines()
        pins = sorted(filter(None, (line.split('#')[0].strip() for line in lines)))
        found = [line.split(';') for line in needed if f'extra == "{family}"' in line]
        assert sorted(requirement.strip() for requirement, _ in found) == pins


@pytest.mark.slow
def test_the_readme_of_an_index_has_no_relative_link(distributions):
    described = metadata(distributions[1]).get_payload()
    targets = re.findall(r'\]\(([^)\s]+)', described)
    assert targets and all(re.match(r'https?://|#', target) for target in targets)
    assert metadata(distributions[1])['Version'] == xcit_mm.__version__


@pytest.mark.slow
def test_a_bare_environment_imports_the_wheel(distributions, tmp_path):
    """Without PyTorch and the libraries: names, addresses and paths need neither."""
    venv.create(tmp_path / 'bare', with_pip=True)
    python = tmp_path / 'bare/bin/python'
    run(python, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', distributions[1], cwd=tmp_path)
    code = (
        'import xcit_mm, pathlib; '
        'print(xcit_mm.__version__, len(xcit_mm.list_models()) > 100, '
        'pathlib.Path(xcit_mm.config_path("mask_rcnn_xcit_s12_8_3x_coco")).is_file(), '
        'xcit_mm.model_info("xcit_s12_8_in1k").licence)'
    )
    answer = run(python, '-I', '-c', code, cwd=tmp_path)
    assert answer.split() == [xcit_mm.__version__, 'True', 'True', xcit_mm.model_info('xcit_s12_8_in1k').licence]
    assert 'finetune' in run(tmp_path / 'bare/bin/xcit-mm', '--help', cwd=tmp_path)
