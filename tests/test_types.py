"""The type annotations hold: mypy, with the settings of ``pyproject.toml``, finds nothing, and the wheel says so."""

import sys

import pytest
import torch
from processes import ROOT, call


def test_mypy_finds_nothing(tmp_path):
    pytest.importorskip('mypy', reason='pip install mypy')
    if torch.__version__ < torch.torch_version.TorchVersion('2.6'):
        pytest.skip('the annotations are those for the pinned PyTorch, NumPy and OpenCV')
    done = call([sys.executable, '-m', 'mypy', '--cache-dir', tmp_path], cwd=ROOT)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def test_users_type_checkers_are_told_of_the_annotations(installed):
    assert (installed / 'xcit_mm' / 'py.typed').is_file()
