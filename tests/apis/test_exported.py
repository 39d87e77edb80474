"""Exported files in the place of a config and a checkpoint: the predictions are those of PyTorch."""

import json
import sys
from functools import partial

import cv2
import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from processes import ROOT
from pycocotools import mask as coco_mask
from sklearn.datasets import load_sample_image
from small_detectors import detector_config, write_detector
from sources import clip, serve

from xcit_mm.apis import Inferencer, export
from xcit_mm.apis.exported import open_exported
from xcit_mm.errors import UsageError

pytest.importorskip('onnxruntime', reason='pip install onnx onnxruntime')
KINDS = ('classifier', 'semantic_fpn', 'mask', 'faster')


@pytest.fixture(scope='module')
def models(small_models, tmp_path_factory):
    """For each kind a config and a checkpoint."""
    found = {kind: small_models[kind] for kind in ('classifier', 'semantic_fpn')}
    for kind in ('mask', 'faster'):
        found[kind] = write_detector(detector_config(kind), tmp_path_factory.mktemp(kind))
    return found


@pytest.fixture(scope='module')
def file_of(models, tmp_path_factory):
    """The exported file of a kind, written once: ``file_of(kind, from_pixels)``."""
    folder = tmp_path_factory.mktemp('files')

    def path(kind, from_pixels=True):
        target = folder / f'{kind}_{from_pixels}.onnx'
        if not target.exists():
            export.export_model(*models[kind], str(target), size=(96, 96), from_pixels=from_pixels)
        return target

    return path


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder of two photographs, one of them upright, and a file that is no image."""
    folder = tmp_path_factory.mktemp('photos')
    for name, box in (('china.jpg', (0, 0, 300, 200)), ('flower.jpg', (100, 50, 260, 290))):
        Image.fromarray(load_sample_image(name)).crop(box).save(folder / name, quality=95)
    (folder / 'broken.jpg').write_bytes(b'no image')
    return folder


def overlap(one, other):
    boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (one['box'], other['box'])]
    return coco_mask.iou([boxes[0]], [boxes[1]], [0])[0, 0]


def assert_same(ours, theirs):
    """Equal results but for rounding."""
    assert len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs):
        assert {key: mine.get(key) for key in ('image', 'height', 'width', 'error')} == {
            key: yours.get(key) for key in ('image', 'height', 'width', 'error')
        }
        if 'predictions' in yours:
            assert [p['class'] for p in mine['predictions']] == [p['class'] for p in yours['predictions']]
            scores = ([p['score'] for p in result['predictions']] for result in (mine, yours))
            np.testing.assert_allclose(*scores, atol=1e-4)
        if 'map' in yours:
            assert mine['map'].shape == yours['map'].shape and (mine['map'] != yours['map']).mean() <= 1e-4
        if 'detections' in yours:
            assert len(yours['detections']) > 5
            assert abs(len(mine['detections']) - len(yours['detections'])) <= 1  # one may lie at the threshold
            left = list(mine['detections'])
            for one in yours['detections']:
                near = [o for o in left if o['class'] == one['class'] and abs(o['score'] - one['score']) < 1e-3]
                best = max(near, key=partial(overlap, one), default=None)
                if best is None and abs(one['score'] - 0.3) < 1e-3:
                    continue
                assert best is not None, one
                np.testing.assert_allclose(best['box'], one['box'], atol=0.05)
                if 'mask' in one:
                    first, second = (coco_mask.decode(d['mask']).astype(bool) for d in (best, one))
                    assert first.shape == second.shape
                    assert (first ^ second).sum() <= 1 + 1e-3 * (first | second).sum()
                left.remove(best)


@pytest.mark.parametrize('kind', KINDS)
def test_pixels_give_the_predictions_of_pytorch(kind, models, file_of, photos):
    expected = Inferencer(*models[kind], device='cpu')(photos)
    assert sorted('error' in result for result in expected) == [False, False, True]
    assert_same(Inferencer(file_of(kind))(photos), expected)


@pytest.mark.parametrize('kind', ['classifier', 'semantic_fpn'])
def test_normalised_images_give_the_predictions_of_pytorch(kind, models, file_of, photos):
    """The pipeline runs around the file."""
    expected = Inferencer(*models[kind], device='cpu')(photos)
    assert_same(Inferencer(file_of(kind, from_pixels=False))(photos, batch_size=2), expected)


def test_masks_of_normalised_images_are_those_of_the_resized_image(models, file_of, photos):
    """The file pastes them into the model's input: PyTorch finds the same in an image that is resized before."""
    pixels = cv2.imread(str(photos / 'china.jpg'))
    height, width = pixels.shape[:2]
    small = mmcv.imrescale(pixels, (160, 160))
    (expected,) = Inferencer(*models['mask'], device='cpu')([small])
    assert (expected['height'], expected['width']) == small.shape[:2] == (107, 160)
    expected.update(height=height, width=width)
    for one in expected['detections']:
        one['box'] = (np.array(one['box']) * ([width / 160, height / 107] * 2)).tolist()
        mask = cv2.resize(coco_mask.decode(one['mask']).astype(np.float32), (width, height)) >= 0.5
        one['mask'] = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert_same(Inferencer(file_of('mask', from_pixels=False))([pixels]), [expected])


