"""``python -m xcit_mm.mmcv_ops``, on a copy of mmcv's Python files."""

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from processes import ROOT

from xcit_mm.mmcv_ops import installation

SPEC = importlib.util.find_spec('mmcv')
if SPEC is None or not (Path(SPEC.origin).parent / 'ops').is_dir():
    pytest.skip('mmcv is not installed', allow_module_level=True)


@pytest.fixture
def mmcv(tmp_path, monkeypatch):
    """The folder of an mmcv without operators, which this process and those that it starts find first."""
    folder = tmp_path / 'mmcv'
    shutil.copytree(Path(SPEC.origin).parent, folder, ignore=shutil.ignore_patterns('_ext*', 'csrc', '__pycache__'))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{ROOT}')
    return folder


def files(folder):
    return sorted(path.name for path in folder.glob('*_ext*'))


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=os.sep, **options)


def test_install_and_uninstall(mmcv):
    """From a half-written file to operators in a process that imports nothing first, and back."""
    assert 'not there' in installation.status() and 'none: `python -m' in installation.status()
    (mmcv / '_ext.py').write_text(installation.TEXT[:200])  # as a full disk leaves it
    assert 'cut off' in installation.status()
    assert 'wrote' in installation.install() and (mmcv / '_ext.py').read_text() == installation.TEXT
    status = installation.status()
    assert 'torchvision deform_conv' in status and 'none        assign_score_withk_backward' in status
    code = 'import torch, mmcv; from mmcv.ops import batched_nms; print(mmcv.__file__, mmcv.ops.get_compiler_version())'
    result = python('-c', code)
    assert str(mmcv) in result.stdout and 'torchvision' in result.stdout, result.stderr
    result = python('-c', "import sys; sys.modules['xcit_mm'] = None; import mmcv.ops")
    assert "ImportError: mmcv's operators are those of xcit_mm here, and there is no xcit_mm" in result.stderr
    assert 'removed' in installation.uninstall() and files(mmcv) == []
    assert 'nothing to do' in installation.uninstall()


def test_compiled_operators_that_do_not_load(mmcv):
    """Named, set aside when asked, put back at the end."""
    compiled = mmcv / f'_ext{EXTENSION_SUFFIXES[0]}'
    compiled.write_bytes(b'\x7fELF of another PyTorch')
    (mmcv / '_ext.cpython-30-of-another-python.so').write_bytes(b'')  # which no Python here would load
    assert 'install --replace` uses' in installation.status()
    with pytest.raises(installation.InstallationError, match='do not load.*ImportError: .*install --replace'):
        installation.install()
    assert len(files(mmcv)) == 2
    installation.install(replace=True)
    assert not compiled.exists() and (mmcv / '_ext.py').exists()
    assert f'put back {compiled.name}' in installation.uninstall()
    assert compiled.read_bytes().endswith(b'PyTorch') and len(files(mmcv)) == 2


def test_compiled_operators_that_load_are_left_alone():
    target = installation.find()
    if not target.compiled:
        pytest.skip('needs an mmcv that was compiled')
    assert 'loads: all' in installation.status()
    with pytest.raises(installation.InstallationError, match='compiled operators that work'):
        installation.install()
    assert target.state == 'absent'


def test_file_of_somebody_else_is_left_alone(mmcv):
    (mmcv / '_ext.py').write_text('nms = None\n')
    for command in (installation.install, installation.uninstall):
        with pytest.raises(installation.InstallationError, match='not written by xcit_mm'):
            command()
    assert (mmcv / '_ext.py').read_text() == 'nms = None\n' and files(mmcv) == ['_ext.py']


def test_folder_that_cannot_be_written_to(mmcv, monkeypatch):
    """Root may write anywhere, so the refusal is the system call's."""

    def refuse(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(installation.InstallationError, match='cannot be written to: Permission denied'):
        installation.install()
    assert files(mmcv) == []


def test_operators_that_do_not_work_are_taken_out_again(mmcv):
    (mmcv / 'ops/nms.py').write_text('raise RuntimeError("torchvision of another PyTorch")')
    with pytest.raises(installation.InstallationError, match='does not work: RuntimeError: torchvision of another'):
        installation.install()
    assert files(mmcv) == []


def test_python_without_mmcv():
    """One line, no traceback, and the name of the Python; the second has only what an uninstalled mmcv left."""
    result = python('-S', '-m', 'xcit_mm.mmcv_ops', 'install', env={'PYTHONPATH': str(ROOT)})
    assert result.returncode == 1 and result.stderr.count('\n') == 1
    assert f'error: {sys.executable} has no mmcv. Install one' in result.stderr


def test_python_with_remains_of_mmcv(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    result = python('-S', '-m', 'xcit_mm.mmcv_ops', 'status', env={'PYTHONPATH': path})
    assert result.returncode == 1 and f'only remains of one, in {tmp_path}' in result.stderr
