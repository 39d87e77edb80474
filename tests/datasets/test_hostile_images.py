"""Odd and broken images in training, in testing and in inference: each is read as it should be, or named."""

import copy
import io
import json
import logging
import shutil
from functools import lru_cache

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image
from processes import ROOT
from scenes import make_scenes

import xcit_mm.apis.inference as inference
from xcit_mm.datasets.loading import LoadImageFromFile
from xcit_mm.resilience.bad_images import guard_loading

pytestmark = pytest.mark.usefixtures('one_thread')

SIZE = 64
ORIENTATION = 0x0112
generator = np.random.default_rng(0)
# Smooth, so that JPEG keeps it.
SCENE = cv2.resize(generator.integers(0, 256, (4, 4, 3), np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def file_of(picture, kind='PNG', **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def of(*shape, kind='JPEG'):
    return file_of(Image.fromarray(generator.integers(0, 256, shape, np.uint8)), kind)


def turned(orientation):
    """The scene as a camera stores it that was held another way, with a note."""
    turns = {1: 0, 3: 2, 6: 1, 8: 3}
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.rot90(SCENE[:, : SIZE // 2], turns[orientation])
    return file_of(Image.fromarray(np.ascontiguousarray(stored)), 'JPEG', quality=98, exif=exif)


def without_headers(data):
    """As a download that lost its first block."""
    return bytes(512) + data[512:]


def damaged(data, share):
    """Some bytes in the middle are others."""
    data = bytearray(data)
    for place in generator.integers(int(len(data) * 0.3), len(data) - 4, int(len(data) * share)):
        data[place] ^= 0x55
    return bytes(data)


picture = Image.fromarray(SCENE)
animation = [Image.fromarray(np.roll(SCENE, shift, 0)) for shift in (0, 9, 18)]
READ = {
    '16 bits, grey': file_of(Image.fromarray((SCENE[..., 0].astype(np.uint16) << 8) | 77)),
    '16 bits, colour': cv2.imencode('.png', SCENE.astype(np.uint16) << 8)[1].tobytes(),
    'CMYK': file_of(picture.convert('CMYK'), 'JPEG', quality=98),
    'palette': file_of(picture.quantize(256)),
    'palette with alpha': file_of(picture.quantize(255), transparency=0),
    'black and white': file_of(picture.convert('1')),
    'grey': file_of(picture.convert('L')),
    'grey JPEG': file_of(picture.convert('L'), 'JPEG', quality=98),
    'grey with alpha': file_of(picture.convert('LA')),
    'alpha': file_of(picture.convert('RGBA')),
    'progressive JPEG': file_of(picture, 'JPEG', quality=98, progressive=True),
    'animated PNG': file_of(animation[0], save_all=True, append_images=animation[1:]),
    'animated WebP': file_of(animation[0], 'WEBP', save_all=True, append_images=animation[1:], lossless=True),
    'BMP named as JPEG': file_of(picture, 'BMP'),
    'TIFF named as JPEG': file_of(picture, 'TIFF'),
    '1 x 1': of(1, 1, 3),
    '2 x 3': of(2, 3, 3),
    '1 x 5000': of(1, 5000, 3),
    '5000 x 1': of(5000, 1, 3, kind='PNG'),
    '20000 x 20': of(20000, 20, 3),
    '20 x 20000': of(20, 20000, 3, kind='PNG'),
    'turned by 90 degrees': turned(6),
    'turned by 270 degrees': turned(8),
    'upside down': turned(3),
}
# Read or named, as this version of OpenCV can.
EITHER = {
    'animated GIF': file_of(animation[0], 'GIF', save_all=True, append_images=animation[1:]),
    'damaged JPEG': damaged(file_of(picture, 'JPEG'), 0.02),
}
NAMED = {
    'empty': b'',
    'one byte': b'\xff',
    'half a JPEG': of(SIZE, SIZE, 3)[:1500],
    'half a PNG': of(SIZE, SIZE, 3, kind='PNG')[:4000],
    'JPEG without its end': of(SIZE, SIZE, 3)[:-2],
    'JPEG without its beginning': without_headers(of(SIZE, SIZE, 3)),
    'PNG without its beginning': without_headers(of(SIZE, SIZE, 3, kind='PNG')),
    'damaged PNG': damaged(of(SIZE, SIZE, 3, kind='PNG'), 0.05),
    'PNG of 2^31 pixels a side': of(8, 8, 3, kind='PNG').replace(
        (8).to_bytes(4, 'big') * 2, (2**31 - 1).to_bytes(4, 'big') * 2, 1
    ),
    'web page': b'<!DOCTYPE html><html></html>',
    'text': b'no image',
}
KINDS = {**READ, **EITHER, **NAMED}


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp('digits'), train=2, val=2, size=SIZE)


@pytest.fixture
def data(digits, tmp_path):
    for name in ('coco', 'ade'):
        shutil.copytree(digits / name, tmp_path / 'data' / name)
    for number in range(2):
        folder = tmp_path / 'data' / 'imagenet' / str(number)
        folder.mkdir(parents=True)
        for image in range(2):
            (folder / f'{image}.jpg').write_bytes(of(SIZE, SIZE, 3))
    return tmp_path / 'data'


@pytest.fixture
def named(monkeypatch):
    """What is written into the log as a warning."""
    messages = []
    monkeypatch.setattr(MMLogger, 'callHandlers', lambda self, record: messages.append(record.getMessage()))
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield messages
    logger.setLevel(level)


@lru_cache
def read_config(library):
    name = {
        'mmdet': 'mask_rcnn_xcit_n12_8_digits',
        'mmseg': 'sem_fpn_xcit_n6_8_digits',
        'mmpretrain': 'xcit_n12_16_in1k',
    }
    return Config.fromfile(ROOT / 'configs' / f'{name[library]}.py')


class Loaders:
    """As much of a runner as :func:`guard_loading` looks at."""

    def __init__(self, cfg):
        self.cfg = cfg
        self._train_dataloader, self._test_dataloader = cfg.train_dataloader.to_dict(), cfg.test_dataloader.to_dict()


PLACES = {
    ('mmdet', 'train'): 'coco/train2017',
    ('mmdet', 'test'): 'coco/val2017',
    ('mmseg', 'train'): 'ade/images/training',
    ('mmseg', 'test'): 'ade/images/validation',
    ('mmpretrain', 'train'): 'imagenet/0',
    ('mmpretrain', 'test'): 'imagenet/0',
}


def dataset(library, split, data):
    cfg = copy.deepcopy(read_config(library))
    for name in ('train', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.dataset.update(serialize_data=False)
        if library == 'mmpretrain':
            loader.dataset = dict(
                type='CustomDataset', data_root=str(data / 'imagenet'), pipeline=loader.dataset.pipeline
            )
        else:
            loader.dataset.data_root = str(data / PLACES[library, name].split('/')[0])
    loaders = Loaders(cfg)
    guard_loading(loaders)
    with DefaultScope.overwrite_default_scope(library):
        return DATASETS.build(getattr(loaders, f'_{split}_dataloader')['dataset'])


def put(content, folder, labels=None):
    """The first image of a folder becomes another; with a map of classes and annotations of its size."""
    path = sorted(folder.iterdir())[0]
    path.write_bytes(content)
    try:
        width, height = Image.open(path).size
        if Image.open(path).getexif().get(ORIENTATION) in (6, 8):
            width, height = height, width
    except Exception:
        width = height = SIZE
    if max(width, height) > 1 << 20:
        width = height = SIZE
    if 'ade' in folder.parts:
        labels = np.zeros((height, width), np.uint8) if labels is None else labels
        Image.fromarray(labels).save(path.parents[2] / 'annotations' / folder.name / f'{path.stem}.png')
    if 'coco' in folder.parts:
        file = folder.parent / 'annotations' / f'instances_{folder.name}.json'
        text = json.loads(file.read_text())
        for image in text['images']:
            if image['file_name'] == path.name:
                image.update(width=width, height=height)
                for label in text['annotations']:
                    if label['image_id'] == image['id']:
                        triangle = [0, 0, width, 0, width, height]
                        label.update(bbox=[0, 0, width, height], segmentation=[triangle], iscrowd=0)
        file.write_text(json.dumps(text))
    return path


def size_of(name):
    return tuple(map(int, name.split(' x '))) if ' x ' in name else (SIZE, SIZE)


def is_strip(name):
    return max(size_of(name)) > 16 * min(size_of(name))


@pytest.mark.parametrize('library, split', PLACES)
def test_each_kind_is_read_or_named(library, split, data, named):
    folder = data / PLACES[library, split]
    built = None
    for name, content in KINDS.items():
        path = put(content, folder)
        del named[:]
        if built is None or library == 'mmdet':  # whose annotations have changed
            built = dataset(library, split, data)
        index = next(
            (i for i in range(len(built)) if built.get_data_info(i)['img_path'] == str(path)), None
        )  # training leaves out what is smaller than 32 pixels
        if index is None:
            continue
        sample = built[index]
        assert torch.is_tensor(sample['inputs']) and sample['inputs'].shape[0] == 3 and sample['inputs'].numel(), name
        told = {line.replace(path.name, '') for line in named if str(path) in line}
        maps = {line for line in named if f'annotations/{path.parent.name}/{path.stem}.png' in line}
        if library == 'mmseg' and min(size_of(name)) == 1:
            assert len(maps) == 1 and 'MMSegmentation cannot read' in maps.pop()
            continue
        drawn = sample['data_samples'].img_path
        if name in NAMED:
            (line,) = told
            assert 'cut off' in line or 'empty' in line, (name, named)
            assert (drawn == str(path)) == (split == 'test'), name
        elif name in READ:
            assert len(told) == is_strip(name) and drawn == str(path), (name, named)
        else:
            assert len(told) <= 1, name


@pytest.mark.parametrize('name', [name for name in READ if ' x ' not in name])
def test_what_is_read_shows_the_scene(name, tmp_path, named):
    (tmp_path / 'image.jpg').write_bytes(READ[name])
    image = LoadImageFromFile()(dict(img_path=str(tmp_path / 'image.jpg')))['img']
    expected = SCENE[..., ::-1]
    if '16 bits, colour' in name:
        expected = SCENE
    if 'grey' in name or name == 'black and white':
        assert (image == image[..., :1]).all()
        expected = np.repeat(np.asarray(picture.convert('L'))[..., None], 3, 2)
        if name == '16 bits, grey':
            expected = np.repeat(SCENE[..., :1], 3, 2)
    if 'turned' in name or 'upside' in name:
        expected = expected[:, : SIZE // 2]
    assert image.shape == expected.shape and image.dtype == np.uint8 and not named
    if name != 'black and white':
        off = np.abs(image.astype(int) - expected)
        assert np.median(off) <= (12 if name in ('CMYK', 'palette', 'palette with alpha') else 3), np.median(off)


@pytest.mark.parametrize('orientation', [6, 8])
@pytest.mark.parametrize('by', ['annotation', 'map'])
def test_a_picture_is_not_turned_if_its_labels_are_not(orientation, by, tmp_path):
    (tmp_path / 'image.jpg').write_bytes(turned(orientation))
    for shape in ((SIZE, SIZE // 2), (SIZE // 2, SIZE)):
        results = dict(img_path=str(tmp_path / 'image.jpg'))
        if by == 'annotation':
            results.update(height=shape[0], width=shape[1])
        else:
            Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / 'map.png')
            results.update(seg_map_path=str(tmp_path / 'map.png'))
        found = LoadImageFromFile()(results)
        assert found['img'].shape[:2] == found['ori_shape'] == shape


def test_a_strip_keeps_its_coordinates_and_its_labels(data, named):
    strip = of(2, 300, 3, kind='PNG')
    path = put(strip, data / 'ade/images/validation', np.full((2, 300), 5, np.uint8))
    sample = dataset('mmseg', 'test', data)[0]['data_samples']
    labels = sample.gt_sem_seg.data[0].numpy()
    assert sample.ori_shape == labels.shape == (19, 300)
    assert set(np.unique(labels[:2])) <= {4, 5} and (labels[2:] == 255).all()
    pixels = LoadImageFromFile()(dict(img_path=str(path)))['img']
    assert np.array_equal(pixels[:2], cv2.imread(str(path))) and (pixels[2:] == pixels[1]).all()
    assert any('its edge is repeated' in line for line in named)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_models_take_the_most_extreme_of_them(library, small_models, data):
    config = {'mmdet': 'detector', 'mmseg': 'semantic_fpn', 'mmpretrain': 'classifier'}[library]
    cfg = Config.fromfile(small_models[config][0])
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(cfg.model)
        model.train()
        for name in ('1 x 1', '1 x 5000', '16 bits, grey'):
            for split in ('train', 'test'):
                put(KINDS[name], data / PLACES[library, split])
            samples = dataset(library, 'test', data)
            with torch.no_grad():
                batch = model.data_preprocessor(pseudo_collate([samples[0]]), False)
                model.eval()
                found = model(**batch, mode='predict')
            assert len(found) == 1


@pytest.mark.parametrize('kind', ['detector', 'semantic_fpn', 'classifier'])
def test_inference_gives_a_result_or_a_reason_for_each(kind, small_models, tmp_path):
    for number, content in enumerate(KINDS.values()):
        (tmp_path / f'{number:02d}.png').write_bytes(content)
    results = inference.Inferencer(*small_models[kind])(tmp_path, out_dir=tmp_path / 'out')
    assert len(results) == len(KINDS)
    for (name, _), result in zip(KINDS.items(), results):
        if name in NAMED or is_strip(name):
            assert 'cannot be' in result['error'], name
        elif name in READ:
            assert 'error' not in result and result['height'] >= 1, name
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert summary['images'] == len(KINDS) and len(summary['unreadable']) >= len(NAMED)
