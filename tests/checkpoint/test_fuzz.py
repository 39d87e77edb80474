"""Readers of files under coverage-guided fuzzing for a fixed time; needs ``pip install atheris``."""

import sys

import pytest
from processes import ROOT, call

SECONDS = 120


@pytest.mark.slow
@pytest.mark.parametrize('target', ['checkpoints', 'annotations'])
def test_nothing_is_found(target, tmp_path):
    pytest.importorskip('atheris')
    command = [sys.executable, '-W', 'ignore', ROOT / 'tests' / 'fuzz' / 'fuzz.py', target]
    done = call([*command, f'-max_total_time={SECONDS}'], limit=1800, cwd=tmp_path)
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr[-4000:]
    assert 'DONE' in done.stderr
