"""Images are divided by chance, with every class on both sides and groups whole; splits that are there are kept."""

from collections import Counter

import pytest
from labelled_images import coco, folders, save, scene

from xcit_mm.apis.finetune import formats
from xcit_mm.apis.finetune.data import Data, Options, Picture, Problems
from xcit_mm.apis.finetune.split import divide
from xcit_mm.errors import UsageError


def classified(tmp_path, labels, groups=None) -> Data:
    """Images of these labels; each its own file, of a content of its own."""
    pictures = []
    for number, label in enumerate(labels):
        path = tmp_path / f'{number}.png'
        path.write_bytes(b'%d' % number)
        group = None if groups is None else str(groups[number])
        pictures.append(Picture(str(path), group=group, width=8, height=8, label=label))
    names = [str(label) for label in range(max(labels) + 1)]
    return Data(str(tmp_path), 'folders', 'classification', names, pictures, Problems())


def labels_of(data, split):
    return Counter(picture.label for picture in data.of(split))


def test_every_class_has_its_share(tmp_path):
    data = classified(tmp_path, [0] * 50 + [1] * 20 + [2] * 10 + [3] * 2)
    divide(data, Options())
    assert labels_of(data, 'val') == {0: 10, 1: 4, 2: 2}
    assert labels_of(data, 'train')[3] == 2  # a fifth of two images is none
    assert any('were drawn for validation' in note for note in data.notes)


def test_the_seed_decides(tmp_path):
    drawn = []
    for seed in (0, 0, 1):
        data = classified(tmp_path, [0, 1] * 30)
        divide(data, Options(seed=seed))
        drawn.append([picture.split for picture in data.pictures])
    assert drawn[0] == drawn[1] != drawn[2]


def test_classes_that_share_images_are_all_on_both_sides(tmp_path):
    data = formats.read(coco(tmp_path, count=20), Options())
    divide(data, Options())
    for split, count in (('train', 16), ('val', 4)):
        assert len(data.of(split)) == count
        assert set(data.counts(split)) == {0, 1}


def test_groups_stay_together(tmp_path):
    groups = [number // 5 for number in range(60)]
    data = classified(tmp_path, [number // 30 for number in range(60)], groups)
    divide(data, Options())
    splits = {}
    for picture in data.pictures:
        splits.setdefault(picture.group, set()).add(picture.split)
    assert all(len(found) == 1 for found in splits.values())
    assert 5 <= len(data.of('val')) <= 15
    assert labels_of(data, 'val').keys() == {0, 1}


def test_groups_by_the_names_of_files(tmp_path):
    folder = folders(tmp_path, count=12)
    data = formats.read(folder, Options())
    divide(data, Options(group_by=r'_(\d)'))
    assert {picture.group for picture in data.pictures} == set('0123456789')
    with pytest.raises(UsageError, match='finds nothing'):
        divide(formats.read(folder, Options()), Options(group_by='patient'))
    with pytest.raises(UsageError, match='regular expression'):
        divide(formats.read(folder, Options()), Options(group_by='('))


def test_augmented_copies_and_copies_of_a_file_are_groups(tmp_path):
    image = scene(0)[0]
    for kind in ('cat', 'dog'):
        for number in range(5):
            save(tmp_path / kind / f'{kind}{number}_jpg.rf.{number}abc.png', scene(number + 5 * (kind == 'dog'))[0])
        save(tmp_path / kind / 'a_jpg.rf.1.png', image + 1)
        save(tmp_path / kind / 'a_jpg.rf.2.png', image + 2)
    for name in ('x', 'y'):
        save(tmp_path / 'dog' / f'{name}.png', image + 3)
    data = formats.read(tmp_path, Options())
    divide(data, Options())
    groups = {picture.path.rsplit('/', 1)[-1]: picture.group for picture in data.pictures}
    assert groups['a_jpg.rf.1.png'] == groups['a_jpg.rf.2.png'] == 'a'
    assert groups['x.png'] == groups['y.png'] is not None
    assert data.problems.count('image that exists twice') >= 1


def test_a_split_that_divides_a_group_is_named(tmp_path):
    folders(tmp_path, splits=('train', 'val'))
    image = scene(77)[0]
    for split in ('train', 'val'):
        save(tmp_path / split / 'disk' / 'same.png', image)
    data = formats.read(tmp_path, Options())
    divide(data, Options())
    assert data.problems.count('images of one group in train and val') == 1


def test_two_images_are_one_and_one(tmp_path):
    data = classified(tmp_path, [0, 1])
    divide(data, Options())
    assert sorted(picture.split for picture in data.pictures) == ['train', 'val']


def test_a_test_split_is_never_drawn_from(tmp_path):
    data = formats.read(folders(tmp_path, count=5, splits=('train', 'test')), Options())
    divide(data, Options())
    assert Counter(picture.split for picture in data.pictures) == {'train': 8, 'val': 2, 'test': 10}


def test_test_images_alone_are_refused(tmp_path):
    data = formats.read(folders(tmp_path, splits=('test', 'val')), Options())
    with pytest.raises(UsageError, match='no images to train on'):
        divide(data, Options())
