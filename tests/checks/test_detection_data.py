"""Detection data and metric: labels follow the config, and the metric scores what the data set gives, or is refused."""

import copy
import json
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import BaseLoop
from PIL import Image
from small_runs import small_cfg

from xcit_mm.checks.data import check_data
from xcit_mm.checks.detection import leave_out_masks
from xcit_mm.engine.detection import DetectionDataHook, innermost
from xcit_mm.engine.setup import build_runner
from xcit_mm.errors import UsageError
from xcit_mm.resilience.bad_images import guard_loading

pytestmark = pytest.mark.usefixtures('one_thread')

CLASSES = ('red', 'green')
# By image: class, x, y, width, height.
SCENES = {
    '0.png': [('green', 2, 3, 20, 18)],
    '1.png': [('red', 30, 30, 16, 20), ('green', 5, 5, 12, 12)],
    '2.png': [('red', 8, 20, 40, 40), ('red', 0, 0, 5, 6)],
    '3.png': [('green', 40, 10, 20, 50)],
}
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]
WITH_MASKS = [PIPELINE[0], dict(type='LoadAnnotations', with_bbox=True, with_mask=True), PIPELINE[2]]


def coco(scenes=SCENES, categories=CLASSES, first=1):
    """Content of an annotation file; ids are counted from ``first``."""
    ids = {name: first + i for i, name in enumerate(categories)}
    images = [dict(id=first + i, file_name=name, height=64, width=64) for i, name in enumerate(scenes)]
    annotations = []
    for image, objects in zip(images, scenes.values()):
        for name, x, y, w, h in objects:
            row = dict(id=first + len(annotations), image_id=image['id'], category_id=ids[name], bbox=[x, y, w, h])
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(dict(row, area=w * h, iscrowd=0, segmentation=[corners]))
    rows = [dict(id=ids[name], name=name, supercategory='none') for name in categories]
    return dict(images=images, annotations=annotations, categories=rows)


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'images').mkdir()
    for name in SCENES:
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / 'images' / name)
    return tmp_path


@pytest.fixture
def log(monkeypatch):
    """What is written into the log."""
    messages = []
    monkeypatch.setattr(MMLogger, 'callHandlers', lambda self, record: messages.append(record.getMessage()))
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.INFO)
    yield messages
    logger.setLevel(level)


def write(root, content, name='annotations.json'):
    (root / name).write_text(json.dumps(content))
    return str(root / name)


def dataset_cfg(root, content=None, name='annotations.json', classes=CLASSES, **more):
    if content is not None:
        write(root, content, name)
    cfg = dict(type='CocoDataset', data_root=str(root), ann_file=name, data_prefix=dict(img='images/'))
    return {**cfg, **dict(metainfo=dict(classes=classes), pipeline=PIPELINE, serialize_data=False), **more}


def build(dataset, evaluator=None, split='test'):
    """Data set and evaluator as a run of the tools has them."""
    parts = {f'_{split}_dataloader': dict(dataset=dataset), f'_{split}_evaluator': evaluator}
    runner = SimpleNamespace(cfg=Config(dict(default_scope='mmdet')), **parts)
    guard_loading(runner)
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = DATASETS.build(getattr(runner, f'_{split}_dataloader')['dataset'])
        if evaluator is None:
            return built
        evaluator = Evaluator(getattr(runner, f'_{split}_evaluator'))
    evaluator.dataset_meta = built.metainfo
    DetectionDataHook._join(SimpleNamespace(dataloader=SimpleNamespace(dataset=built), evaluator=evaluator), split)
    return built, evaluator


def score(dataset, evaluator, detect=lambda name: SCENES[name], classes=CLASSES):
    """The metric's result for a detector that finds what ``detect`` gives for the name of an image."""
    built, evaluator = build(dataset, evaluator)
    samples = []
    for i in range(len(built)):
        info = built.get_data_info(i)
        objects = detect(info['img_path'].split('/')[-1])
        corners = torch.tensor([[x, y, x + w, y + h] for _, x, y, w, h in objects], dtype=torch.float).reshape(-1, 4)
        found = dict(bboxes=corners, scores=torch.ones(len(objects)))
        found['labels'] = torch.tensor([classes.index(name) for name, *_ in objects], dtype=torch.long)
        samples.append(dict(img_id=info['img_id'], ori_shape=(64, 64), pred_instances=found))
    evaluator.process(samples)
    return evaluator.evaluate(len(built))


