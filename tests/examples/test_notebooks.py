"""The notebooks in examples/notebooks are run from the first cell to the last."""

import os

import pytest
import torch
from backbones import official_names, randomise
from processes import ROOT

from xcit_mm.apis import create_backbone

nbformat = pytest.importorskip('nbformat', reason='pip install nbclient ipykernel')
nbclient = pytest.importorskip('nbclient', reason='pip install nbclient ipykernel')
NOTEBOOKS = ROOT / 'examples/notebooks'


def run(name, folder, monkeypatch, **parameters):
    """Execute a notebook with other values in its cell of parameters; what its cells print and show."""
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    book = nbformat.read(NOTEBOOKS / f'{name}.ipynb', as_version=4)
    (cell,) = (cell for cell in book.cells if 'parameters' in cell.metadata.get('tags', ()))
    cell.source += ''.join(f'\n{key} = {value!r}' for key, value in parameters.items())
    nbclient.NotebookClient(book, timeout=900, resources={'metadata': {'path': str(folder)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == 'code' for output in cell.outputs]
    text = ''.join(output.get('text', '') + output.get('data', {}).get('text/plain', '') for output in outputs)
    return text, sum(
        'image/png' in output.get('data', {}) or 'image/jpeg' in output.get('data', {}) for output in outputs
    )


def test_they_begin_with_the_installation_and_hold_no_outputs():
    for path in NOTEBOOKS.glob('*.ipynb'):
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        assert 'tools/quickstart.py install' in book.cells[0].source
        assert not any(cell.get('outputs') for cell in book.cells)


@pytest.mark.slow
def test_first_look(tmp_path, monkeypatch):
    backbone = randomise(create_backbone('xcit_n12_8'))
    torch.save({'model': official_names(backbone.state_dict())}, tmp_path / 'weights.pth')
    text, pictures = run('first_look', tmp_path, monkeypatch, CHECKPOINT=str(tmp_path / 'weights.pth'), SIZE=160)
    assert 'class token (1, 128)' in text and 'pyramid (1, 128, 40, ' in text and pictures == 2


@pytest.mark.slow
def test_finetune(tmp_path, monkeypatch):
    options = '--model xcit_n12_16 --size 32 --no-flip --weights none --epochs 1'
    text, pictures = run('finetune', tmp_path, monkeypatch, OPTIONS=options)
    assert 'best.pth' in text and "'predictions'" in text and pictures == 1
