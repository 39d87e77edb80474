"""Lists of classes that come from two places: names and order are compared, both are shown side by side."""

from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.runner import BaseLoop
from torch import nn

from xcit_mm.checks.classes import check_checkpoint_classes, check_classes
from xcit_mm.datasets.config import side_by_side
from xcit_mm.engine.hooks import CheckpointFitHook
from xcit_mm.errors import UsageError

COLOURS = ['red', 'green', 'blue']


def test_differences_are_shown_side_by_side():
    found = side_by_side(COLOURS, ['red', 'blue', 'green'], ('checkpoint', 'config'))
    assert found.splitlines()[1:] == ['     checkpoint  config', '  1  green       blue', '  2  blue        green']
    assert side_by_side(COLOURS, COLOURS[:2], ('a', 'b')).splitlines()[-1].split() == ['2', 'blue', '-']
    many = [str(i) for i in range(1000)]
    assert side_by_side(many, many[::-1], ('a', 'b')).endswith('and 988 more')


@pytest.mark.parametrize('meta', [dict(dataset_meta=dict(classes=COLOURS)), dict(CLASSES=tuple(COLOURS))])
def test_a_checkpoint_for_other_classes_is_refused_and_may_start_a_training(meta):
    for purpose in ('train', 'resume', 'test'):
        assert check_checkpoint_classes(meta, COLOURS, purpose) is None
    for purpose in ('resume', 'test'):
        for classes in (COLOURS[::-1], ['a', 'b', 'c']):
            with pytest.raises(UsageError, match=r'the checkpoint was trained for [^.]*\.\n +checkpoint  config\n'):
                check_checkpoint_classes(meta, classes, purpose)
    assert 'another order' in check_checkpoint_classes(meta, COLOURS[::-1], 'train')
    assert check_checkpoint_classes(meta, ['a'], 'train') is None


def test_files_that_name_no_classes_are_taken_as_they_are():
    for meta in (None, {}, dict(dataset_meta={}), dict(dataset_meta=dict(classes=None))):
        assert check_checkpoint_classes(meta, COLOURS, 'test') is None
    assert check_checkpoint_classes(dict(CLASSES=COLOURS), None, 'test') is None


def cfg(train, val=None, **model):
    loaders = dict(train_dataloader=train, val_dataloader=val or train, test_dataloader=dict(classes=['left', 'over']))
    parts = {key: dict(dataset=dict(type='CocoDataset', metainfo=metainfo)) for key, metainfo in loaders.items()}
    return Config(dict(default_scope='mmdet', model=model, **parts))


def test_lists_that_agree_pass(tmp_path):
    check_classes(cfg(dict(classes=COLOURS)), 'mmdet')
    check_classes(cfg(dict(), dict()), 'mmdet')
    (tmp_path / 'classes.txt').write_text('red\n')
    check_classes(cfg(dict(classes=str(tmp_path / 'classes.txt'))), 'mmdet')
    check_classes(cfg(dict(classes=COLOURS), dict(classes=['other']), language_model=dict()), 'mmdet')


MISTAKES = {
    'text': (dict(classes='red'), r"classes is the text 'red'; a tuple of one name needs a comma: \('red',\)"),
    'texts': (dict(classes='red,green'), r"write the names apart: \('red', 'green'\)"),
    'old': (dict(CLASSES=COLOURS), "metainfo.CLASSES: nothing reads 'CLASSES'; write 'classes'"),
    'twice': (dict(classes=['red', 'green', 'red']), "names 'red' more than once, as the labels 0, 2"),
    'palette': (dict(classes=COLOURS, palette=[(0, 0, 0)]), 'palette has 1 colours, and .*classes has 3 names'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_lists_that_nothing_reads_as_meant_are_refused(name):
    metainfo, words = MISTAKES[name]
    with pytest.raises(UsageError, match=words):
        check_classes(cfg(metainfo), 'mmdet')


def test_training_and_validation_have_the_same_classes():
    with pytest.raises(
        UsageError, match='val_dataloader.dataset has other classes than train_dataloader.dataset, or another order'
    ):
        check_classes(cfg(dict(classes=COLOURS), dict(classes=COLOURS[::-1])), 'mmdet')


class Loop(BaseLoop):
    """As much of one as the hook looks at."""

    def __init__(self, classes):
        self.dataloader = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=classes)))

    def run(self):
        pass


@pytest.mark.parametrize('purpose', ['train', 'resume', 'test'])
def test_a_runner_compares_the_classes_of_what_it_loads(purpose):
    model, said = nn.Linear(2, 3), []
    loops = dict(_train_loop=None, _val_loop=None, _test_loop=None)
    loops['_test_loop' if purpose == 'test' else '_train_loop'] = Loop(COLOURS[::-1])
    logger = SimpleNamespace(log=lambda level, text: said.append(text))
    runner = SimpleNamespace(model=model, logger=logger, _resume=purpose == 'resume', **loops)
    checkpoint = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=COLOURS)))
    if purpose == 'train':
        CheckpointFitHook().after_load_checkpoint(runner, checkpoint)
        assert 'the same classes in another order' in said[0]
    else:
        with pytest.raises(UsageError, match='the same classes in another order'):
            CheckpointFitHook().after_load_checkpoint(runner, checkpoint)