METRIC = dict(type='CocoMetric', metric='bbox')


def other_order(content):
    content['categories'].reverse()


def other_ids(content):
    for table, key in (('categories', 'category_id'), ('images', 'image_id')):
        for row in content[table]:
            row['id'] = 100 - 7 * row['id']
        for row in content['annotations']:
            row[key] = 100 - 7 * row[key]


def from_zero(content):
    content.update(coco(first=0))


def with_unused_root(content):
    content['categories'].insert(0, dict(id=0, name='shapes', supercategory='none'))


def text_categories(content):
    for row in content['annotations']:
        row['category_id'] = str(row['category_id'])


def text_images(content):
    for row in content['images']:
        row['id'] = f'{row["id"]:04d}'


def text_both(content):
    text_images(content)
    for row in content['annotations']:
        row['image_id'] = f'{row["image_id"]:04d}'


def mixed_images(content):
    for row in content['images'][::2]:
        row['id'] = str(row['id'])


def without_optional_keys(content):
    for row in content['annotations']:
        del row['iscrowd'], row['area'], row['segmentation']


def text_flags(content):
    for row in content['annotations']:
        row.update(iscrowd='0')


SAME = [
    other_order,
    other_ids,
    from_zero,
    with_unused_root,
    text_categories,
    text_images,
    text_both,
    mixed_images,
    without_optional_keys,
    text_flags,
]


@pytest.mark.parametrize('ann_file', [False, True])
@pytest.mark.parametrize('change', SAME)
@pytest.mark.parametrize('classes', [CLASSES, CLASSES[::-1]])
def test_labels_and_ap_are_the_same_however_the_file_is_written(change, classes, ann_file, root):
    content = coco()
    change(content)
    cfg = dataset_cfg(root, content, classes=classes)
    training = build(cfg, split='train')
    for i in range(len(training)):
        info = training.get_data_info(i)
        expected = [(classes.index(name), [x, y, x + w, y + h]) for name, x, y, w, h in SCENES[info['img_path'][-5:]]]
        assert [(one['bbox_label'], one['bbox']) for one in info['instances']] == expected
    metric = dict(METRIC, classwise=True, ann_file=str(root / 'annotations.json') if ann_file else None)
    found = score(dict(cfg, test_mode=True), metric, classes=classes)
    assert found['coco/bbox_mAP'] == found['coco/red_precision'] == found['coco/green_precision'] == 1
    half = score(
        dict(cfg, test_mode=True), metric, lambda name: [o for o in SCENES[name] if o[0] == 'red'], classes=classes
    )
    assert (half['coco/red_precision'], half['coco/green_precision'], half['coco/bbox_mAP']) == (1, 0, 0.5)


def test_another_order_in_the_file_is_said_with_both_lists(root, log):
    content = coco()
    build(dataset_cfg(root, content))
    assert not any('another order' in line for line in log)
    other_order(content)
    build(dataset_cfg(root, content))
    (line,) = (line for line in log if 'another order' in line)
    assert [row.split() for row in line.splitlines()[1:4]] == [
        ['file', 'config'],
        ['0', 'green', 'red'],
        ['1', 'red', 'green'],
    ]


def test_written_results_have_the_ids_of_the_file(root):
    content = coco()
    other_ids(content)
    for format_only in (False, True):
        metric = dict(METRIC, outfile_prefix=str(root / f'out_{format_only}'), format_only=format_only)
        score(dataset_cfg(root, content, test_mode=True), metric)
        rows = json.loads((root / f'out_{format_only}.bbox.json').read_text())
        expected = {(row['image_id'], row['category_id'], tuple(row['bbox'])) for row in content['annotations']}
        assert {(row['image_id'], row['category_id'], tuple(row['bbox'])) for row in rows} == expected


