"""The page: what it shows of an image, and, where Gradio, Playwright and Chromium are installed, in a browser."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request

import cv2
import numpy as np
import pytest
import torch
from backbones import build, official_names, randomise
from processes import ROOT, free_port, run

from xcit_mm.apis.page import attention_pictures, predictor
from xcit_mm.datasets.loading import BadImage
from xcit_mm.errors import UsageError
from xcit_mm.visualization import load_backbone


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    backbone = randomise(build(arch=dict(embed_dims=32, depth=2, num_heads=4), patch_size=8))
    path = tmp_path_factory.mktemp('page') / 'backbone.pth'
    torch.save(official_names(backbone.state_dict()), path)
    return path


def test_an_image_gives_every_head(checkpoint):
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    mean, shown = attention_pictures(load_backbone(str(checkpoint)), image, 120, 0.5)
    assert mean.shape == (120, 180, 3)
    captions = [caption for _, caption in shown]
    assert captions == ['patches with 50% of the attention', 'head 1', 'head 2', 'head 3', 'head 4', 'contact sheet']


def test_a_file_is_shown_as_it_is(checkpoint, tmp_path):
    """16 bits in their own brightness; a picture that is cut off with the reason."""
    backbone = load_backbone(str(checkpoint))
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'deep.png'), image.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / 'cut.jpg'), image)
    content = (tmp_path / 'cut.jpg').read_bytes()
    (tmp_path / 'cut.jpg').write_bytes(content[: len(content) // 2])
    of_file, _ = attention_pictures(backbone, str(tmp_path / 'deep.png'), 60, 0.5)
    of_array, _ = attention_pictures(backbone, np.ascontiguousarray(image[..., ::-1]), 60, 0.5)
    assert np.array_equal(of_file, of_array)
    with pytest.raises(BadImage, match='cut off'):
        attention_pictures(backbone, str(tmp_path / 'cut.jpg'), 60, 0.5)


def test_what_a_model_finds_is_drawn(small_models, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
    predict = predictor(*small_models['semantic_fpn'], 'cpu')
    assert np.array_equal(predict(image), predict(str(tmp_path / 'a.png'))) and predict(image).shape == image.shape
    (tmp_path / 'b.png').write_text('no image')
    with pytest.raises(UsageError, match='cannot be read'):
        predict(str(tmp_path / 'b.png'))


def test_a_page_of_nothing_is_refused(tmp_path):
    assert 'give --checkpoint for attention' in run('attention_page.py', cwd=tmp_path, ok=False)


def test_without_gradio_the_message_says_what_to_install(checkpoint, tmp_path):
    try:
        import gradio  # noqa: F401
    except ImportError:
        output = run('attention_page.py', '--checkpoint', checkpoint, cwd=tmp_path, ok=False)
        assert 'pip install "xcit_mm[page]"' in output
    else:
        pytest.skip('Gradio is installed')


@pytest.fixture
def served(checkpoint, tmp_path):
    pytest.importorskip('gradio')
    port = free_port()
    command = [sys.executable, str(ROOT / 'tools/attention_page.py'), '--checkpoint', str(checkpoint), '--size', '96']
    env = dict(os.environ, GRADIO_ANALYTICS_ENABLED='False')
    log = tmp_path / 'page.log'
    with open(log, 'w') as file:
        server = subprocess.Popen([*command, '--port', str(port)], stdout=file, stderr=subprocess.STDOUT, env=env)
    address = f'http://127.0.0.1:{port}'
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=2)
            break
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    yield address
    server.terminate()
    server.wait()


def test_in_a_browser(served, tmp_path):
    sync_api = pytest.importorskip('playwright.sync_api')
    browser_path = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not browser_path:
        pytest.skip('Chromium is not installed')
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'drop.png'), image)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=['--no-sandbox'])
        page = browser.new_page()
        page.goto(served)
        page.locator('input[type=file]').first.set_input_files(str(tmp_path / 'drop.png'))
        page.get_by_text('head 4').first.wait_for(timeout=120_000)
        assert page.get_by_text('contact sheet').count() and not page.get_by_text('Error').count()
        browser.close()
