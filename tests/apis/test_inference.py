"""Use without configs: inference on images, inferencers and backbones by name."""

import io
import json
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from backbones import official_names, randomise
from PIL import Image
from processes import ROOT
from sources import clip, serve

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
    batched = Inferencer(*small_models['detector'])(images, score_thr=0.0, batch_size=4)
    assert [len(result.get('detections', ())) for result in batched] == [len(r.get('detections', ())) for r in results]
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

    pixels = np.zeros((32, 640, 3), np.uint8)  # which detectors enlarge to 67x1333
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
        ('xcit_b12_8', None, 'there is no XCiT backbone'),
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


def test_the_command(small_models, images, tmp_path, run_tool, capsys):
    arguments = [*small_models['detector'], images, '--out-dir', 'out', '--score-thr', 0, '--no-overlays']
    with pytest.raises(SystemExit) as ended:
        run_tool(ROOT / 'tools/infer.py', *arguments)
    told = capsys.readouterr()
    assert ended.value.code == 1 and '1 of the images could not be read' in told.err
    assert '4 images' in told.out and 'not read: ' in told.out and 'broken.jpg: cannot be read' in told.out
    assert 'In out: results.json, summary.json\n' in told.out
    assert '1 images' in run_tool(ROOT / 'tools/infer.py', *small_models['detector'], images / 'a.png')


