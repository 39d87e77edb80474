"""Use without configs: inference on images, inferencers and backbones by name."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, official_names, randomise
from PIL import Image

import xcit_mm
from xcit_mm.apis import Inferencer, create_backbone
from xcit_mm.apis.inference import find_images
from xcit_mm.checkpoint import CheckpointError
from xcit_mm.errors import UsageError


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Three images in a folder with a sub-folder, two of the same name, and one that is none."""
    folder = tmp_path_factory.mktemp('images')
    (folder / 'more').mkdir()
    generator = np.random.default_rng(0)
    for name, size in (('a.png', (70, 90)), ('a.jpg', (64, 64)), ('more/b.jpg', (80, 48))):
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / 'broken.jpg').write_bytes(b'no image')
    return folder


def written(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob('*') if path.is_file()}


OVERLAYS = {'overlays/a.png.jpg', 'overlays/a.jpg.jpg', 'overlays/more/b.jpg'}


def test_a_detector_looks_at_a_folder(small_models, images, tmp_path):
    results = Inferencer(*small_models['detector'])(images, tmp_path / 'out', score_thr=0.0)
    assert written(tmp_path / 'out') == OVERLAYS | {'results.json', 'summary.json', 'overview.jpg'}
    assert json.loads((tmp_path / 'out/results.json').read_text()) == results
    broken = [result for result in results if 'error' in result]
    assert [Path(result['image']).name for result in broken] == ['broken.jpg']
    first = next(result for result in results if result['image'].endswith('a.png'))
    assert (first['height'], first['width']) == (70, 90)
    detection = first['detections'][0]
    assert detection['class'] in ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
    assert len(detection['box']) == 4 and detection['mask']['size'] == [70, 90]
    summary = json.loads((tmp_path / 'out/summary.json').read_text())
    assert summary['images'] == 4 and len(summary['unreadable']) == 1
    assert summary['objects'] == sum(len(result.get('detections', ())) for result in results)
    assert Inferencer(*small_models['detector'])(str(images / 'a.png'), score_thr=1.1)[0]['detections'] == []


def test_a_segmentor_looks_at_a_glob(small_models, images, tmp_path):
    inferencer = Inferencer(*small_models['semantic_fpn'])
    results = inferencer(f'{images}/**/*.[jp][pn]g', tmp_path, batch_size=2)
    good = [result for result in results if 'error' not in result]
    assert len(good) == 3 and written(tmp_path) >= OVERLAYS
    for result in good:
        labels = np.asarray(Image.open(tmp_path / result['map']))
        assert labels.shape == (result['height'], result['width'])
        assert sum(part['fraction'] for part in result['classes']) == pytest.approx(1)
        best = result['classes'][0]
        assert best['fraction'] == pytest.approx((labels == best['label']).mean())


def test_a_classifier_looks_at_arrays(small_models):
    pixels = np.random.default_rng(0).integers(0, 255, (80, 70, 3), dtype=np.uint8)
    first, second = Inferencer(*small_models['classifier'])([pixels, pixels], batch_size=2)
    assert first['predictions'] == second['predictions'] and len(first['predictions']) == 5
    assert first['predictions'][0]['class'][0].isdigit()  # the folders of the embedded data set
    with pytest.raises(UsageError, match=r'must be \(H, W, 3\) of BGR bytes, got \(80, 70\)'):
        Inferencer(*small_models['classifier'])(pixels[..., 0])


def test_settings_of_the_config_can_be_changed(small_models, images):
    scale = 'test_dataloader.dataset.pipeline.1.scale'
    small, large = (Inferencer(*small_models['classifier'], cfg_options={scale: size}) for size in (32, 96))
    path = images / 'a.png'
    assert small(path)[0]['predictions'] != large(path)[0]['predictions']
    with pytest.raises(UsageError, match=r"has no 'scal'.*scale"):
        Inferencer(*small_models['classifier'], cfg_options={scale[:-1]: 32})


def test_the_librarys_own_results_are_the_same(small_models, images):
    """The numbers are those of MMDetection's inferencer, given the same files."""
    from mmdet.apis import DetInferencer

    theirs = DetInferencer(*small_models['detector'], device='cpu')(str(images / 'a.png'))['predictions'][0]
    ours = Inferencer(*small_models['detector'])(images / 'a.png', score_thr=0.0)[0]['detections']
    assert [detection['score'] for detection in ours] == pytest.approx(theirs['scores'], abs=1e-6)
    assert [detection['label'] for detection in ours] == theirs['labels']


@pytest.mark.parametrize('given, text', [('no.jpg', 'no.jpg is no image'), ([], 'the list is empty')])
def test_no_images(given, text):
    with pytest.raises(UsageError, match=text):
        find_images(given)


