"""The server, asked as a browser would."""

import base64
import io

import cv2
import numpy as np
import pytest
from PIL import Image
from small_detectors import detector_config, write_detector

from xcit_mm.apis import Inferencer, serving

pytest.importorskip('fastapi', reason='pip install fastapi uvicorn')
testclient = pytest.importorskip('fastapi.testclient', reason='pip install httpx')


def encoded(size=(80, 100), kind='PNG'):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return Inferencer(*write_detector(detector_config('mask'), tmp_path_factory.mktemp('model')), device='cpu')


@pytest.fixture(scope='module')
def client(detector):
    return testclient.TestClient(serving.create_app(detector, 'digits', batch_size=4, most_bytes=100_000))


def test_an_image_in_and_what_is_found_out(client, detector):
    content = encoded()
    answer = client.post('/predict', params={'score_thr': 0.2}, content=content)
    expected = detector([content], score_thr=0.2)[0]
    assert answer.status_code == 200 and expected['detections']
    assert answer.json() == {key: value for key, value in expected.items() if key != 'image'}
    overlay = client.post('/predict', params={'output': 'overlay'}, content=content)
    assert overlay.headers['content-type'] == 'image/jpeg'
    assert Image.open(io.BytesIO(overlay.content)).size == (100, 80)


def test_what_waits_is_computed_together(detector):
    worker = serving.Worker(detector, batch_size=4)
    answers = [worker.submit(encoded(), 0.2, False) for _ in range(3)] + [worker.submit(b'no image', 0.2, False)]
    sizes = []
    predict = detector.task.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector.task, 'predict', lambda images: sizes.append(len(images)) or predict(images))
        worker.start()
        found = [answer.result(60) for answer in answers]
    assert sizes == [3] and found[0] == found[1] == found[2] and 'cannot be read' in found[3]['error']


def test_what_is_no_image_or_too_large_is_refused(client, monkeypatch):
    refused = client.post('/predict', content=b'no image')
    assert refused.status_code == 422 and 'cannot be read' in refused.json()['detail']
    refused = client.post('/predict', params={'output': 'overlay'}, content=b'')
    assert refused.status_code == 422 and 'empty' in refused.json()['detail']
    refused = client.post('/predict', content=bytes(200_000))
    assert refused.status_code == 413 and 'larger than 0.1 MB' in refused.json()['detail']
    monkeypatch.setattr(serving, 'MOST_PIXELS', 1000)
    refused = client.post('/predict', content=encoded())
    assert refused.status_code == 413 and '100x80 pixels' in refused.json()['detail']
    assert client.post('/predict', params={'score_thr': 2}, content=encoded()).status_code == 422


def test_a_full_queue_says_so(detector):
    app = serving.create_app(detector, 'digits')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.Worker, 'submit', full)
        refused = testclient.TestClient(app).post('/predict', content=encoded())
    assert refused.status_code == 503 and refused.headers['retry-after'] == '1'


def full(*_):
    raise serving.queue.Full


def test_health_and_page(client):
    health = client.get('/health').json()
    assert health['status'] == 'ok' and health['task'] == 'detector' and len(health['classes']) == 10
    page = client.get('/')
    assert page.headers['content-type'].startswith('text/html') and 'predict?output' in page.text


def test_label_maps_are_pngs(small_models):
    inferencer = Inferencer(*small_models['semantic_fpn'], device='cpu')
    client = testclient.TestClient(serving.create_app(inferencer, 'maps'))
    content = encoded((64, 96))
    found = client.post('/predict', content=content).json()
    labels = cv2.imdecode(np.frombuffer(base64.b64decode(found['map']), np.uint8), cv2.IMREAD_UNCHANGED)
    assert (labels == inferencer([content])[0]['map']).all() and labels.shape == (64, 96)
