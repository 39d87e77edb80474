"""The examples of deployment, as their readers run them."""

import os
import re
import runpy

import pytest
from PIL import Image
from processes import ROOT
from small_detectors import detector_config, write_detector

from xcit_mm.apis import export_model

DEPLOY = ROOT / 'examples/deploy'
pytest.importorskip('onnxruntime', reason='pip install onnx onnxruntime')


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return write_detector(detector_config('mask'), tmp_path_factory.mktemp('model'))


def test_the_script_needs_nothing_of_this_project(detector, small_digits, tmp_path, monkeypatch, capsys):
    code = (DEPLOY / 'detect.py').read_text()
    assert set(re.findall(r'^(?:import|from) (\w+)', code, re.M)) == {'json', 'sys', 'numpy', 'onnxruntime', 'PIL'}
    export_model(*detector, str(tmp_path / 'model.onnx'), size=(96, 96), from_pixels=True)
    photo = next((small_digits / 'coco/val2017').iterdir())
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(DEPLOY / 'detect.py'))['main']
    main('model.onnx', photo, threshold=0.1)
    lines = capsys.readouterr().out.strip().splitlines()
    assert any(re.match(r'(zero|one|two|three|four|five|six|seven|eight|nine) 0\.\d\d \[', line) for line in lines)
    assert Image.open('detections.jpg').size == Image.open(photo).size


def test_the_page_names_the_inputs_and_outputs_of_the_file():
    page = (DEPLOY / 'index.html').read_text()
    assert "'uint8', pixels, [height, width, 3]" in page and '{boxes, scores, labels, masks}' in page


@pytest.mark.slow
def test_the_notebook(detector, small_digits, tmp_path, monkeypatch):
    nbformat = pytest.importorskip('nbformat', reason='pip install nbclient ipykernel')
    nbclient = pytest.importorskip('nbclient', reason='pip install nbclient ipykernel')
    pytest.importorskip('openvino', reason='pip install openvino')
    pytest.importorskip('fastapi', reason='pip install fastapi httpx')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/digits').symlink_to(small_digits)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    book = nbformat.read(ROOT / 'examples/notebooks/deploy.ipynb', as_version=4)
    assert 'tools/quickstart.py install' in book.cells[0].source
    (cell,) = (cell for cell in book.cells if 'parameters' in cell.metadata.get('tags', ()))
    images = str(tmp_path / 'data/digits/coco/val2017')
    cell.source = f'CONFIG, CHECKPOINT = {detector!r}\nIMAGES = {images!r}\nSIZE = (64, 64)'
    nbclient.NotebookClient(book, timeout=900, resources={'metadata': {'path': str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == 'code' for output in cell.outputs]
    text = ''.join(output.get('text', '') + output.get('data', {}).get('text/plain', '') for output in outputs)
    assert 'Deviation(shape=' in text and text.count(' ms [') == 5 and '(200, ' in text
    assert any('image/png' in output.get('data', {}) for output in outputs)