@pytest.mark.parametrize('kind', ['classifier', 'mask'])
def test_openvinos_own_format_by_one_command(kind, models, photos, tmp_path, run_tool):
    pytest.importorskip('openvino', reason='pip install openvino')
    options = ['--format', 'openvino', '--from-pixels', '--size', 96, 96]
    run_tool(ROOT / 'tools/export.py', *models[kind], tmp_path / 'model.xml', *options)
    assert {path.name for path in tmp_path.iterdir()} == {'model.xml', 'model.bin'}
    assert open_exported(tmp_path / 'model.xml')[1].deployed.device == 'CPU'
    expected = Inferencer(*models[kind], device='cpu')(photos)
    assert_same(Inferencer(str(tmp_path / 'model.xml'))(photos), expected)


@pytest.mark.parametrize('kind', ['semantic_fpn', pytest.param('mask', marks=pytest.mark.slow)])
def test_tiles(kind, models, file_of, photos):
    expected = Inferencer(*models[kind], device='cpu', tiles=160)(photos / 'china.jpg')
    assert_same(Inferencer(file_of(kind), tiles=160)(photos / 'china.jpg', batch_size=2), expected)


@pytest.mark.slow
def test_a_sliding_window_is_that_of_the_config(models, file_of, photos, tmp_path):
    cfg = Config.fromfile(models['semantic_fpn'][0])
    cfg.model.test_cfg = dict(mode='slide', crop_size=(96, 96), stride=(64, 64))
    cfg.dump(tmp_path / 'slide.py')
    model = str(tmp_path / 'slide.py'), models['semantic_fpn'][1]
    export.export_model(*model, str(tmp_path / 'slide.onnx'), size=(96, 96))
    expected = Inferencer(*model, device='cpu')(photos)
    assert_same(Inferencer(tmp_path / 'slide.onnx')(photos), expected)
    whole = Inferencer(*models['semantic_fpn'], device='cpu')(photos)
    assert any('map' in one and (one['map'] != other['map']).any() for one, other in zip(whole, expected))


def test_every_kind_of_source_and_no_pytorch_model(file_of, photos, tmp_path, monkeypatch):
    """An array, a PIL image, bytes and a stream give one result; nothing of the backbone is built."""
    from xcit_mm.models import XCiT

    monkeypatch.setattr(XCiT, '__init__', lambda *_, **__: pytest.fail('a backbone was built'))
    inferencer = Inferencer(file_of('classifier'), device='cpu')
    path = tmp_path / 'photo.png'
    Image.open(photos / 'china.jpg').save(path)
    pixels = np.asarray(Image.open(path))
    sources = [path, Image.open(path), path.read_bytes(), pixels[..., ::-1]]
    found = [*inferencer(sources, batch_size=3), *inferencer.stream(path)]
    assert len(found) == 5
    assert all(result['predictions'] == found[0]['predictions'] for result in found)
    assert inferencer([pixels], channel_order='RGB')[0]['predictions'] == found[0]['predictions']
    assert inferencer.picture(path).shape == pixels.shape


