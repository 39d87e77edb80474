"""Inference tile by tile."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from processes import ROOT

from xcit_mm.apis import Inferencer
from xcit_mm.errors import UsageError

TILE = 64


@pytest.fixture(scope='module')
def picture():
    """As large as two by three tiles."""
    return np.random.default_rng(0).integers(0, 255, (TILE * 2, TILE * 3, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def untrained(small_models, tmp_path_factory):
    """A detector whose boxes are those that training starts from: all over the image."""
    cfg = Config.fromfile(small_models['detector'][0])
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        state = MODELS.build(cfg.model).state_dict()
    path = tmp_path_factory.mktemp('untrained') / 'detector.pth'
    torch.save({'state_dict': state, 'meta': {}}, path)
    return small_models['detector'][0], str(path)


@pytest.mark.parametrize('kind', ['semantic_fpn', 'detector'])
def test_tiles_without_overlap_are_images(small_models, untrained, picture, kind):
    """What is found in a tile is what is found in an image of it."""
    model = untrained if kind == 'detector' else small_models[kind]
    inferencer = Inferencer(*model, tiles=TILE, overlap=0.0)
    alone = Inferencer(*model)
    (whole,) = inferencer(picture, score_thr=0.0)
    assert (whole['height'], whole['width']) == picture.shape[:2]
    parts = [(y, x) for y in (0, TILE) for x in (0, TILE, 2 * TILE)]
    singles = [alone(np.ascontiguousarray(picture[y : y + TILE, x : x + TILE]), score_thr=0.0)[0] for y, x in parts]
    for (y, x), single in zip(parts, singles):
        if kind == 'semantic_fpn':
            assert (whole['map'][y : y + TILE, x : x + TILE] == single['map']).all()
            continue
        theirs = {key(one, x, y): one['score'] for one in single['detections']}
        ours = {key(one): one['score'] for one in whole['detections'] if key(one) in theirs}
        assert theirs and ours == pytest.approx({one: theirs[one] for one in ours}, abs=1e-5) and ours
        assert all(one['mask']['size'] == list(picture.shape[:2]) for one in whole['detections'])


def key(detection, x=0, y=0):
    """Class and box, in pixels of the whole."""
    return (detection['label'], *np.round(np.add(detection['box'], [x, y, x, y]), 2))


def test_a_batch_of_tiles_gives_the_same(small_models, picture):
    inferencer = Inferencer(*small_models['semantic_fpn'], tiles=TILE, overlap=0.5)
    one, four = (inferencer(picture, batch_size=size)[0]['map'] for size in (1, 4))
    assert (one == four).mean() > 0.999


def test_a_failing_tile_is_told(small_models, picture, monkeypatch):
    inferencer = Inferencer(*small_models['semantic_fpn'], tiles=TILE)
    monkeypatch.setattr(type(inferencer.task.model), 'test_step', lambda *_: [][0])
    assert 'cannot be predicted: IndexError' in inferencer([picture, picture])[0]['error']


def test_wrong_tiles(small_models):
    with pytest.raises(UsageError, match='must be above 0 pixels, got -1'):
        Inferencer(*small_models['detector'], tiles=-1)
    with pytest.raises(UsageError, match='tiles are for detectors and segmentors'):
        Inferencer(*small_models['classifier'], tiles=64)


def test_the_tool_looks_by_tiles(small_models, picture, run_tool, tmp_path):
    Image.fromarray(picture).save(tmp_path / 'a.png')
    config, checkpoint = small_models['detector']
    for options in ((), ('--no-overlays',)):
        run_tool(
            ROOT / 'tools/infer.py', config, checkpoint, tmp_path / 'a.png', '--out-dir', tmp_path / 'out', *options,
            '--tiles', TILE, '--overlap', '0.5', '--score-thr', '0.0', '--batch-size', '4',
        )  # fmt: skip
    (result,) = json.loads((tmp_path / 'out/results.json').read_text())
    assert (result['height'], result['width']) == picture.shape[:2] and result['detections']


@pytest.mark.parametrize('kind', ['semantic_fpn', pytest.param('detector', marks=pytest.mark.slow)])
def test_the_tool_tests_by_tiles(small_models, small_digits, run_tool, tmp_path, kind):
    """One tile is the whole image: the numbers are those of the usual test. Small tiles give others."""
    config, checkpoint = small_models[kind]
    cfg = Config.fromfile(config)
    cfg.test_dataloader.update(num_workers=2 if kind == 'detector' else 0, persistent_workers=False, batch_size=2)
    cfg.dump(tmp_path / 'config.py')
    root = small_digits / ('coco' if kind == 'detector' else 'ade')
    found = {}
    for name, options in (('whole', ()), ('one', ('--tiles', 64)), ('several', ('--tiles', 40, '--overlap', 0.5))):
        torch.manual_seed(0)
        run_tool(
            ROOT / 'tools/test.py', tmp_path / 'config.py', checkpoint, '--data-root', root,
            '--out-dir', tmp_path / name, '--show-dir', tmp_path / name / 'pictures', *options,
        )  # fmt: skip
        (numbers,) = (tmp_path / name).glob('*/*.json')
        found[name] = json.loads(numbers.read_text())
        assert len(list((tmp_path / name / 'pictures').rglob('*.jpg'))) == 4
    if kind == 'semantic_fpn':
        assert found['whole']['mIoU'] == pytest.approx(found['one']['mIoU'], abs=0.01) != found['several']['mIoU']
    else:
        assert found['whole'].keys() == found['one'].keys() == found['several'].keys()