@pytest.mark.parametrize('indices', [2, -1, [0, 2]])
def test_a_part_of_the_data_is_scored_alone(indices, root):
    cfg = dataset_cfg(root, coco(), test_mode=True, indices=indices)
    metric = dict(METRIC, ann_file=str(root / 'annotations.json'))
    assert score(cfg, metric)['coco/bbox_mAP'] == 1
    assert score(cfg, [metric, dict(METRIC, prefix='again')])['again/bbox_mAP'] == 1


def test_a_metric_with_a_file_of_other_annotations_is_refused(root):
    """Whose images have the same ids, names and sizes."""
    other = {name: [(c, x + 3, y, w, h) for c, x, y, w, h in objects] for name, objects in SCENES.items()}
    metric = dict(METRIC, ann_file=write(root, coco(other), 'other.json'))
    cfg = dataset_cfg(root, coco(), test_mode=True)
    with pytest.raises(UsageError, match='other annotations for 4 of 4 images') as error:
        build(cfg, metric)
    assert 'other.json' in str(error.value) and 'annotations.json' in str(error.value)
    few = dict(METRIC, ann_file=write(root, coco(dict(list(SCENES.items())[:1])), 'few.json'))
    with pytest.raises(UsageError, match='3 of 4 images for test .* are not in .*few.json'):
        build(cfg, few)


def test_a_metric_with_a_file_of_more_images_scores_those_of_the_data(root):
    metric = dict(METRIC, ann_file=write(root, coco(), 'all.json'))
    part = coco(dict(list(SCENES.items())[:2]))
    assert score(dataset_cfg(root, part, test_mode=True), metric)['coco/bbox_mAP'] == 1
    # And one of which the data set's file has no annotations.
    assert score(dataset_cfg(root, {**part, 'annotations': []}, test_mode=True), metric)['coco/bbox_mAP'] == 1


def test_a_metric_whose_file_is_not_there_takes_that_of_the_data(root, log):
    metric = dict(METRIC, ann_file=str(root / 'moved.json'))
    assert score(dataset_cfg(root, coco(), test_mode=True), metric)['coco/bbox_mAP'] == 1
    assert any('moved.json' in line and 'annotations.json' in line for line in log)


def concat(*parts):
    return dict(type='ConcatDataset', datasets=list(parts))


def test_files_with_other_orders_side_by_side(root):
    names = list(SCENES)
    first = coco({name: SCENES[name] for name in names[:2]})
    second = coco({name: SCENES[name] for name in names[2:]}, CLASSES[::-1], first=50)
    parts = [dataset_cfg(root, part, f'{i}.json', test_mode=True) for i, part in enumerate((first, second))]
    assert score(concat(*parts), METRIC)['coco/bbox_mAP'] == 1
    with pytest.raises(UsageError, match='2 images whose id another one has too'):
        build(concat(parts[0], parts[0]), METRIC)
    with pytest.raises(UsageError, match='2 of 4 images'):
        build(concat(*parts), dict(METRIC, ann_file=str(root / '0.json')))


def test_users_subclasses_are_checked_too(root):
    from mmdet.datasets import CocoDataset
    from mmdet.evaluation import CocoMetric

    class Shapes(CocoDataset):
        METAINFO = dict(classes=CLASSES, palette=[(1, 2, 3), (4, 5, 6)])

    class ShapesMetric(CocoMetric):
        default_prefix = 'shapes'

    content = coco()
    other_order(content)
    cfg = dataset_cfg(root, content, test_mode=True)
    cfg.update(type=Shapes, metainfo=dict())
    assert score(cfg, dict(METRIC, type=ShapesMetric))['shapes/bbox_mAP'] == 1
    built = build(dict(cfg))
    assert isinstance(built, Shapes) and len(copy.deepcopy(built)) == 4