@pytest.mark.parametrize('from_pixels', [True, False])
def test_videos_addresses_globs_and_cameras(from_pixels, models, file_of, photos, tmp_path, monkeypatch):
    """Each gives what PyTorch gives."""
    file, pytorch = Inferencer(file_of('classifier', from_pixels)), Inferencer(*models['classifier'], device='cpu')
    video = clip(tmp_path / 'clip.mp4', frames=3)
    moving = [Image.new('RGB', (40, 30), colour) for colour in ('red', 'blue')]
    moving[0].save(tmp_path / 'moving.gif', save_all=True, append_images=moving[1:])
    with serve(photos) as address:
        given = [video, tmp_path / 'moving.gif', str(photos / '*r.jpg'), f'{address}/china.jpg', f'{address}/no.jpg']
        found = file(given, out_dir=tmp_path / 'out', batch_size=2)
        assert_same(found, pytorch(given))
        assert [result.get('frame') for result in found] == [0, 1, 2, 0, 1, None, None, None]
        assert len({str(result.get('predictions')) for result in found}) == 8
        assert 'HTTP Error 404' in found[-1]['error']
    assert {path.name for path in (tmp_path / 'out/overlays').rglob('*.mp4')} == {'clip.mp4', 'moving.mp4'}
    assert list(file.stream(video)) == found[:3]
    monkeypatch.chdir(tmp_path)
    assert 'camera 77 gives no pictures' in file(77)[0]['error']
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', lambda source: capture(video) if source == 0 else capture(source))
    camera = file('0')
    assert [result['image'] for result in camera] == ['camera 0'] * 3
    assert [result['predictions'] for result in camera] == [result['predictions'] for result in found[:3]]


def test_the_command_writes_what_it_writes_of_a_checkpoint(run_tool, models, file_of, photos, tmp_path):
    tool = ROOT / 'tools/infer.py'
    names = {}
    for name, model in (('file', [file_of('mask')]), ('pytorch', models['mask'])):
        with pytest.raises(SystemExit, match='1'):  # of the broken image
            run_tool(tool, *model, '--out-dir', tmp_path / name, photos)
        names[name] = sorted(str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob('*') if p.is_file())
    assert names['file'] == names['pytorch'] and 'overlays/china.jpg' in names['file']
    written = [json.loads((tmp_path / name / 'results.json').read_text()) for name in names]
    assert_same(*written)


def test_what_does_not_fit_is_refused(models, file_of, photos, tmp_path, run_tool, capsys):
    import onnx

    with pytest.raises(UsageError, match='there is no file'):
        Inferencer(tmp_path / 'missing.onnx')
    with pytest.raises(UsageError, match='takes no others'):
        Inferencer(file_of('classifier'), models['classifier'][1])
    with pytest.raises(UsageError, match='cannot use the device|OpenVINO'):
        Inferencer(file_of('classifier'), device='xpu')
    with pytest.raises(UsageError, match='this model is a classifier'):
        Inferencer(file_of('classifier'), tiles=64)
    export.export_model(*models['classifier'], str(tmp_path / 'features.onnx'), part='backbone', size=(64, 64))
    with pytest.raises(UsageError, match='its features are no predictions'):
        Inferencer(tmp_path / 'features.onnx')
    graph = onnx.load(file_of('classifier'))
    kept = {prop.key: prop.value for prop in graph.metadata_props if prop.key != 'config'}
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, kept)
    onnx.save(graph, tmp_path / 'old.onnx')
    with pytest.raises(UsageError, match='exported by an older version'):
        Inferencer(tmp_path / 'old.onnx')
    with pytest.raises(SystemExit):
        run_tool(ROOT / 'tools/infer.py', models['classifier'][0], photos)
    assert 'needs a checkpoint before the images' in capsys.readouterr().err
    assert sys.argv[1] == models['classifier'][0]