def of_depth(kind, small_models, depth, folder):
    """A config of ``small_models`` whose images are of another depth or number of channels, and weights for it."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    cfg = Config.fromfile(small_models[kind][0])
    channels = {'sixteen': 3, 'four': 4, 'grey': 1, 'pillow': 3}[depth]
    load = {
        'sixteen': dict(color_type='unchanged', to_float32=True),
        'four': dict(color_type='unchanged'),
        'grey': dict(color_type='grayscale'),
        'pillow': dict(imdecode_backend='pillow'),
    }[depth]
    cfg.test_dataloader.dataset.pipeline[0].update(load)
    to_rgb = 'to_rgb' if kind == 'classifier' else 'bgr_to_rgb'
    scale = {'sixteen': 257}.get(depth, 1)
    turned = {'mean': [110 * scale] * channels, 'std': [60 * scale] * channels, to_rgb: depth == 'sixteen'}
    if depth == 'four':  # MMEngine normalises one channel or three
        turned.update(mean=None, std=None)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.get('backend') == 'pillow':  # which resizes bytes alone
            step.update(backend='cv2', interpolation='bilinear')
    cfg.model.data_preprocessor.update(turned)
    cfg.model.backbone.in_channels = channels
    cfg.dump(folder / f'{kind}_{depth}.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = randomise(MODELS.build(cfg.model))
    torch.save({'state_dict': built.state_dict(), 'meta': {}}, folder / f'{kind}_{depth}.pth')
    return str(folder / f'{kind}_{depth}.py'), str(folder / f'{kind}_{depth}.pth')


def file_of_depth(depth, path):
    """A smooth picture of that depth, with what it holds at each pixel being different in every channel."""
    generator = np.random.default_rng(1)
    dtype = np.uint16 if depth == 'sixteen' else np.uint8
    channels = {'sixteen': 3, 'four': 4, 'grey': 1, 'pillow': 3}[depth]
    small = generator.integers(0, np.iinfo(dtype).max, (5, 6, channels)).astype(dtype)
    cv2.imwrite(str(path), cv2.resize(small, (72, 60), interpolation=cv2.INTER_LINEAR))
    return path


def as_in_testing(config, checkpoint, path):
    """The sample that the library's own loop gives for a file: the test pipeline, MMEngine's loading of weights."""
    from mmengine.config import Config
    from mmengine.dataset import Compose, default_collate, pseudo_collate
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.runner import load_checkpoint

    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).eval()
        load_checkpoint(model, checkpoint, 'cpu')
        steps = [step for step in cfg.test_dataloader.dataset.pipeline if 'Annotations' not in step['type']]
        data = Compose(steps)(dict(img_path=str(path), img_id=0))
        collate = default_collate if cfg.default_scope == 'mmpretrain' else pseudo_collate
        with torch.no_grad():
            return model.test_step(collate([data]))[0]


@pytest.mark.parametrize('depth', ['sixteen', 'four', 'grey', 'pillow'])
@pytest.mark.parametrize('kind', ['classifier', 'detector', 'semantic_fpn'])
def test_files_are_read_as_the_config_reads_them(kind, depth, small_models, tmp_path):
    model = of_depth(kind, small_models, depth, tmp_path)
    path = file_of_depth(depth, tmp_path / 'picture.png')
    inferencer, expected = Inferencer(*model, device='cpu'), as_in_testing(*model, path)
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    for source in (path, pixels, path.read_bytes()):
        (found,) = inferencer(source, score_thr=0.0)
        if kind == 'classifier':
            assert found['predictions'][0]['label'] == int(expected.pred_label)
            assert found['predictions'][0]['score'] == pytest.approx(float(expected.pred_score.max()), abs=1e-6)
        elif kind == 'detector':
            scores = [detection['score'] for detection in found['detections']]
            assert scores == pytest.approx(expected.pred_instances.scores.tolist(), abs=1e-6)
        else:
            assert np.array_equal(found['map'], expected.pred_sem_seg.data[0].numpy())
    assert inferencer.picture(path).shape == (60, 72, 3)


def test_mmpretrains_inferencer_reads_files_as_the_config_does(small_models, tmp_path):
    from xcit_mm.apis import ImageClassificationInferencer

    model = of_depth('classifier', small_models, 'sixteen', tmp_path)
    path = file_of_depth('sixteen', tmp_path / 'picture.png')
    (found,) = ImageClassificationInferencer(*model, device='cpu')(str(path))
    assert found['pred_score'] == pytest.approx(float(as_in_testing(*model, path).pred_score.max()), abs=1e-6)


def test_a_file_of_other_channels_is_named(small_models, tmp_path):
    model = of_depth('semantic_fpn', small_models, 'four', tmp_path)
    paths = [file_of_depth('pillow', tmp_path / 'colour.png'), file_of_depth('four', tmp_path / 'four.png')]
    first, second = Inferencer(*model, device='cpu')(paths, batch_size=2)
    assert "it has 3 channels as the config reads it (color_type='unchanged'), and the model takes 4" in first['error']
    assert 'error' not in second


def test_a_depth_that_the_config_does_not_normalise_is_named(small_models, tmp_path):
    model = of_depth('classifier', small_models, 'sixteen', tmp_path)
    (found,) = Inferencer(*model, device='cpu')(file_of_depth('pillow', tmp_path / 'eight.png'))
    assert 'the config normalises those of more than 8 bits (mean 28270)' in found['warning']


@pytest.fixture(scope='module')
def classifier(small_models):
    return Inferencer(*small_models['classifier'], device='cpu')


@pytest.fixture
def served(images):
    """The folder of images under an address of this machine."""
    with serve(images) as address:
        yield address


def test_all_that_people_hand_over_is_read(classifier, images, served):
    path = images / 'a.png'
    pixels = cv2.imread(str(path))
    expected = classifier(path)[0]['predictions']
    for given in (
        str(path),
        Image.open(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        pixels,
        pixels[None],
        f'{served}/a.png',
        path.as_uri(),
        {str(path)},
        (path,),
        (item for item in [path]),
        map(str, [path]),
    ):
        (found,) = classifier(given)
        assert found['predictions'] == expected, given
    (found,) = classifier(np.ascontiguousarray(pixels[..., ::-1]), channel_order='RGB')
    assert found['predictions'] == expected
    (found,) = classifier(np.dstack([pixels, pixels[..., 0]]))  # a fourth channel is dropped, as from a file
    assert found['predictions'] == expected
    assert 'HTTP Error 404' in classifier([f'{served}/no.png', path])[0]['error']


def test_what_is_no_image_is_said(classifier, images):
    for given, text in (
        (torch.zeros(3, 8, 8), r'torch.Tensor is no image. Expected a file, a folder.*\.numpy\(\)'),
        (None, 'NoneType is no image'),
        (np.zeros((0, 8, 3), np.uint8), r'shape \(0, 8, 3\) and type uint8 is empty'),
        (np.zeros((8, 8, 3)), 'is not what the config reads: give uint8'),
        (np.zeros((8, 8, 5), np.uint8), 'of 1, 3 or 4 channels'),
        (np.zeros(8, np.uint8), 'is no image; expected'),
        (b'', 'it is empty'),
        (b'no image', 'no image'),
        ('x' * 5000, 'is no file'),
        (images / 'nowhere', 'is no image, no folder'),
        (ROOT / 'requirements/onedl.txt', 'is a text file; give the names'),
    ):
        with pytest.raises(UsageError, match=text):
            classifier(given)
    with pytest.raises(UsageError, match="channel_order must be 'BGR' or 'RGB', got 'bgr'"):
        classifier(images, channel_order='bgr')
    first, second, third = classifier([images / 'nowhere.png', np.zeros((0, 8, 3), np.uint8), images / 'a.png'])
    assert 'is no image' in first['error'] and 'is empty' in second['error'] and 'predictions' in third


def test_names_are_unique_and_stay_inside(tmp_path):
    for name in ('one/a.jpg', 'two/a.jpg', 'two/a.png', 'two/ä b.png', 'two/a.png_2.png', 'real/x.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (9, 9)).save(tmp_path / name)
    (tmp_path / 'two/link.jpg').symlink_to(tmp_path / 'real/x.jpg')
    (tmp_path / 'two/up').symlink_to(tmp_path / 'two')
    (tmp_path / 'two/notes.txt').write_text('no image')
    Image.new('RGB', (9, 9)).save(tmp_path / 'two/noend', 'PNG')
    found = find_images([tmp_path / 'one', tmp_path / 'two/../two', tmp_path / 'two/a.png'])
    names = [name for name, _ in found]
    assert names[0] == 'one/a' and set(names) == {
        'one/a',
        'two/a.jpg',
        'two/a.png',
        'two/a.png_2',
        'two/a.png_3',
        'two/link',
        'two/noend',
        'two/ä b',
    }
    assert found.left_out == {'.txt': 1}


def test_a_video_is_read_frame_by_frame(small_models, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (64, 48))
    for value in (0, 120, 250):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    frames = [Image.new('RGB', (40, 30), colour) for colour in ('red', 'blue')]
    frames[0].save(tmp_path / 'moving.gif', save_all=True, append_images=frames[1:])
    (tmp_path / 'broken.avi').write_bytes(b'no video')
    results = Inferencer(*small_models['semantic_fpn'])(tmp_path, tmp_path / 'out')
    assert [(Path(r['image']).name, r.get('frame')) for r in results] == [
        ('broken.avi', None),
        ('clip.mp4', 0),
        ('clip.mp4', 1),
        ('clip.mp4', 2),
        ('moving.gif', 0),
        ('moving.gif', 1),
    ]
    assert 'no video' in results[0]['error'] and results[3]['map'] == 'maps/clip/000002.png'
    video = cv2.VideoCapture(str(tmp_path / 'out/overlays/clip.mp4'))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FRAME_WIDTH)) == (3, 64)
    assert written(tmp_path / 'out') >= {'maps/moving/000001.png', 'overlays/moving.mp4'}


def test_results_are_complete_whenever_it_ends(classifier, images, tmp_path):
    def photos():
        assert json.loads((tmp_path / 'results.json').read_text()) == []
        yield images / 'a.png'
        (first,) = json.loads((tmp_path / 'results.json').read_text())
        assert first['predictions']
        yield images / 'more/b.jpg'
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier(photos(), tmp_path)
    assert len(json.loads((tmp_path / 'results.json').read_text())) == 2
    assert json.loads((tmp_path / 'summary.json').read_text())['images'] == 2
    assert written(tmp_path) >= {'overlays/a.jpg', 'overlays/b.jpg', 'overview.jpg'}


def test_what_an_earlier_call_wrote_is_no_input(classifier, images, tmp_path):
    Image.open(images / 'a.png').save(tmp_path / 'a.png')
    Image.new('RGB', (40, 40)).save(tmp_path / 'b.tif', save_all=True, append_images=[Image.new('RGB', (40, 40))])
    for _ in range(2):
        first, second = classifier(tmp_path, tmp_path / 'results')
    assert 'warning' not in first and 'it holds 2 pictures; only the first is read' in second['warning']
    summary = json.loads((tmp_path / 'results/summary.json').read_text())
    assert summary['left_out'][f'in {tmp_path / "results"}'] == 3


def test_drawing_can_be_left_out(classifier, images, tmp_path):
    classifier(images / 'a.png', tmp_path, overlays=False)
    assert written(tmp_path) == {'results.json', 'summary.json'}


def test_a_turned_photograph_is_drawn_as_it_is_seen(classifier, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (80, 40), 'red').save(tmp_path / 'turned.jpg', exif=exif)
    by_path, by_pillow = classifier(tmp_path / 'turned.jpg', tmp_path), classifier(Image.open(tmp_path / 'turned.jpg'))
    assert (by_path[0]['height'], by_path[0]['width']) == (80, 40) == (by_pillow[0]['height'], by_pillow[0]['width'])
    assert by_path[0]['predictions'] == by_pillow[0]['predictions']
    assert Image.open(tmp_path / 'overlays/turned.jpg').size == (40, 80)


def test_formats_that_opencv_alone_would_not_read(classifier, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / 'a.tga')
    picture.convert('P').save(tmp_path / 'b.gif')
    picture.convert('CMYK').save(tmp_path / 'c.jfif', 'JPEG')
    picture.convert('RGBA').quantize().save(tmp_path / 'd.png', transparency=0)
    (tmp_path / 'e.heic').write_bytes(b'\0\0\0\x18ftypheic')
    results = classifier(tmp_path)
    assert len(results) == 4 and all('predictions' in result for result in results)
    assert find_images(tmp_path).left_out == {'.heic': 1}


def test_nothing_is_listed_when_a_model_is_built(small_models, tmp_path, capfd):
    from mmengine.logging import MMLogger

    MMLogger.get_instance('mmengine').setLevel('INFO')
    try:
        torch.save({'model': official_names(create_backbone('xcit_n12_16').state_dict())}, tmp_path / 'weights.pth')
        create_backbone('xcit_n12_16', str(tmp_path / 'weights.pth'))
        Inferencer(*small_models['detector'], device='cpu')
        out, err = capfd.readouterr()
    finally:
        MMLogger.get_instance('mmengine').setLevel('ERROR')
    assert len((out + err).splitlines()) < 10, out + err


def test_configs_are_checked(small_models, tmp_path):
    config, checkpoint = small_models['classifier']
    text = Path(config).read_text()
    (tmp_path / 'wrong.py').write_text(text.replace('drop_path_rate', 'drop_path_rat'))
    if 'drop_path_rate' in text:
        with pytest.raises(UsageError, match='did you mean'):
            Inferencer(tmp_path / 'wrong.py', checkpoint)
    (tmp_path / 'broken.py').write_text('model = (')
    with pytest.raises(UsageError, match='cannot be read'):
        Inferencer(tmp_path / 'broken.py', checkpoint)
    with pytest.raises(UsageError, match='the device nowhere cannot be used'):
        Inferencer(config, checkpoint, 'nowhere')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UsageError, match='cannot be written to'):
        Inferencer(config, checkpoint)(np.zeros((32, 32, 3), np.uint8), tmp_path / 'file')


def test_classes_in_another_order_than_the_checkpoints_are_refused(small_models, tmp_path):
    config, checkpoint = small_models['detector']
    file = torch.load(checkpoint)
    classes = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
    torch.save({**file, 'meta': {'dataset_meta': {'classes': classes}}}, tmp_path / 'right.pth')
    torch.save({**file, 'meta': {'dataset_meta': {'classes': classes[::-1]}}}, tmp_path / 'turned.pth')
    Inferencer(config, tmp_path / 'right.pth', 'cpu')
    with pytest.raises(UsageError, match='the same classes in another order'):
        Inferencer(config, tmp_path / 'turned.pth', 'cpu')


def test_a_camera_by_its_number(small_models, tmp_path, monkeypatch):
    """The frames of a file in its place: nothing here has a camera."""
    opened, capture = [], cv2.VideoCapture
    file = clip(tmp_path / 'clip.mp4')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, 'VideoCapture', lambda source: opened.append(source) or capture(file))
    for given in (0, '0'):
        results = Inferencer(*small_models['classifier'], device='cpu')(given, out_dir=tmp_path / 'out')
        assert [(one['image'], one['frame']) for one in results] == [('camera 0', number) for number in range(4)]
        assert set(opened) == {0}
    assert 'overlays/camera_0.mp4' in written(tmp_path / 'out')
    assert not isinstance(find_images('rtsp://host/door')[0][1], str)
    assert find_images('https://host/photo.jpg')[0][1] == 'https://host/photo.jpg'


def test_a_camera_that_is_not_there(small_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (result,) = Inferencer(*small_models['classifier'], device='cpu')(77)
    assert 'camera 77 gives no pictures' in result['error']
    (tmp_path / '77').mkdir()  # a folder of that name is a folder
    with pytest.raises(UsageError, match='holds no images'):
        find_images('77')


def test_results_come_one_by_one(small_models, images):
    seen = []

    def given():
        for path in (images / 'a.png', images / 'a.jpg', images / 'broken.jpg'):
            seen.append(path.name)
            yield path

    results = Inferencer(*small_models['detector'], device='cpu').stream(given())
    first = next(results)
    assert (first['image'], seen) == (str(images / 'a.png'), ['a.png'])
    assert 'detections' in first
    assert 'error' in list(results)[-1]
