"""Wrong annotations: named, left out of training and not tested with; never taken for something else in silence."""

import copy
import json
import logging
from functools import lru_cache

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from processes import ROOT
from pycocotools import mask as rle
from scenes import make_scenes

from xcit_mm.datasets.annotations import decode_runs
from xcit_mm.errors import UsageError
from xcit_mm.resilience.bad_images import guard_loading

pytestmark = pytest.mark.usefixtures('one_thread')

DETECTOR, SEGMENTOR = 'mask_rcnn_xcit_n12_8_digits', 'sem_fpn_xcit_n6_8_digits'


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp('digits'), train=3, val=2, size=64)


@pytest.fixture
def warnings(monkeypatch):
    """What is written into the log as a warning."""
    messages = []
    original = MMLogger.callHandlers

    def call_handlers(self, record):
        if record.levelno >= logging.WARNING:
            messages.append(record.getMessage())
        original(self, record)

    monkeypatch.setattr(MMLogger, 'callHandlers', call_handlers)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield messages
    logger.setLevel(level)


class Loaders:
    """As much of a runner as :func:`guard_loading` looks at."""

    def __init__(self, cfg):
        self.cfg = cfg
        self._train_dataloader, self._test_dataloader = cfg.train_dataloader.to_dict(), cfg.test_dataloader.to_dict()


@lru_cache
def read_config(config):
    return Config.fromfile(ROOT / 'configs' / f'{config}.py')


def dataset(config, root, split='train', **changes):
    """The data set of a config as a run reads it."""
    cfg = copy.deepcopy(read_config(config))
    for name in ('train', 'test'):
        cfg[f'{name}_dataloader'].dataset.update(data_root=str(root), serialize_data=False, **changes)
    loaders = Loaders(cfg)
    guard_loading(loaders)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(getattr(loaders, f'_{split}_dataloader')['dataset'])


def annotations(data, change, split='train'):
    """Change the annotation file of a split; its path."""
    path = data / 'coco' / 'annotations' / f'instances_{split}2017.json'
    content = json.loads(path.read_text())
    content = change(content) or content
    path.write_text(json.dumps(content))
    return path


def of_first(**changes):
    def change(content):
        content['annotations'][0].update(changes)

    return change


def without(*keys):
    def change(content):
        for key in keys:
            content['annotations'][0].pop(key, None)

    return change


LEFT_OUT = {
    'box right of the image': (of_first(bbox=[1000, 5, 10, 10]), 'box outside the image'),
    'box above the image': (of_first(bbox=[5, -50, 10, 10]), 'box outside the image'),
    'box without width': (of_first(bbox=[5, 5, 0, 10]), 'box without area'),
    'box of negative height': (of_first(bbox=[5, 5, 10, -3]), 'box without area'),
    'box of three numbers': (of_first(bbox=[5, 5, 10]), 'box that is not four numbers'),
    'box of texts': (of_first(bbox=['5', '5', '10', '10']), 'box that is not four numbers'),
    'box that is not a number': (of_first(bbox=[float('nan'), 5, 10, 10]), 'box that is not four numbers'),
    'no box': (without('bbox'), 'box that is not four numbers'),
    'area that is a text': (of_first(area='12'), 'area that is not a number'),
    'polygon of two points': (of_first(segmentation=[[1, 1, 9, 9]]), 'polygon of fewer than three points'),
    'polygon of an odd count': (of_first(segmentation=[[1, 1, 9, 9, 5, 5, 7]]), 'polygon of fewer than three points'),
    'polygon that is not a number': (of_first(segmentation=[[1, 1, 9, float('inf'), 5, 5]]), 'not a list of numbers'),
    'polygon of texts': (of_first(segmentation=[['a'] * 6]), 'not a list of numbers'),
    'polygon with a huge number': (of_first(segmentation=[[1, 1, 5, 1, 5, 3e77]]), 'polygon far outside the image'),
    'no mask': (without('segmentation'), 'no mask'),
    'empty mask': (of_first(segmentation=[]), 'no mask'),
    'RLE of another size': (of_first(segmentation=dict(size=[9, 9], counts=[81])), 'RLE of another size'),
    'RLE that ends too early': (of_first(segmentation=dict(size=[64, 64], counts=[81])), 'RLE that does not fill'),
    'RLE that goes on': (of_first(segmentation=dict(size=[64, 64], counts=[9000])), 'RLE that does not fill'),
    'RLE of negative runs': (of_first(segmentation=dict(size=[64, 64], counts=[-4, 4100])), 'RLE that does not fill'),
    'RLE that cannot be decoded': (of_first(segmentation=dict(size=[64, 64], counts='\x00~~')), 'does not fill'),
    'RLE of another image, compressed': (
        of_first(segmentation=dict(size=[64, 64], counts='PPYo1')),
        'RLE that does not fill',
    ),
    'unknown category': (of_first(category_id=77), 'unknown category'),
    'category that is a list': (of_first(category_id=[1]), 'id that is not a number'),
    'unknown image': (of_first(image_id=777), 'unknown image'),
}
HARMLESS = ('box outside', 'without area', 'unknown')


