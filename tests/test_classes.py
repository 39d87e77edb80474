"""Lists of classes that come from two places: names and order are compared, both are shown side by side."""

import pytest
from mmengine.config import Config

from xcit_mm.checks.classes import check_checkpoint_classes, check_class_lists, difference
from xcit_mm.errors import UsageError

COLOURS = ['red', 'green', 'blue']


def test_differences_are_shown_side_by_side():
    assert difference(COLOURS, tuple(COLOURS), ('one', 'other')) is None
    found = difference(COLOURS, ['red', 'blue', 'green'], ('the checkpoint', 'the config'))
    assert found.startswith('the same classes in another order, from label 1 on (the checkpoint | the config): ')
    assert "1: 'green' | 'blue', 2: 'blue' | 'green'" in found
    assert difference(COLOURS, COLOURS[:2], ('', '')).startswith('3 and 2 classes, from label 2 on')
    many = [str(i) for i in range(1000)]
    assert len(difference(many, [*many[:500], 'x', *many[501:]], ('', ''))) < 300


@pytest.mark.parametrize('meta', [dict(dataset_meta=dict(classes=COLOURS)), dict(CLASSES=tuple(COLOURS))])
def test_a_checkpoint_for_other_classes_is_refused_and_may_start_a_training(meta):
    for purpose in ('train', 'resume', 'test'):
        assert check_checkpoint_classes(meta, COLOURS, purpose) is None
    for purpose in ('resume', 'test'):
        for classes in (COLOURS[::-1], ['a', 'b', 'c']):
            with pytest.raises(UsageError, match='the checkpoint was trained for .*the checkpoint | the config'):
                check_checkpoint_classes(meta, classes, purpose)
    assert 'another order' in check_checkpoint_classes(meta, COLOURS[::-1], 'train')
    assert check_checkpoint_classes(meta, ['a'], 'train') is None


def test_files_that_name_no_classes_are_taken_as_they_are():
    for meta in (None, {}, dict(dataset_meta={}), dict(dataset_meta=dict(classes=None))):
        assert check_checkpoint_classes(meta, COLOURS, 'test') is None
    assert check_checkpoint_classes(dict(CLASSES=COLOURS), None, 'test') is None


def cfg(train, val=None, **model):
    loaders = dict(train_dataloader=train, val_dataloader=val or train, test_dataloader=dict(classes=['any']))
    parts = {key: dict(dataset=dict(type='CocoDataset', metainfo=metainfo)) for key, metainfo in loaders.items()}
    return Config(dict(default_scope='mmdet', model=model, **parts))


def test_lists_that_agree_pass(tmp_path):
    check_class_lists(cfg(dict(classes=COLOURS)))
    check_class_lists(cfg(dict(), dict()))
    (tmp_path / 'classes.txt').write_text('red\n')
    check_class_lists(cfg(dict(classes=str(tmp_path / 'classes.txt'))))
    check_class_lists(cfg(dict(classes=COLOURS), dict(classes=['other']), language_model=dict()))


MISTAKES = {
    'text': (dict(classes='red'), r"classes is the text 'red', expected a list of names such as \('red',\)"),
    'texts': (dict(classes='red,green'), r"such as \('red', 'green'\)"),
    'old': (dict(CLASSES=COLOURS), 'nothing reads metainfo.CLASSES; its name is metainfo.classes'),
    'twice': (dict(classes=['red', 'green', 'red']), r"names 'red' twice, as the labels \[0, 2\]"),
    'palette': (dict(classes=COLOURS, palette=[(0, 0, 0)]), r'1 colours \(palette\) for 3 classes'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_lists_that_nothing_reads_as_meant_are_refused(name):
    metainfo, words = MISTAKES[name]
    with pytest.raises(UsageError, match=words):
        check_class_lists(cfg(metainfo))


def test_training_and_validation_have_the_same_classes():
    with pytest.raises(
        UsageError, match='the data for train .* and the data for val .* do not belong together: the same'
    ):
        check_class_lists(cfg(dict(classes=COLOURS), dict(classes=COLOURS[::-1])))