def test_classes_with_ways_of_their_own_follow_the_config_or_are_refused(root):
    from mmdet.datasets import CocoDataset
    from mmdet.evaluation import CocoMetric

    class OwnParsing(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return dict(super().parse_data_info(raw_data_info), day='Monday')

    class OwnReading(CocoDataset):
        def load_data_list(self):
            return super().load_data_list()

    class OwnScoring(CocoMetric):
        def compute_metrics(self, results):
            return super().compute_metrics(results)

    content = coco()
    other_order(content)
    cfg = dataset_cfg(root, content, test_mode=True, indices=3)
    metric = dict(METRIC, ann_file=str(root / 'annotations.json'))
    assert score(dict(cfg, type=OwnParsing), metric)['coco/bbox_mAP'] == 1
    assert score(cfg, dict(metric, type=OwnScoring))['coco/bbox_mAP'] == 1
    with pytest.raises(UsageError, match='OwnScoring with classwise=True writes results in the order of the ids'):
        build(dict(cfg, metainfo=dict(classes=CLASSES[::-1])), dict(metric, type=OwnScoring, classwise=True))
    with pytest.raises(UsageError, match='labels in the order of the file'):
        build(dict(cfg, type=OwnReading), metric)
    write(root, coco())
    assert score(dict(cfg, type=OwnReading), metric)['coco/bbox_mAP'] == 1


def test_duplicate_names_are_refused_with_both_ids(root):
    content = coco()
    content['categories'].insert(0, dict(id=0, name='green'))
    with pytest.raises(UsageError, match="2 categories of the name 'green': id 0 with 0 annotations, id 2 with 3"):
        build(dataset_cfg(root, content))
    content['categories'][0]['name'] = content['categories'][1]['name'] = 'blue'  # of which the config has none
    assert len(build(dataset_cfg(root, content, classes=('green',), filter_cfg=None))) == 4


def test_a_file_with_fewer_categories_keeps_the_labels(root, log):
    content = coco({'0.png': SCENES['0.png']}, categories=('green',))
    assert score(dataset_cfg(root, content, test_mode=True), METRIC)['coco/bbox_mAP'] == 1
    assert any('classes have no object in the data for test (red)' in line for line in log)


def test_classes_of_coco_for_data_of_ones_own_are_named(root):
    cfg = dataset_cfg(root, coco(), metainfo=dict())
    with pytest.raises(UsageError, match='the config names no classes, so that the 80 of COCO hold.*red, green'):
        build(cfg)


# What cannot be measured.


def test_what_cannot_be_measured_is_no_number(root, log, capsys):
    scenes = {'0.png': SCENES['0.png']}
    found = score(dataset_cfg(root, coco(scenes), test_mode=True), dict(METRIC, classwise=True))
    assert found == {'coco/green_precision': 1, **{f'coco/bbox_mAP{end}': 1 for end in ('', '_50', '_75', '_s')}}
    assert '-1' not in capsys.readouterr().out
    table = next(line for line in log if '| category' in line)
    assert 'n/a' in table and 'nan' not in table
    assert not any('-1.0' in line for line in log)


def test_the_table_of_classes_is_written_and_its_numbers_are_kept_out_of_the_result(root, log):
    assert not any('precision' in key for key in score(dataset_cfg(root, coco(), test_mode=True), METRIC))
    assert any('| red ' in line and '| green ' in line for line in log)


def test_a_model_that_finds_nothing_has_an_ap_of_zero(root, log):
    found = score(dataset_cfg(root, coco(), test_mode=True), METRIC, lambda name: [])
    assert found['coco/bbox_mAP'] == 0 and any('has found no object' in line for line in log)


def test_recall_of_proposals_is_measured(root):
    found = score(dataset_cfg(root, coco(), test_mode=True), dict(METRIC, metric='proposal'))
    assert found['coco/AR@100'] == 1 and 'coco/AR_l@1000' not in found


def crowd(content):
    for row in content['annotations']:
        row['iscrowd'] = 1


def empty(content):
    content['annotations'] = []


def unknown(content):
    for row in content['annotations']:
        row['category_id'] = 'red'


NOTHING = {
    crowd: r'crowd \(iscrowd=1\): 6 \(id 1, 2, 3, ...\).*set iscrowd to 0',
    empty: '0 annotations',
    unknown: r"unknown category: 6 .*category_id 'red', and the ids of its categories are 1, 2",
}


@pytest.mark.parametrize('change', NOTHING)
def test_nothing_to_score_is_refused_unless_results_are_only_written(change, root):
    content = coco()
    change(content)
    cfg = dataset_cfg(root, content, test_mode=True)
    with pytest.raises(UsageError, match='no object to score in the data for test: .*' + NOTHING[change]):
        build(cfg, METRIC)
    assert score(cfg, dict(METRIC, format_only=True, outfile_prefix=str(root / 'out'))) == {}
    assert json.loads((root / 'out.bbox.json').read_text())


@pytest.mark.parametrize('change', NOTHING)
def test_nothing_to_train_on_is_refused(change, root):
    content = coco()
    change(content)
    write(root, content)
    with pytest.raises(UsageError, match=NOTHING[change]):
        check_training(dataset_cfg(root, filter_cfg=dict(filter_empty_gt=True)))
    with pytest.raises(UsageError, match='no object to train on: .*' + NOTHING[change]):
        check_training(dataset_cfg(root))


class Loop(BaseLoop):
    """As much of one as the hook looks at."""

    def __init__(self, dataset, evaluator=None):
        self.dataloader, self.evaluator = SimpleNamespace(dataset=dataset), evaluator

    def run(self):
        pass


@pytest.mark.parametrize('size, there', [('s', True), ('l', False)])
def test_the_best_checkpoint_is_chosen_by_what_can_be_measured(size, there, root):
    loop = Loop(*build(dataset_cfg(root, coco(), test_mode=True), METRIC))
    runner = SimpleNamespace(
        _val_loop=loop, hooks=[CheckpointHook(save_best=['coco/bbox_mAP', f'coco/bbox_mAP_{size}'])]
    )
    with nullcontext() if there else pytest.raises(UsageError, match="save_best='coco/bbox_mAP_l' cannot be measured"):
        DetectionDataHook._check_best(runner)


def check_training(dataset):
    built = build(dataset, split='train')
    DetectionDataHook._check_training(SimpleNamespace(_train_loop=Loop(built)))
    return built


def test_a_part_without_objects_trains_beside_one_with_them(root):
    parts = [
        dataset_cfg(root, coco(), 'labelled.json'),
        dataset_cfg(root, {**coco(), 'annotations': []}, 'others.json'),
    ]
    assert len(list(innermost(check_training(concat(*parts))))) == 2


def test_what_training_leaves_out_is_counted_by_every_reason(root, log):
    content = coco()
    rows = content['annotations']
    rows[0]['iscrowd'] = 1
    rows[1]['area'] = 0
    rows[2]['bbox'] = [5, 5, 0.5, 9]
    rows[3]['bbox'] = [0.1, 0.1, 0.5, 0.5]
    content['images'].append(dict(id=9, file_name='9.png', height=8, width=64))
    rows.append(dict(rows[4], id=9, image_id=9, bbox=[1, 1, 5, 5]))
    check_training(dataset_cfg(root, content, filter_cfg=dict(filter_empty_gt=True, min_size=32)))
    text = '\n'.join(log)
    for words in (
        '3 of 7 annotations are left out',
        'area of 0 or less: 1 (id 2)',
        'box smaller than a pixel: 1 (id 3)',
        'normalised box (all numbers between 0 and 1): 1 (id 4)',
        'crowd (iscrowd=1): 1 (id 1)',
        'a side of less than 32 pixels (filter_cfg.min_size): 1 (id 9)',
        '3 images with 2 objects (red 1, green 1)',
        'no object: 1 (id 2)',
    ):
        assert words in text


# Boxes that are no [x, y, width, height] in pixels.


LARGE = {name: [('red', 20, 8 * i, 40, 38), ('green', 30 - 6 * i, 30, 30, 32)] for i, name in enumerate(SCENES)}


def rewritten(function):
    content = coco(LARGE)
    for row in content['annotations']:
        row['bbox'] = function(*row['bbox'])
    return content


BOXES = {
    'corners': (lambda x, y, w, h: [x, y, x + w, y + h], r'read as \[x1, y1, x2, y2\], 8 of them lie inside'),
    'centres': (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], r'read as \[centre x, centre y, width, height\]'),
    'normalised': (lambda *box: [value / 64 for value in box], 'its 8 boxes are normalised'),
}


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('kind', BOXES)
def test_boxes_that_are_written_in_another_way_are_named(kind, split, root):
    with pytest.raises(UsageError, match=BOXES[kind][1]):
        build(dataset_cfg(root, rewritten(BOXES[kind][0]), test_mode=split == 'test'), split=split)


