"""Own data for segmentors: maps, classes, settings and metrics that do not fit are refused before anything runs."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from processes import ROOT

from xcit_mm.checks.config import check_config
from xcit_mm.checks.data import check_data
from xcit_mm.datasets.loading import BadImageReport
from xcit_mm.engine.setup import build_runner
from xcit_mm.engine.tta import tta_pipeline, use_tta
from xcit_mm.errors import UsageError
from xcit_mm.resilience.bad_images import guard_loading

CLASSES = ('background', 'red', 'green')
SPLITS = dict(train='training', val='validation', test='validation')
SIZE = 16


def labels(*numbers, dtype=np.uint8):
    """A map of stripes with these numbers."""
    return np.repeat(np.array(numbers, dtype), SIZE)[:: len(numbers)][:SIZE, None] * np.ones((1, SIZE), dtype)


def write(root, maps, split='training', image='{}.jpg', name='{}.png', **options):
    for kind in ('images', 'annotations'):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(maps):
        Image.new('RGB', array.shape[1::-1], (number, 0, 0)).save(root / 'images' / split / image.format(number))
        picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
        picture.save(root / 'annotations' / split / name.format(number), **options)


def config(root, classes=CLASSES, zero=False, **data):
    cfg = Config.fromfile(ROOT / 'configs' / 'sem_fpn_xcit_n6_8_digits.py')
    cfg.model.data_preprocessor.size = (2 * SIZE, 2 * SIZE)
    cfg.model.backbone.arch = dict(embed_dims=32, depth=6, num_heads=2)
    cfg.model.neck.update(in_channels=[32] * 4, out_channels=32)
    cfg.model.decode_head.update(
        in_channels=[32] * 4, channels=32, num_classes=len(classes), loss_decode=dict(type='CrossEntropyLoss')
    )
    for split in SPLITS:
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.pop('metainfo')
        loader.dataset.update(data_root=str(root), metainfo=dict(classes=list(classes)), reduce_zero_label=zero, **data)
        for step in loader.dataset.pipeline:
            if 'reduce_zero_label' in step:
                step.reduce_zero_label = zero
            if step.type == 'Resize':
                step.scale = (2 * SIZE, 2 * SIZE)
    return cfg


@pytest.fixture
def root(tmp_path):
    """Four pictures and maps of three classes for training, two for validation."""
    write(tmp_path, [labels(0, 1, 2)] * 4)
    write(tmp_path, [labels(0, 1, 2)] * 2, 'validation')
    return tmp_path


def refused(cfg, *splits):
    with pytest.raises(UsageError) as error:
        check_data(cfg, splits or ('train', 'val'))
    return str(error.value)


def test_good_data_pass_without_a_word(root, capsys):
    check_data(config(root), ('train', 'val', 'test'))
    assert 'Note' not in capsys.readouterr().out


# What the maps hold.


def colours():
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:8] = (200, 30, 40)
    return image


BAD = {
    'masks of 0 and 255': (labels(0, 255), ('The maps hold the numbers 0, 255', 'masks of 0 and 255', 'Write 1')),
    'a mask of one bit': (labels(0, 1) > 2, ('no pixel of any class but background', 'absent: red, green')),
    'grey values': (labels(0, 76, 149), ('numbers 0, 76, 149', 'grey values')),
    'only ignored': (labels(255), ('no pixel of any class is labelled',)),
    'colours': (colours(), ('pictures in colours', '3 channels', '(200, 30, 40)', 'segmentation.md')),
    'one number in three channels': (np.stack([labels(0, 1, 2)] * 3, -1), ('first are equal', 'keep one channel')),
    'colours and alpha': (np.dstack([colours(), labels(255)]), ('4 channels',)),
    'numbers of instances': (labels(24001, 24002, dtype=np.uint16), ('16 bits', 'up to 24002', 'instances')),
}


@pytest.mark.parametrize('name', BAD)
def test_maps_without_numbers_of_classes_are_refused(name, root):
    bad, words = BAD[name]
    write(root, [bad] * 4)
    message = refused(config(root))
    assert 'the data for train' in message and all(word in message for word in words), message
    check_data(config(root), ('test',))


def test_masks_of_0_and_255_are_refused_in_testing_too(root):
    write(root, [labels(0, 255)] * 2, 'validation')
    assert 'nothing to score' in refused(config(root), 'test')
    message = refused(config(root, zero=True), 'test')
    assert 'set reduce_zero_label=False' in message


def test_maps_with_a_palette_are_numbers(root, capsys):
    picture = Image.fromarray(labels(0, 1, 2))
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for number in range(4):
        picture.save(root / 'annotations' / 'training' / f'{number}.png')
    check_data(config(root), ('train',))
    assert not capsys.readouterr().out


def test_a_class_without_a_pixel_is_named(root, capsys):
    write(root, [labels(0, 1)] * 4)
    check_data(config(root), ('train', 'val'))
    (line,) = capsys.readouterr().out.splitlines()
    assert 'train' in line and '1 of 3 classes is labelled' in line and line.endswith('cannot be learnt: green.')


def test_validation_of_background_alone_is_named_and_goes_on(root, capsys):
    write(root, [labels(0)] * 2, 'validation')
    check_data(config(root), ('train', 'val'))
    assert 'cannot be scored: red, green' in capsys.readouterr().out


def test_data_sets_that_are_joined_are_looked_at_together(root, capsys):
    write(root / 'more', [labels(2)] * 2)
    write(root, [labels(0, 1)] * 4)
    cfg = config(root)
    parts = [cfg.train_dataloader.dataset, dict(cfg.train_dataloader.dataset, data_root=str(root / 'more'))]
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    check_data(cfg, ('train',))
    assert not capsys.readouterr().out


def test_a_rare_class_of_many_maps_is_looked_for(root, monkeypatch, capsys):
    """Where a sample shows one class alone, the others are read as well; else a part is enough."""
    monkeypatch.setattr('xcit_mm.checks.label_maps.LOOKED_AT', 3)
    monkeypatch.setattr('xcit_mm.checks.label_maps.SECONDS', 0)
    write(root, [*[labels(0)] * 4, labels(0, 2), *[labels(0)] * 5])
    check_data(config(root), ('train',))
    assert not capsys.readouterr().out
    write(root, [labels(0)] * 10)
    assert 'in 10 maps' in refused(config(root), 'train')


@pytest.mark.parametrize('zero', [False, True])
def test_a_void_label_is_told_once_and_can_be_declared(zero, root, capsys):
    numbers = [labels(1, 2, 3, 12)] * 4 if zero else [labels(0, 1, 2, 11)] * 4
    write(root, numbers)
    void = 12 if zero else 11
    check_data(config(root, zero=zero), ('train',))
    (line,) = capsys.readouterr().out.splitlines()
    assert f'4 of 4 maps have numbers that are no class ({void};' in line and '25.0 %, are ignored' in line
    assert f'ignore_index={void}' in line
    declared = config(root, zero=zero, ignore_index=void)
    check_data(declared, ('train',))
    assert not capsys.readouterr().out
    for cfg, noted in ((config(root, zero=zero), 4), (declared, 0)):
        report = BadImageReport(str(root / f'bad_{noted}.txt'))
        loaded = built(cfg, 'train', report.path)
        found = {
            int(n) for item in map(loaded.__getitem__, range(4)) for n in item['data_samples'].gt_sem_seg.data.unique()
        }
        assert found == {0, 1, 2, 255}
        assert len(report.update()) == noted


class Loaders:
    """What guard_loading changes of a runner."""

    def __init__(self, cfg):
        self.cfg = cfg
        for split in SPLITS:
            setattr(self, f'_{split}_dataloader', cfg[f'{split}_dataloader'])


def built(cfg, split, report=None):
    """The data set as a run builds it."""
    for name in SPLITS:
        cfg[f'{name}_dataloader'].dataset.serialize_data = False
    loaders = Loaders(cfg)
    guard_loading(loaders, report)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(getattr(loaders, f'_{split}_dataloader')['dataset'])


def test_a_run_warns_once_of_a_void_label(root):
    write(root, [labels(0, 1, 2, 11)] * 4)
    cfg = config(root)
    cfg.update(work_dir=str(root / 'run'), launcher='none', experiment_name='void_label')
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    lines = []
    runner = build_runner(cfg)
    runner.logger.warning = lines.append
    runner.train()
    named = [line for line in lines if line.startswith('bad image ')]
    assert len(named) == 1 and 'classes that the data set has not (11; there are 3' in named[0]
    assert any('bad images so far: 4 (these pixels are ignored: 4)' in line for line in lines)


def test_numbers_that_begin_at_one(root, capsys):
    write(root, [labels(1, 2, 3)] * 4)
    assert 'set reduce_zero_label=True' in refused(config(root), 'train')
    write(root, [labels(0, 1, 2)] * 4)
    check_data(config(root, zero=True), ('train',))
    assert 'green. If 0 in the maps is the first class' in capsys.readouterr().out


# Folders.


def test_images_of_another_suffix(root):
    for path in (root / 'images' / 'training').iterdir():
        path.rename(path.with_suffix('.JPG'))
    message = refused(config(root), 'train')
    for words in ('no image (*.jpg)', '.JPG (4)', "img_suffix='.JPG'"):
        assert words in message
    assert 'ADE20K' not in message and 'download' not in message


def test_own_images_under_the_ade20k_config(root):
    cfg = Config.fromfile(ROOT / 'configs' / 'sem_fpn_xcit_s12_8_80k_ade20k.py')
    cfg.train_dataloader.dataset.data_root = str(root)
    (root / 'annotations' / 'training' / '0.png').unlink()
    message = refused(cfg, 'train')
    assert 'images without a map: 1 (0)' in message and "type='BaseSegDataset'" in message
    assert 'download' not in message and '20,210' not in message


def test_images_that_are_left_out_are_counted(root, capsys):
    Image.new('RGB', (SIZE, SIZE)).save(root / 'images' / 'training' / 'more.PNG')
    check_data(config(root), ('train',))
    assert '1 images in' in (line := capsys.readouterr().out) and '.PNG (1)' in line


@pytest.mark.parametrize(
    'name, words',
    [
        ('{}_L.png', "seg_map_suffix='_L.png'"),
        ('{}.json', 'LabelMe'),
        ('{}.npy', 'NumPy'),
        ('mask{}.png', 'must have the same name'),
    ],
)
def test_maps_of_other_names(name, words, root):
    for number in range(4):
        (root / 'annotations' / 'training' / f'{number}.png').rename(
            root / 'annotations' / 'training' / name.format(number)
        )
    message = refused(config(root), 'train')
    assert 'none of 4 images has a map' in message and words in message, message


def test_a_list_with_suffixes(root):
    (root / 'list.txt').write_text('0.jpg\n1.jpg\n')
    assert 'List them without' in refused(config(root, ann_file='list.txt'), 'train')
    (root / 'list.txt').write_text('0\n1\n')
    check_data(config(root, ann_file='list.txt'), ('train',))


# Settings.


def test_other_classes_in_validation_are_shown_side_by_side(root):
    cfg = config(root)
    cfg.val_dataloader.dataset.update(type='ADE20KDataset', metainfo=None, reduce_zero_label=False)
    message = refused(cfg)
    assert 'has other classes than train_dataloader.dataset' in message and re.search(r'1 +red +building', message)
    cfg = config(root)
    cfg.val_dataloader.dataset.metainfo = dict(classes=['background', 'green', 'red'])
    message = refused(cfg)
    assert re.search(r'1 +red +green', message) and 'another order' in message
    cfg = config(root)
    cfg.test_dataloader.dataset.metainfo = dict(classes=['background', 'green', 'red'])
    assert 'another order' in refused(cfg, 'test')


@pytest.mark.parametrize('split', SPLITS)
def test_zero_means_the_same_everywhere(split, root):
    cfg = config(root)
    cfg[f'{split}_dataloader'].dataset.reduce_zero_label = True
    message = refused(cfg, split)
    assert 'reduce_zero_label=True' in message and 'pipeline reduce_zero_label=False' in message


def test_a_pipeline_that_says_nothing_follows_the_data_set(root):
    cfg = config(root, zero=True)
    for split in SPLITS:
        for step in cfg[f'{split}_dataloader'].dataset.pipeline:
            step.pop('reduce_zero_label', None)
    check_data(cfg, ('train', 'val', 'test'))
    cfg.val_dataloader.dataset.reduce_zero_label = False
    assert 'the same number in a map would be two classes' in refused(cfg)


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'metainfo.classes': 'red'}, "a tuple of one name needs a comma: ('red',)"),
        ({'metainfo.classes': 'background, red'}, "write the names apart: ('background', 'red')"),
        ({'metainfo.classes': ['background', 'red', 'red']}, 'names red more than once'),
        ({'metainfo.classes': ['red']}, 'one class'),
        ({'metainfo': {}}, 'has no classes'),
        ({'metainfo.palette': [(0, 0, 0)]}, 'palette has 1 colours, and there are 3 classes'),
        ({'metainfo.label_map': {1: 0}}, 'does not read metainfo.label_map'),
        ({'type': 'ADE20KDataset'}, 'the type is BaseSegDataset'),
        ({'metainfo.classes': ['background', 'red']}, 'model.decode_head.num_classes is 3'),
    ],
)
def test_classes_that_cannot_be(changes, words, root):
    cfg = config(root)
    for split in SPLITS:
        for key, value in changes.items():
            place, _, name = key.rpartition('.')
            dataset = cfg[f'{split}_dataloader'].dataset
            (dataset[place] if place else dataset)[name] = value
    assert words in refused(cfg)


def test_some_classes_of_a_published_data_set_in_another_order(root):
    cfg = config(root, ('sky', 'wall', 'tree'), type='ADE20KDataset')  # numbers 2, 0 and 4
    write(root, [labels(0, 2, 4)] * 4)
    write(root, [labels(0, 2, 4)] * 2, 'validation')
    check_data(cfg, ('train', 'val'))
    write(root, [labels(0, 1, 3)] * 4)
    assert 'no pixel of any class but wall' in refused(cfg, 'train')


def test_metric_and_heads_ignore_the_same(root):
    cfg = config(root)
    cfg.val_evaluator.ignore_index = 0
    assert 'val_evaluator.ignore_index is 0, and model.decode_head.ignore_index is 255' in refused(cfg)
    cfg.model.decode_head.ignore_index = 0
    check_data(cfg, ('train', 'val'))
    cfg.model.decode_head.ignore_index = cfg.val_evaluator.ignore_index = 11
    assert 'set ignore_index=11 in the data sets' in refused(cfg)
    cfg = config(root)
    cfg.val_evaluator.iou_metrics = ['mIou']
    assert 'mIou' in refused(cfg)


def test_maps_that_nothing_reads(root):
    cfg = config(root)
    cfg.val_dataloader.dataset.data_prefix = dict(_delete_=True, img_path='images/validation')
    assert 'names no folder of label maps, which IoUMetric needs' in refused(cfg)
    cfg.val_evaluator.format_only = True
    cfg.val_dataloader.dataset.pipeline = [
        step for step in cfg.val_dataloader.dataset.pipeline if step.type != 'LoadAnnotations'
    ]
    check_data(cfg, ('train', 'val'))
    cfg = config(root)
    del cfg.train_dataloader.dataset.pipeline[1]
    assert 'no step of its pipeline reads the label maps' in refused(cfg)


def test_weights_of_other_classes(root):
    cfg = config(root)
    cfg.model.decode_head.loss_decode.class_weight = [1.0] * 11
    assert 'class_weight has 11 numbers, and there are 3 classes' in refused(cfg)


# The metric.


def score(maps, predicted, classes=CLASSES):
    cfg = Config(dict(default_scope='mmseg'))
    loaders = type('Runner', (), dict(cfg=cfg, _test_dataloader=dict(dataset=dict(type='BaseSegDataset'))))()
    loaders._test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    guard_loading(loaders)
    from mmengine.registry import METRICS

    with DefaultScope.overwrite_default_scope('mmseg'):
        metric = METRICS.build(loaders._test_evaluator)
    metric.dataset_meta = dict(classes=classes)
    samples = [
        dict(pred_sem_seg=dict(data=torch.as_tensor(p)[None]), gt_sem_seg=dict(data=torch.as_tensor(m)[None]))
        for m, p in zip(maps, predicted)
    ]
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def test_the_mean_says_how_many_classes_are_left_out():
    whole = score([labels(0, 1, 2)], [labels(0, 1, 2)])
    assert whole['mIoU'] == 100 and 'absent_classes' not in whole
    assert score([labels(0)], [labels(0)]) == dict(aAcc=100, mIoU=100, mAcc=100, absent_classes=2)


def test_nothing_that_is_labelled_is_no_result():
    with pytest.raises(UsageError, match='there is nothing to score: no pixel of the 2 label maps'):
        score([labels(255)] * 2, [labels(0)] * 2)


# Test-time augmentation.


def test_tta_reads_and_resizes_as_the_test_pipeline(root):
    cfg = config(root)
    ade = Config.fromfile(ROOT / 'configs' / '_base_' / 'datasets' / 'ade20k.py')
    test = cfg.test_dataloader.dataset.pipeline
    test[0].imdecode_backend = 'pillow'
    *before, augment = tta_pipeline(test, ade.tta_pipeline)
    assert before == [test[0]]
    sizes, flips, load, pack = augment['transforms']
    assert [size['scale'] for size in sizes] == [(round(2 * SIZE * r),) * 2 for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
    assert [flip['prob'] for flip in flips] == [0.0, 1.0]
    assert load == [test[2]] and pack[0]['type'] == 'PackSegInputs'
    *before, augment = tta_pipeline(test)
    assert before == [test[0], test[1]] and len(augment['transforms']) == 3


def test_tta_of_own_data_under_the_ade20k_config(root):
    cfg = config(root)
    cfg.update(work_dir=str(root / 'run'), launcher='none', log_level='WARNING', experiment_name='tta')
    use_tta(cfg)
    cfg.test_dataloader.batch_size = 1
    metrics = build_runner(cfg).test()
    assert 0 <= metrics['mIoU'] <= 100


# The page of the docs.

PAGE = (ROOT / 'docs' / 'segmentation.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE, re.S)


def test_the_config_of_the_docs_trains(tmp_path):
    park = tmp_path / 'data' / 'park'
    for split in ('training', 'validation'):
        write(park, [np.kron(labels(0, 1, 2), np.ones((4, 4), np.uint8))] * 4, split)
    code = BLOCKS[0].replace("'./upernet", f"'{ROOT}/configs/upernet").replace("'data/park/'", f"'{park}/'")
    (tmp_path / 'park.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'park.py')
    check_config(cfg)
    check_data(cfg, ('train', 'val'))
    # Another network, of the size of a test.
    cfg.model.backbone.update(arch=dict(embed_dims=32, depth=4, num_heads=2), out_indices=(0, 1, 2, 3), init_cfg=None)
    cfg.model.decode_head.update(in_channels=[32] * 4, channels=8)
    cfg.model.auxiliary_head.update(in_channels=32, channels=8)
    cfg.update(work_dir=str(tmp_path / 'run'), launcher='none', log_level='WARNING', experiment_name='docs')
    for split in SPLITS:
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    build_runner(cfg).train()
    assert list(tmp_path.glob('run/best_mIoU_*.pth'))


def test_the_conversion_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    masks = Path('data/park/masks/training')
    masks.mkdir(parents=True)
    grey = labels(0, 255)
    picture = Image.fromarray(np.array([0, 1], np.uint8)[(grey > 0).astype(int)])
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(masks / 'palette.png')
    Image.fromarray(grey).save(masks / 'grey.png')
    Image.fromarray(np.stack([grey] * 3, -1)).save(masks / 'colours.png')
    exec(BLOCKS[1], {})
    for path in Path('data/park/annotations/training').iterdir():
        assert np.array_equal(np.asarray(Image.open(path)), grey // 255), path
    assert len(list(Path('data/park/annotations/training').iterdir())) == 3
