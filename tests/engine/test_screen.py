"""Prints and warnings of the libraries that users cannot act on are kept off the console, and no others."""

import sys
import warnings

import pytest
from processes import ROOT, call

from xcit_mm.engine.screen import without_noise


def warn(message, filename='site-packages/library.py', category='UserWarning'):
    """A warning from the code of a library."""
    exec(compile(f'import warnings; warnings.warn({message!r}, {category})', filename, 'exec'), {})


def test_noise_is_kept_by_name_and_the_rest_is_shown(capsys):
    kept = []
    stdout = sys.stdout
    with warnings.catch_warnings(record=True) as shown, without_noise(kept.append):
        warnings.simplefilter('always')
        print('Could not import OneDL. Skipping OneDL datasets.')
        print('a result')
        warn('faster_coco_eval is not installed, metrics will not be computed')
        warn('old', category='DeprecationWarning')
        warn('too many workers')
        warn('old', filename='users/own.py', category='DeprecationWarning')
    assert sys.stdout is stdout
    assert capsys.readouterr().out == 'a result\n'
    assert [str(warning.message) for warning in shown] == ['too many workers', 'old']
    assert len(kept) == 3 and all(any(word in text for text in kept) for word in ('OneDL', 'faster_coco_eval', 'old'))


def test_inferencers_are_imported_in_silence():
    pytest.importorskip('mmdet')
    code = 'from xcit_mm.apis import DetInferencer, ImageClassificationInferencer, MMSegInferencer'
    done = call([sys.executable, '-c', code], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '' and 'faster_coco_eval' not in done.stderr