def test_boxes_at_the_edges_are_no_mistake(root, log):
    """Of objects that fill their image, with a pixel or two too much; and of some that reach far outside."""
    full = {name: [('red', 0, 0, 66, 65)] for name in SCENES}
    assert len(build(dataset_cfg(root, coco(full)))) == 4
    cut = {**SCENES, '3.png': [('green', 40, 10, 60, 50), ('red', -20, 5, 30, 20)]}
    build(dataset_cfg(root, coco(cut)))
    assert any('2 of 7 boxes reach far outside of their image' in line for line in log)


# Boxes alone.


def boxes_alone(content, empty_list):
    for row in content['annotations']:
        row.pop('segmentation')
        if empty_list:
            row['segmentation'] = []
    return content


@pytest.mark.parametrize('empty_list', [False, True])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_masks_of_boxes_alone_are_refused_with_the_way_out(split, empty_list, root):
    cfg = dataset_cfg(root, boxes_alone(coco(), empty_list), pipeline=WITH_MASKS, test_mode=split == 'test')
    with pytest.raises(
        UsageError, match='none of its 6 annotations has a mask.*faster_rcnn_xcit.*mask_head=None.*xcit-mm finetune'
    ):
        build(cfg, split=split)
    with pytest.raises(UsageError, match="the metric 'segm' compares masks, and 6 of 6 annotations have none"):
        build(dict(cfg, pipeline=PIPELINE, test_mode=True), dict(METRIC, metric=['bbox', 'segm']))