@pytest.mark.parametrize('name', LEFT_OUT)
def test_wrong_annotations_are_left_out_of_training_and_counted(name, data, warnings):
    change, words = LEFT_OUT[name]
    path = annotations(data, change)
    all_of_them = len(json.loads(path.read_text())['annotations'])
    built = dataset(DETECTOR, data / 'coco', filter_cfg=None)
    (warning,) = [line for line in warnings if str(path) in line]
    assert f'1 of {all_of_them} annotations are left out' in warning and words in warning and 'id ' in warning
    loaded = [built[i]['data_samples'].gt_instances for i in range(len(built))]
    assert sum(map(len, loaded)) <= all_of_them - 1
    for instances in loaded:
        assert instances.bboxes.tensor.isfinite().all()


@pytest.mark.parametrize('name', LEFT_OUT)
def test_testing_with_wrong_annotations_is_refused_unless_they_are_harmless(name, data, warnings):
    change, words = LEFT_OUT[name]
    path = annotations(data, change, 'val')
    if any(harmless in words for harmless in HARMLESS):
        assert len(dataset(DETECTOR, data / 'coco', 'test')) == 2
        assert any(words in line for line in warnings)
        return
    # The pipeline of the test asks for masks as training does.
    with pytest.raises(UsageError, match='is not fit for testing') as error:
        dataset(DETECTOR, data / 'coco', 'test')
    assert str(path) in str(error.value) and words in str(error.value)


def test_an_area_that_is_not_given_is_that_of_the_box(data, warnings):
    annotations(data, without('area'))
    assert len(dataset(DETECTOR, data / 'coco')) == 3 and not warnings


def test_the_good_parts_of_a_mask_are_kept(data, warnings):
    triangle = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0]
    annotations(data, of_first(segmentation=[[1, 1, 9, 9], triangle]))
    built = dataset(DETECTOR, data / 'coco')
    masks = [instance['mask'] for i in range(3) for instance in built.get_data_info(i)['instances']]
    assert [triangle] in masks and not warnings


def test_images_without_annotations(data, warnings):
    annotations(data, lambda content: content.update(annotations=[]))
    built = dataset(DETECTOR, data / 'coco', filter_cfg=None)
    assert len(built) == 3 and not warnings
    batch = pseudo_collate([built[i] for i in range(3)])
    assert all(len(sample.gt_instances) == 0 for sample in batch['data_samples'])


def doubled(table):
    def change(content):
        content[table].append(dict(content[table][0]))

    return change


def renamed(content):
    content['categories'][3]['name'] = 'thre'


