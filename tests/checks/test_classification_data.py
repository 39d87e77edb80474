"""Own data for classifiers: labels of folders and lists follow the classes of the config, or are refused."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from processes import ROOT

from xcit_mm.checks.data import check_data
from xcit_mm.datasets.folder_labels import folder_labels
from xcit_mm.engine.classification import find_imagenet_v2
from xcit_mm.engine.setup import build_runner
from xcit_mm.engine.tta import use_tta
from xcit_mm.errors import UsageError
from xcit_mm.resilience.bad_images import guard_loading, use_checked_dataset

NUMBERS = itertools.count()
SPLITS = ('train', 'val', 'test')
COUNTED = [str(i) for i in range(11)]
FOLDERS = tuple(map(str, range(1, 11)))  # as one counts; as text, 10 follows 1


def write(root, folders, splits=('train', 'val'), name='{}.png', number=1):
    """Pictures whose grey value says which folder they are from."""
    for split in splits:
        for value, folder in enumerate(folders):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                Image.new('L', (8, 8), 10 * value).save(root / split / folder / name.format(i))


def config(root, classes=None, number=None, **data):
    cfg = Config.fromfile(ROOT / 'configs' / 'xcit_n12_8_digits.py')
    cfg.model.backbone.arch = dict(embed_dims=32, depth=1, num_heads=2)
    number = number or len(classes)
    cfg.model.head.update(in_channels=32, num_classes=number)
    cfg.model.data_preprocessor.num_classes = number
    for split in SPLITS:
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.pop('metainfo')
        metainfo = {} if classes is None else dict(metainfo=dict(classes=classes))
        loader.dataset.update({'data_root': str(root), **metainfo, **data})
    cfg.val_evaluator.topk = cfg.test_evaluator.topk = (1,)
    return cfg


def checked(cfg, *splits):
    check_data(cfg, splits or SPLITS)
    return cfg


def refused(cfg, *splits):
    with pytest.raises(UsageError) as error:
        check_data(cfg, splits or ('train', 'val'))
    return str(error.value)


class Loaders:
    """What guard_loading changes of a runner."""

    def __init__(self, cfg):
        self.cfg = cfg
        for split in SPLITS:
            setattr(self, f'_{split}_dataloader', cfg[f'{split}_dataloader'])


def labels(cfg, split='train'):
    """Label by folder, as a run reads them."""
    loaders = Loaders(cfg)
    guard_loading(loaders)
    dataset = getattr(loaders, f'_{split}_dataloader')['dataset']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = DATASETS.build(dict(dataset, pipeline=[], serialize_data=False))
    return {item['img_path'].split('/')[-2]: item['gt_label'] for item in map(built.get_data_info, range(len(built)))}


# Folders.


@pytest.mark.parametrize('kind', ['ImageNet', 'CustomDataset'])
@pytest.mark.parametrize('order', [FOLDERS, FOLDERS[::-1], tuple(sorted(FOLDERS))])
def test_labels_of_folders_follow_the_classes(order, kind, tmp_path):
    write(tmp_path, FOLDERS)
    cfg = config(tmp_path, order, type=kind)
    if kind == 'CustomDataset':
        for split in SPLITS:
            dataset = cfg[f'{split}_dataloader'].dataset
            dataset.data_prefix = dataset.pop('split')
    checked(cfg)
    for split in SPLITS:
        assert labels(cfg, split) == {name: label for label, name in enumerate(order)}


def test_a_model_learns_the_names_it_then_gives(tmp_path):
    """Through training, testing and the labels of a run, with folders that sort in another order."""
    write(tmp_path, FOLDERS, number=2)
    cfg = checked(config(tmp_path, FOLDERS))
    cfg.update(work_dir=str(tmp_path / 'run'), launcher='none', log_level='WARNING', experiment_name='names')
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.default_hooks.checkpoint.interval = 1
    runner = build_runner(cfg)
    runner.train()
    dataset = runner.train_dataloader.dataset
    assert tuple(dataset.metainfo['classes']) == FOLDERS
    for item in map(dataset.get_data_info, range(len(dataset))):
        assert dataset.metainfo['classes'][item['gt_label']] == item['img_path'].split('/')[-2]
    # The checkpoint knows the labels of the folders: another order is refused, an unknown one is named.
    path = tmp_path / 'run' / 'epoch_1.pth'
    assert tuple(torch.load(path, weights_only=False)['meta']['dataset_meta']['folders']) == FOLDERS

    def warnings(classes):
        cfg = checked(config(tmp_path, classes), 'test')
        cfg.update(work_dir=str(tmp_path / 'test'), launcher='none', log_level='WARNING', load_from=str(path))
        cfg.experiment_name = f'names_{next(NUMBERS)}'
        lines = []
        runner = build_runner(cfg)
        runner.logger.warning = lines.append
        runner.test()
        return [line for line in lines if 'which folder had which label' in line]

    assert not warnings(FOLDERS)
    with pytest.raises(UsageError, match='the same classes in another order'):
        warnings(tuple(sorted(FOLDERS)))
    state = torch.load(path, weights_only=False)
    del state['meta']['dataset_meta']['folders']
    torch.save(state, path)
    assert len(warnings(FOLDERS)) == 1
    state['meta']['dataset_meta']['classes'] = sorted(FOLDERS)
    torch.save(state, path)
    assert not warnings(tuple(sorted(FOLDERS)))


def test_knn_reads_the_same_labels(tmp_path):
    write(tmp_path, FOLDERS)
    dataset = config(tmp_path, FOLDERS).train_dataloader.dataset
    use_checked_dataset(dataset, 'mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = DATASETS.build(dict(dataset, pipeline=[]))
    assert built.get_gt_labels().tolist() == [FOLDERS.index(name) for name in sorted(FOLDERS)] or len(built) == 10
    assert built.folder_to_idx == {name: label for label, name in enumerate(FOLDERS)}


def test_other_names_than_the_classes_are_shown_side_by_side(tmp_path):
    write(tmp_path, ['a', 'b'])
    message = refused(config(tmp_path, ('red', 'green')))
    assert re.search(r'0 +a +red\n +1 +b +green', message) and "folders=('a', 'b')" in message
    cfg = config(tmp_path, metainfo=dict(classes=('red', 'green'), folders=('b', 'a')), number=2)
    assert labels(checked(cfg)) == {'b': 0, 'a': 1}
    cfg = config(tmp_path, metainfo=dict(classes=('red', 'green'), folders=('b', 'c')), number=2)
    assert 'metainfo.folders' in refused(cfg)
    cfg = config(tmp_path, number=2, type='CustomDataset', metainfo=dict(folders=('b', 'a')))
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.data_prefix = cfg[f'{split}_dataloader'].dataset.pop('split')
    assert labels(cfg) == {'b': 0, 'a': 1}


def test_names_that_differ_in_case(tmp_path):
    write(tmp_path, ['Cat', 'dog'])
    assert 'upper and lower case alone' in refused(config(tmp_path, ('cat', 'dog')))


@pytest.mark.parametrize(
    'folders, classes, declared, of_imagenet, expected',
    [
        (['n1', 'n2'], None, None, False, {'n1': 0, 'n2': 1}),
        (['n02124075', 'n01440764'], ['tench', 'cat'], None, True, {'n01440764': 0, 'n02124075': 1}),
        (['n02124075', 'n01440764'], ['tench', 'cat'], None, False, None),
        (['0', '1'], ['no', 'yes'], None, False, {'0': 0, '1': 1}),
        (['1', '2'], ['no', 'yes'], None, False, None),
        ([f'{i:02}' for i in range(11)], list('abcdefghijk'), None, False, {f'{i:02}': i for i in range(11)}),
        (COUNTED, list('abcdefghijk'), None, False, None),
        (COUNTED, list('abcdefghijk'), COUNTED, False, {name: int(name) for name in COUNTED}),
    ],
)
def test_which_folder_is_which_class(folders, classes, declared, of_imagenet, expected):
    if expected is None:
        with pytest.raises(UsageError, match='they cannot be matched'):
            folder_labels(folders, classes, declared, of_imagenet)
    else:
        assert folder_labels(folders, classes, declared, of_imagenet) == expected


def test_imagenet_itself_passes(tmp_path, capsys):
    folders = [f'n{number:08}' for number in range(1000)]
    for split in ('train', 'val'):
        for name in folders:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / 'x.JPEG').touch()
    checked(config(tmp_path, number=1000))
    assert 'Note' not in capsys.readouterr().out
    for split in ('train', 'val'):
        (tmp_path / split / folders[0]).rename(tmp_path / split / 'tench')
    assert 'they cannot be matched' in refused(config(tmp_path, number=1000))


def test_splits_with_other_folders(tmp_path):
    """Also where the config names no classes, and where the data lie apart."""
    write(tmp_path / 'one', ['cat', 'dog'], ['train'])
    write(tmp_path / 'two', ['cat', 'horse'], ['val'])
    cfg = config(tmp_path, number=2, type='CustomDataset')
    for split, folder in (('train', 'one/train'), ('val', 'two/val'), ('test', 'two/val')):
        cfg[f'{split}_dataloader'].dataset.pop('split')
        cfg[f'{split}_dataloader'].dataset.data_prefix = folder
    for splits in (('train', 'val'), ('test',)):
        message = refused(cfg, *splits)
        assert 'different folders of classes' in message and 'horse' in message and 'dog' in message


def test_other_classes_in_validation(tmp_path):
    write(tmp_path, ['a', 'b', 'c'])
    cfg = config(tmp_path, ('a', 'b', 'c'))
    cfg.val_dataloader.dataset.metainfo = dict(classes=('a', 'c', 'b'))
    message = refused(cfg)
    assert 'another order' in message and re.search(r'1 +b +c\n +2 +c +b', message)


def test_fewer_folders_than_classes(tmp_path):
    write(tmp_path, ['a', 'b', 'c'], ['train'])
    write(tmp_path, ['a', 'b'], ['val'])
    message = refused(config(tmp_path, ('a', 'b', 'c')), 'val')
    assert 'Classes without a folder: c' in message and 'image-net.org' not in message


def test_own_folders_under_the_imagenet_config(tmp_path):
    write(tmp_path, ['ants', 'bees'])
    message = refused(config(tmp_path, number=1000), 'train')
    for words in ('2 folders of classes (ants, bees)', 'metainfo=dict(classes=...)', 'model.head.num_classes'):
        assert words in message
    assert 'image-net.org' not in message and 'ILSVRC' not in message


@pytest.mark.parametrize(
    'classes, words',
    [
        ('red', "a tuple of one name needs a comma: ('red',)"),
        (['a', 'b', 'a'], 'names a more than once'),
        (['a'], 'one class'),
    ],
)
def test_classes_that_cannot_be(classes, words, tmp_path):
    write(tmp_path, ['a'])
    assert words in refused(config(tmp_path, classes, number=len(classes)))


def test_classes_of_a_file(tmp_path):
    write(tmp_path, FOLDERS)
    (tmp_path / 'names.txt').write_text('\n'.join(FOLDERS) + '\n')
    path = str(tmp_path / 'names.txt')
    cfg = checked(config(tmp_path, metainfo=dict(classes=path), number=10))
    assert labels(cfg)['10'] == 9
    cfg = checked(config(tmp_path, number=10, type='CustomDataset', classes=path))


def test_a_class_of_the_users_own_that_numbers_folders_itself(tmp_path):
    from mmpretrain.datasets import CustomDataset

    class Sorted(CustomDataset):
        pass

    class Own(CustomDataset):
        def load_data_list(self):
            return []

    write(tmp_path, FOLDERS)
    for kind, refuses in ((Sorted, True), (Own, False)):
        cfg = config(tmp_path, FOLDERS)
        for split in SPLITS:
            dataset = cfg[f'{split}_dataloader'].dataset
            cfg[f'{split}_dataloader'].dataset = ConfigDict(
                type=kind, data_root=str(tmp_path), data_prefix=dataset.split, metainfo=dataset.metainfo, pipeline=[]
            )
        if refuses:
            assert "take type='CustomDataset'" in refused(cfg)
        else:
            checked(cfg)


# What folders hold.


def test_what_is_left_out_is_counted(tmp_path, capsys):
    write(tmp_path, ['a', 'b'], number=2)
    write(tmp_path, ['a'], ['train'], name='{}.webp', number=3)
    Image.new('L', (8, 8)).save(tmp_path / 'train' / 'loose.png')
    checked(config(tmp_path, ('a', 'b')), 'train')
    out = capsys.readouterr().out
    assert '3 files' in out and '.webp (3)' in out and '1 images lie in' in out and 'loose.png' in out
    shutil.rmtree(tmp_path / 'train' / 'a')
    write(tmp_path, ['a'], ['train'], name='{}.webp', number=3)
    message = refused(config(tmp_path, ('a', 'b')), 'train')
    assert '1 of 2 folders' in message and 'They hold .webp (3); extensions=' in message


def test_images_side_by_side_are_no_ilsvrc(tmp_path):
    (tmp_path / 'train').mkdir()
    for i in range(3):
        Image.new('L', (8, 8)).save(tmp_path / 'train' / f'{i}.png')
    message = refused(config(tmp_path, ('a', 'b')), 'train')
    assert '3 images lie side by side' in message and 'ILSVRC' not in message and 'NAME NUMBER' in message


def test_uppercase_suffixes_are_read(tmp_path):
    write(tmp_path, ['a', 'b'], name='{}.JPG')
    assert labels(checked(config(tmp_path, ('a', 'b')))) == {'a': 0, 'b': 1}


# Lists.


@pytest.mark.parametrize(
    'text, words',
    [
        ('train/a/0.png 0\ntrain/b/0.png 1\n', None),
        ('train/a/0.png 1\ntrain/b/0.png 2\n', 'They seem to begin at 1'),
        ('train/a/0.png 0\ntrain/b/0.png 7\n', 'labels up to 7 (1 images), and the config has 2 classes'),
        ('train/a/0.png a\ntrain/b/0.png b\n', 'The labels are written as numbers: a is 0'),
        ('train/a/0.png,0\ntrain/b/0.png,1\n', '2 of 2 lines'),
        ('train/a/0.png 0\ntrain/b/0.png\n', "line 2: 'train/b/0.png'"),
        ('', 'lists no images'),
        ('elsewhere/0.png 0\nelsewhere/1.png 1\n', 'has none of 2 images'),
        ('train/a/0.png 1\n', 'all 1 images'),
    ],
)
def test_lists(text, words, tmp_path):
    write(tmp_path, ['a', 'b'])
    (tmp_path / 'list.txt').write_text(text)
    cfg = config(tmp_path, ('a', 'b'), type='CustomDataset', ann_file='list.txt')
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.pop('split')
    if words:
        assert words in refused(cfg)
    else:
        assert labels(checked(cfg)) == {'a': 0, 'b': 1}


def test_a_list_that_numbers_folders_otherwise(tmp_path):
    write(tmp_path, ['a', 'b'])
    (tmp_path / 'list.txt').write_text('a/0.png 1\nb/0.png 0\n')
    for classes, right in ((('b', 'a'), True), (('a', 'b'), False), (('red', 'green'), True)):
        cfg = config(tmp_path, classes, type='CustomDataset', ann_file='list.txt', data_prefix='train')
        for split in SPLITS:
            cfg[f'{split}_dataloader'].dataset.pop('split')
        if right:
            assert labels(checked(cfg)) == {'a': 1, 'b': 0}
        else:
            assert re.search(r'0 +b +a\n +1 +a +b', refused(cfg))


def test_annotations_with_classes_in_another_order(tmp_path):
    write(tmp_path, ['a'])
    categories = [dict(id=0, category_name='red'), dict(id=1, category_name='green')]
    content = dict(metainfo=dict(categories=categories), data_list=[dict(img_path='train/a/0.png', gt_label=0)])
    (tmp_path / 'all.json').write_text(json.dumps(content))
    for classes, right in ((['red', 'green'], True), (['green', 'red'], False)):
        cfg = config(tmp_path, classes, type='mmpretrain.BaseDataset', ann_file='all.json')
        for split in SPLITS:
            cfg[f'{split}_dataloader'].dataset.pop('split')
        if right:
            checked(cfg)
        else:
            assert re.search(r'0 +red +green', refused(cfg))


# Metrics and labels.


def test_metrics_that_do_not_fit(tmp_path):
    write(tmp_path, ['a', 'b'])
    cfg = config(tmp_path, ('a', 'b'))
    cfg.val_evaluator.topk = (1, 5)
    assert 'val_evaluator.topk is (1, 5), and there are 2 classes; set topk=(1,)' in refused(cfg)
    cfg = config(tmp_path, ('a', 'b'))
    cfg.val_evaluator = [dict(type='Accuracy', topk=(1, 2)), dict(type='SingleLabelMetric', num_classes=3)]
    assert 'num_classes is 3' in refused(cfg)
    cfg.val_evaluator[1].num_classes = 2
    checked(cfg, 'train', 'val')


def test_data_without_labels(tmp_path):
    write(tmp_path, ['a', 'b'])
    cfg = config(tmp_path, ('a', 'b'), with_label=False)
    assert 'the data for train (ImageNet) has no labels (with_label=False)' in refused(cfg, 'train')
    assert 'metric Accuracy compares with them' in refused(cfg, 'test')


def test_dino_takes_a_folder_of_images(tmp_path):
    for i in range(3):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / f'{i}.png')
    cfg = Config.fromfile(ROOT / 'configs' / 'dino_xcit_s12_16_300e_in1k.py')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    assert 'train_dataloader.dataset.split=' in refused(cfg, 'train')
    cfg.train_dataloader.dataset.split = ''
    assert 'with_label=False' in refused(cfg, 'train')
    cfg.train_dataloader.dataset.with_label = False
    checked(cfg, 'train')


# ImageNet-V2.


def numbered(tmp_path, total, under):
    for i in range(total):
        (tmp_path / under / str(i)).mkdir(parents=True)
        (tmp_path / under / str(i) / f'{i}.png').touch()


@pytest.mark.parametrize('under', ['', 'val'])
def test_imagenet_v2_is_known_by_its_thousand_folders(under, tmp_path):
    numbered(tmp_path, 1000, under)
    cfg = config(tmp_path, number=1000)
    assert find_imagenet_v2(cfg).rstrip('/') == str(tmp_path / under).rstrip('/')
    checked(cfg, 'test')
    assert labels(cfg, 'test') == {str(i): i for i in range(1000)}


@pytest.mark.parametrize('total, classes', [(12, 12), (999, 999), (1000, 1000)])
def test_own_folders_that_are_numbers_are_read_as_the_config_says(total, classes, tmp_path):
    numbered(tmp_path, total, 'val')
    names = sorted(map(str, range(classes)))
    cfg = config(tmp_path, names)
    assert find_imagenet_v2(cfg) is None
    checked(cfg, 'test')
    assert labels(cfg, 'test') == {name: label for label, name in enumerate(names)}


# Test-time augmentation.


def test_tta_of_a_classifier(tmp_path):
    write(tmp_path, ['a', 'b'], number=2)
    cfg = config(tmp_path, ('a', 'b'))
    cfg.update(work_dir=str(tmp_path / 'run'), launcher='none', log_level='WARNING', experiment_name='tta_cls')
    before = list(cfg.test_dataloader.dataset.pipeline)
    use_tta(cfg)
    *steps, augment = cfg.test_dataloader.dataset.pipeline
    assert steps == before[:-1] and [len(branch) for branch in augment.transforms] == [2, 1]
    assert 0 <= build_runner(cfg).test()['accuracy/top1'] <= 100