def test_a_mask_rcnn_without_its_mask_head_trains_on_boxes_alone(small_models, small_digits, tmp_path, capsys):
    for split in ('train', 'val'):
        path = small_digits / 'coco' / 'annotations' / f'instances_{split}2017.json'
        write(tmp_path, boxes_alone(json.loads(path.read_text()), False), f'{split}.json')
    cfg = small_cfg(small_models, 'detector', small_digits, tmp_path / 'run')
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'train.json')
    cfg.val_dataloader.dataset.ann_file = cfg.val_evaluator.ann_file = str(tmp_path / 'val.json')
    cfg.merge_from_dict({'model.roi_head.mask_head': None, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    cfg.param_scheduler = None
    leave_out_masks(cfg)
    assert 'The model gives no masks: train_dataloader loads no masks' in capsys.readouterr().out
    assert cfg.val_evaluator.metric == ['bbox']
    build_runner(cfg).train()
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


def test_masks_that_a_model_does_not_give_are_no_metric(small_models, small_digits, tmp_path):
    cfg = small_cfg(small_models, 'detector', small_digits, tmp_path)
    cfg.merge_from_dict({'model.roi_head.mask_head': None, 'val_evaluator.metric': 'segm'})
    with pytest.raises(UsageError, match="val_evaluator.metric='segm' compares masks"):
        leave_out_masks(cfg)
    cfg = small_cfg(small_models, 'detector', small_digits, tmp_path)
    leave_out_masks(cfg)
    assert cfg.train_dataloader.dataset.pipeline[1].with_mask


def test_a_run_without_an_object_ends_before_it_begins(small_models, small_digits, tmp_path):
    path = small_digits / 'coco' / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    crowd(content)
    cfg = small_cfg(small_models, 'detector', small_digits, tmp_path / 'run')
    cfg.train_dataloader.dataset.ann_file = write(tmp_path, content)
    with pytest.raises(UsageError, match='no object to train on: .*crowd'):
        build_runner(cfg).train()
    assert not list((tmp_path / 'run').glob('*.pth'))


# Files.


def refused(cfg):
    loader = dict(dataset=dict(cfg))
    with pytest.raises(UsageError) as error:
        check_data(Config(dict(default_scope='mmdet', train_dataloader=loader)), ('train',))
    return str(error.value)


OTHERS = {
    'voc.xml': ('<annotation>\n<folder>a</folder>', "Pascal VOC annotation of one image: type='VOCDataset'"),
    'labelme.json': ('{"version": "5", "shapes": [], "imagePath": "0.png"}', 'LabelMe'),
    'yolo.txt': ('0 0.5 0.5 0.25 0.1\n', 'YOLO annotation of one image'),
    'train.txt': ('0.png\n1.png\n', 'a list of names'),
    'data.yaml': ('train: images\nnc: 2\n', 'YOLO describes data sets with'),
    'boxes.csv': ('image,class,x1,y1,x2,y2\n0.png,red,1,2,3,4\n', 'comma-separated'),
    'page.json': ('<!DOCTYPE html><html>', 'a saved web page'),
    'cut.json': ('{"images": [{"file_name": "0.p', 'may be cut off'),
    'image.png': ('\x89PNG\r\n', 'an image'),
}


@pytest.mark.parametrize('name', OTHERS)
def test_files_of_other_formats_are_called_what_they_are(name, root):
    content, words = OTHERS[name]
    (root / name).write_bytes(content.encode('latin1'))
    message = refused(dataset_cfg(root, name=name))
    assert words in message and str(root / name) in message and 'cocodataset.org' not in message


PARSED = {
    'detections': ([dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], score=0.5)], 'a list of detections'),
    'createml': ([dict(image='0.png', annotations=[])], 'CreateML'),
    'panoptic': ({**coco(), 'annotations': [dict(image_id=1, segments_info=[])]}, 'CocoPanopticDataset'),
}