REFUSED = {
    'two annotations with one id': (doubled('annotations'), '1 ids that several of its annotations share'),
    'two images with one id': (doubled('images'), '1 ids that several of its images share'),
    'two categories with one id': (doubled('categories'), '1 ids that several of its categories share'),
    'a class with another name': (renamed, "has no category 'three', but 'thre'"),
    'a list': (lambda content: [content], 'lists no images'),
    'no images': (lambda content: content.update(images=[]), 'lists no images'),
    'no categories': (lambda content: {k: v for k, v in content.items() if k != 'categories'}, 'lists no categories'),
    'annotations that are an object': (lambda content: content.update(annotations={'a': 1}), 'no list of objects'),
    'annotations that are numbers': (lambda content: content.update(annotations=[1, 2]), 'no list of objects'),
    'an image without a name': (lambda content: content['images'][0].pop('file_name'), 'has no file_name'),
    'an image without a height': (lambda content: content['images'][0].pop('height'), 'has no height'),
    'an image of no height': (lambda content: content['images'][0].update(height=0), '0 x 64 pixels'),
    'an image of a text for a width': (lambda content: content['images'][0].update(width='64'), "64 x '64' pixels"),
    'an id that is a list': (lambda content: content['images'][0].update(id=[1]), 'expected a number'),
}


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('name', REFUSED)
def test_files_that_would_be_read_wrongly_are_refused(name, split, data):
    def change(content):
        found = REFUSED[name][0](content)
        return found if isinstance(found, (list, dict)) and name in ('a list', 'no categories') else None

    path = annotations(data, change, 'val' if split == 'test' else 'train')
    with pytest.raises(UsageError) as error:
        dataset(DETECTOR, data / 'coco', split)
    assert REFUSED[name][1] in str(error.value) and str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('content', ['{"images": [}', '[' * 100000, '{"images": [{"id": 1, "file_name": "a"}'])
def test_files_that_are_no_json_are_named(content, data):
    path = data / 'coco' / 'annotations' / 'instances_train2017.json'
    path.write_text(content)
    with pytest.raises(UsageError, match='instances_train2017.json cannot be read as JSON'):
        dataset(DETECTOR, data / 'coco')


def test_compressed_runs_are_those_of_pycocotools():
    generator = np.random.default_rng(0)
    for _ in range(50):
        height, width = generator.integers(1, 90, 2)
        mask = np.asfortranarray(generator.random((height, width)) < generator.random(), dtype=np.uint8)
        runs = decode_runs(rle.encode(mask)['counts'].decode())
        flat = mask.flatten('F')
        edges = np.flatnonzero(np.diff(np.concatenate(([0], flat)))) if flat.size else []
        expected = np.diff([0, *edges, flat.size]).tolist()
        assert runs == expected


# Maps of classes.


def new_map(data, array, split='training', number=0):
    path = sorted((data / 'ade' / 'annotations' / split).iterdir())[number]
    Image.fromarray(array).save(path)
    return path


LABELS = np.full((64, 64), 3, np.uint8)
BAD_MAPS = {
    'another size': (np.full((32, 48), 3, np.uint8), 'it is 32 x 48 pixels, and its image 64 x 64'),
    'colours': (np.full((64, 64, 3), 3, np.uint8), 'it has 3 channels'),
    'alpha': (np.full((64, 64, 4), 3, np.uint8), 'it has 4 channels'),
    '16 bits': (np.full((64, 64), 300, np.uint16), 'classes up to 300'),
}


@pytest.mark.parametrize('name', BAD_MAPS)
def test_maps_that_do_not_fit_their_image_are_passed_over(name, data, warnings):
    labels, words = BAD_MAPS[name]
    path = new_map(data, labels)
    new_map(data, labels, 'validation')
    built = dataset(SEGMENTOR, data / 'ade')
    assert built[0]['data_samples'].seg_map_path != str(path)
    assert any(str(path) in line and words in line and 'another image is drawn' in line for line in warnings)
    tested = dataset(SEGMENTOR, data / 'ade', 'test')[0]['data_samples']
    assert (tested.gt_sem_seg.data == 255).all() and any('its image is not scored' in line for line in warnings)


@pytest.mark.parametrize('split, folder', [('train', 'training'), ('test', 'validation')])
def test_pixels_of_unknown_classes_are_ignored_and_named(split, folder, data, warnings):
    labels = LABELS.copy()
    labels[:8] = 99
    path = new_map(data, labels, folder)
    built = dataset(SEGMENTOR, data / 'ade', split)
    found = set(np.unique(built[0]['data_samples'].gt_sem_seg.data).tolist())
    assert all(label < 11 or label == 255 for label in found)
    (warning,) = {line for line in warnings if str(path) in line}
    assert 'classes that the data set has not' in warning and 'these pixels are ignored' in warning


def test_maps_of_16_bits_with_few_classes_are_read(data, warnings):
    new_map(data, LABELS.astype(np.uint16))
    assert dataset(SEGMENTOR, data / 'ade')[0]['data_samples'].seg_map_path.endswith('.png') and not warnings