def test_wrong_models_and_weights(small_models):
    config, checkpoint = small_models['detector']
    for arguments, error, text in (
        (('mask_rcnn_xcit_s12_8', checkpoint), UsageError, 'no model and no config file .* did you mean mask_rcnn'),
        ((config,), UsageError, 'needs the checkpoint'),
        ((config, 'missing.pth'), UsageError, 'there is no checkpoint file missing.pth'),
        ((config, small_models['semantic_fpn'][1]), CheckpointError, 'not of this model'),
    ):
        with pytest.raises(error, match=text):
            Inferencer(*arguments)


def test_inferencers_of_the_libraries_take_published_names(tmp_path):
    """With weights in the layout of the original release, since nothing is downloaded here."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    from xcit_mm.apis import DetInferencer, ImageClassificationInferencer, MMSegInferencer

    pixels = np.zeros((64, 64, 3), np.uint8)
    for kind, name in (
        (ImageClassificationInferencer, 'xcit_n12_16_in1k'),
        (DetInferencer, 'mask_rcnn_xcit_t12_16_3x_coco'),
        (MMSegInferencer, 'sem_fpn_xcit_t12_16_80k_ade20k'),
    ):
        cfg = Config.fromfile(xcit_mm.config_path(name))
        init_default_scope(cfg.default_scope)
        state = MODELS.build(cfg.model).state_dict()
        if kind is ImageClassificationInferencer:
            backbone = {k[len('backbone.') :]: v for k, v in state.items() if k.startswith('backbone.')}
            head = {'head.weight': state['head.fc.weight'], 'head.bias': state['head.fc.bias']}
            file = {'model': {**official_names(backbone), **head}}
        else:
            file = {'state_dict': official_names(state), 'meta': {'CLASSES': ('only',)}}
        torch.save(file, tmp_path / 'weights.pth')
        assert kind(name, str(tmp_path / 'weights.pth'), device='cpu')(pixels) is not None
        with pytest.raises(UsageError, match='did you mean'):
            kind(name.replace('16', '17'), str(tmp_path / 'weights.pth'))


def test_backbones_by_name(tmp_path):
    source = randomise(create_backbone('xcit_n12_8'))
    torch.save({'model': official_names(source.state_dict())}, tmp_path / 'weights.pth')
    image = torch.randn(1, 3, 32, 48)
    for name in ('xcit_n12_8', 'xcit_n12_8_dist_384_in1k', 'xcit_nano_12_p8_224', 'xcit_nano_12_p8_384_dist'):
        backbone = xcit_mm.create_backbone(name, str(tmp_path / 'weights.pth'))
        assert not backbone.training
        assert torch.equal(backbone(image)[0], source(image)[0])
    maps = create_backbone('xcit_n12_8', str(tmp_path / 'weights.pth'), out_type='featmap', out_indices=(5, 11))(image)
    assert [tuple(m.shape) for m in maps] == [(1, 128, 4, 6)] * 2
    assert create_backbone('mask_rcnn_xcit_t12_16_3x_coco').out_type == 'pyramid'
    with pytest.raises(CheckpointError):
        create_backbone('xcit_n12_16', str(tmp_path / 'weights.pth'))


@pytest.mark.parametrize(
    'name, checkpoint, text',
    [
        ('resnet50', None, 'there is no XCiT backbone'),
        ('xcit_m6_8', None, 'there is no XCiT backbone'),
        ('xcit_s12_8', True, 'xcit_s12_8_dist_384_in1k, xcit_s12_8_dist_in1k, xcit_s12_8_in1k'),
    ],
)
def test_no_backbone_of_that_name(name, checkpoint, text):
    with pytest.raises(ValueError, match=text):
        create_backbone(name, checkpoint)


def test_class_activation_maps(small_models, images, tmp_path, run_tool):
    """With MMPretrain's own tool."""
    pytest.importorskip('pytorch_grad_cam')
    tool = Path(find_spec('mmpretrain').submodule_search_locations[0]) / '.mim/tools/visualization/vis_cam.py'
    options = ['--vit-like', '--target-layers', 'backbone.blocks.1.norm3', '--target-category', '3']
    run_tool(tool, images / 'a.png', *small_models['classifier'], '--save-path', 'cam.jpg', *options)
    assert np.asarray(Image.open(tmp_path / 'cam.jpg')).std() > 1


def test_the_command(small_models, images, tmp_path, run_tool):
    arguments = [*small_models['detector'], images, '--out-dir', 'out', '--score-thr', 0]
    told = run_tool(ROOT / 'tools/infer.py', *arguments)
    assert '4 images' in told and 'not read: ' in told
    assert 'results.json' in written(tmp_path / 'out')