@pytest.mark.parametrize('name', PARSED)
def test_json_of_other_formats_is_called_what_it_is(name, root):
    content, words = PARSED[name]
    with pytest.raises(UsageError, match=words):
        build(dataset_cfg(root, content))


def test_a_folder_of_annotations_is_called_what_it_is(root):
    (root / 'labels').mkdir()
    for i in range(3):
        (root / 'labels' / f'{i}.xml').write_text('<annotation>')
    message = refused(dataset_cfg(root, name='labels'))
    assert 'is a folder' in message and 'Pascal VOC' in message


def test_images_elsewhere_are_found(root):
    other_suffix = {name.replace('.png', '.jpg'): objects for name, objects in SCENES.items()}
    assert 'It has 0.png: the suffixes differ' in refused(dataset_cfg(root, coco(other_suffix)))
    with_folder = {f'images/{name}': objects for name, objects in SCENES.items()}
    assert 'set data_prefix.img to the folder above' in refused(dataset_cfg(root, coco(with_folder)))
    message = refused(dataset_cfg(root, coco(), data_prefix=dict(img='')))
    assert 'images/0.png is there: correct data_prefix.img' in message and 'cocodataset.org' not in message


def test_images_are_looked_for_where_they_are_listed_last(root):
    content = coco({'other.png': SCENES['0.png'] * 1000})
    assert 'none of the first 1 images' in refused(dataset_cfg(root, dict(sorted(content.items()))))


@pytest.mark.parametrize('folder', ['', 'part\\', 'C:\\Users\\me\\images\\'])
def test_paths_of_windows_are_read_where_they_lie(folder, root, log):
    content = coco({f'{folder or "."}{name}' if folder else name: objects for name, objects in SCENES.items()})
    if folder == 'part\\':
        (root / 'images' / 'part').mkdir()
        for name in SCENES:
            (root / 'images' / name).rename(root / 'images' / 'part' / name)
    cfg = dataset_cfg(root, content, test_mode=True)
    check_data(Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=cfg))), ('test',))
    assert score(cfg, METRIC)['coco/bbox_mAP'] == 1
    assert all(build(cfg)[i]['inputs'].float().mean() == 90 for i in range(4))


def test_paths_of_windows_that_are_not_there_are_named(root):
    content = coco({f'a\\{i}.jpg': objects for i, objects in enumerate(SCENES.values())})
    assert 'none of the first 4 images' in refused(dataset_cfg(root, content))


def test_a_test_without_one_image_that_can_be_read_is_refused(small_models, small_digits, tmp_path):
    cfg = small_cfg(small_models, 'detector', small_digits, tmp_path)
    cfg.test_dataloader.dataset.data_prefix.img = str(tmp_path)
    with pytest.raises(UsageError, match='none of the 4 images for test could be read'):
        build_runner(cfg).test()
