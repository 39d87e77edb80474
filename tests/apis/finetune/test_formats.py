"""Every format that people have labelled images in is found out and read; what is unclear or wrong is said."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from labelled_images import CLASSES, SIDE, coco, folders, labelme, maps, save, scene, voc, yolo
from PIL import Image

from xcit_mm.apis.finetune import formats
from xcit_mm.apis.finetune.data import Data, Options, split_word
from xcit_mm.apis.finetune.maps import apply_values, has_colours, read_map
from xcit_mm.errors import UsageError


def read(folder, **options) -> Data:
    return formats.read(folder, Options(**options))


def objects(data):
    """Class name and box of every object, by the name of its image."""
    return {
        picture.path.rsplit('/', 1)[-1].split('.')[0]: sorted(
            (data.classes[one['label']], tuple(round(side, 1) for side in one['bbox'])) for one in picture.objects
        )
        for picture in data.pictures
    }


def truth(count=8):
    return {
        str(number): sorted((kind, (x1, y1, x2 - x1, y2 - y1)) for kind, (x1, y1, x2, y2) in scene(number)[1])
        for number in range(count)
    }


@pytest.mark.parametrize(
    'make, format, task',
    [
        (coco, 'coco', 'detection'),
        (lambda folder: coco(folder, masks=True, images='a/b'), 'coco', 'instance-segmentation'),
        (voc, 'voc', 'detection'),
        (yolo, 'yolo', 'detection'),
        (lambda folder: yolo(folder, polygons=True), 'yolo', 'instance-segmentation'),
        (labelme, 'labelme', 'instance-segmentation'),
        (lambda folder: labelme(folder, kind='rectangle'), 'labelme', 'detection'),
    ],
)
def test_objects_are_the_same_from_every_format(make, format, task, tmp_path):
    data = read(make(tmp_path / 'data'))
    assert (data.format, data.task, sorted(data.classes)) == (format, task, sorted(CLASSES))
    assert objects(data) == truth()
    assert not data.problems
    if task == 'instance-segmentation':
        for picture in data.pictures:
            for one in picture.objects:
                assert one['area'] == pytest.approx(one['bbox'][2] * one['bbox'][3], rel=0.01)


@pytest.mark.parametrize('write', ['as_pascal_voc', 'as_yolo', 'as_coco'])
def test_what_supervision_writes(write, tmp_path):
    """An independent library's files."""
    sv = pytest.importorskip('supervision', reason='pip install supervision')
    paths, annotations = [], {}
    for number in range(4):
        image, found, _ = scene(number)
        save(tmp_path / 'source' / f'{number}.jpg', image)
        paths.append(str(tmp_path / 'source' / f'{number}.jpg'))
        annotations[paths[-1]] = sv.Detections(
            xyxy=np.array([box for _, box in found], float),
            class_id=np.array([CLASSES.index(kind) for kind, _ in found]),
        )
    dataset = sv.DetectionDataset(classes=list(CLASSES), images=paths, annotations=annotations)
    out = tmp_path / 'out'
    if write == 'as_coco':
        dataset.as_coco(str(out / 'images'), str(out / 'annotations.json'))
    elif write == 'as_yolo':
        dataset.as_yolo(str(out / 'images'), str(out / 'labels'), str(out / 'data.yaml'))
    else:
        dataset.as_pascal_voc(str(out / 'images'), str(out / 'annotations'))
    assert objects(read(out)) == truth(4)


def test_splits_of_folders_files_and_lists(tmp_path):
    data = read(yolo(tmp_path / 'yolo'))
    assert [len(data.of(split)) for split in ('train', 'val')] == [6, 2]
    for split, count in (('train', 4), ('valid', 3), ('test', 2)):
        coco(tmp_path / 'coco' / split, count, name='_annotations.coco.json', images='.')
    data = read(tmp_path / 'coco')
    assert [len(data.of(split)) for split in ('train', 'val', 'test')] == [4, 3, 2]
    sets = voc(tmp_path / 'voc') / 'ImageSets' / 'Main'
    sets.mkdir(parents=True)
    (sets / 'train.txt').write_text('0\n1\n2\n3\n4\n')
    (sets / 'val.txt').write_text('5\n6\n7\n')
    data = read(tmp_path / 'voc')
    assert [len(data.of(split)) for split in ('train', 'val')] == [5, 3]


@pytest.mark.parametrize(
    'name, split',
    [
        ('instances_val2017.json', 'val'),
        ('valid', 'val'),
        ('train', 'train'),
        ('trainval', None),
        ('testing', 'test'),
        ('attest', None),
        ('train_test', None),
    ],
)
def test_words_for_splits(name, split):
    assert split_word(name) == split


def test_folders_of_classes(tmp_path):
    data = read(folders(tmp_path / 'plain'))
    assert (data.format, data.task, data.classes) == ('folders', 'classification', list(CLASSES))
    assert {picture.split for picture in data.pictures} == {None}
    assert sorted(picture.label for picture in data.pictures) == [0] * 6 + [1] * 6
    data = read(folders(tmp_path / 'split', splits=('train', 'val')))
    assert [len(data.of(split)) for split in ('train', 'val')] == [12, 12]
    data = read(folders(tmp_path / 'deep' / 'inner' / 'photos').parents[1])
    assert data.classes == list(CLASSES)


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
def test_a_table_of_files_and_labels(delimiter, tmp_path):
    for number in range(6):
        save(tmp_path / 'photos' / f'{number}.jpg', scene(number)[0])
    with open(tmp_path / 'labels.csv', 'w', newline='') as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(['image_id', 'species', 'split', 'patient'])
        for number in range(6):
            writer.writerow([number, ('cat', 'dog')[number % 2], 'train' if number < 4 else 'valid', number // 2])
    data = read(tmp_path)
    assert (data.format, data.classes) == ('csv', ['cat', 'dog'])
    assert [(p.label, p.split, p.group) for p in sorted(data.pictures, key=lambda p: p.path)] == [
        (number % 2, 'train' if number < 4 else 'val', str(number // 2)) for number in range(6)
    ]


def colours(labels):
    return np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)[labels]


@pytest.mark.parametrize(
    'write, options, classes',
    [
        (lambda labels: labels, {}, ['0', '1', '2']),
        (lambda labels: labels, dict(classes=['ground', 'disk', 'square']), ['ground', 'disk', 'square']),
        (lambda labels: labels * 100, dict(classes=['ground', 'disk', 'square']), ['ground', 'disk', 'square']),
        (lambda labels: labels + 1, {}, ['1', '2', '3']),
        (lambda labels: np.repeat(labels[..., None], 3, 2), {}, ['0', '1', '2']),
    ],
)
def test_label_maps_of_numbers(write, options, classes, tmp_path):
    data = read(maps(tmp_path, write=write), **options)
    assert (data.format, data.task, data.classes) == ('maps', 'semantic-segmentation', classes)
    for picture in data.pictures:
        number = int(picture.path.rsplit('/', 1)[-1].split('.')[0])
        assert (apply_values(read_map(picture.map), data.values) == scene(number)[2]).all()


def test_label_maps_of_colours_with_a_legend(tmp_path):
    folder = maps(tmp_path / 'data', write=colours)
    legend = tmp_path / 'legend.txt'
    legend.write_text('# name r g b\nground 0 0 0\ndisk 255 0 0\n')
    data = read(folder, legend=str(legend))
    assert data.classes == ['ground', 'disk']
    assert data.palette == [(0, 0, 0), (255, 0, 0)]
    assert 'values that are no class' in data.problems.lines()[0][0]  # the squares
    for picture in data.pictures:
        number = int(picture.path.rsplit('/', 1)[-1].split('.')[0])
        expected = scene(number)[2].copy()
        expected[expected == 2] = 255
        assert (apply_values(read_map(picture.map, has_colours(data.values)), data.values) == expected).all()


@pytest.mark.parametrize('header', ['name,r,g,b\nground,0,0,0\ndisk,255,0,0\nsquare,0,0,255\n', 'CVAT'])
def test_a_legend_that_lies_beside_the_maps(header, tmp_path):
    maps(tmp_path, write=colours)
    if header == 'CVAT':
        text = '# label:color_rgb:parts:actions\nground:0,0,0::\ndisk:255,0,0::\nsquare:0,0,255::\n'
        (tmp_path / 'labelmap.txt').write_text(text)
    else:
        (tmp_path / 'class_dict.csv').write_text(header)
    assert read(tmp_path).classes == ['ground', 'disk', 'square']


def test_label_maps_beside_their_images(tmp_path):
    for number in range(4):
        image, _, labels = scene(number)
        save(tmp_path / f'{number}.png', np.random.default_rng(number).integers(0, 255, image.shape, dtype=np.uint8))
        save(tmp_path / f'{number}_mask.png', labels)
    data = read(tmp_path)
    assert len(data.pictures) == 4
    assert all(picture.map.endswith('_mask.png') for picture in data.pictures)


# What is unclear


def refused(folder, **options) -> str:
    with pytest.raises(UsageError) as error:
        read(folder, **options)
    return str(error.value)


def test_what_is_unclear_is_refused_with_the_option_that_decides(tmp_path):
    coco(tmp_path / 'mixed' / 'a')
    voc(tmp_path / 'mixed' / 'b')
    text = refused(tmp_path / 'mixed')
    assert '2 ways: coco, voc' in text
    assert '--format' in text
    assert read(tmp_path / 'mixed', format='voc').format == 'voc'
    assert 'nothing in' in refused(tmp_path / 'mixed', format='yolo')

    assert '--classes NAME' in refused(yolo(tmp_path / 'no_names', yaml=False))
    assert read(tmp_path / 'no_names', classes=['a', 'b']).classes == ['a', 'b']

    content = json.loads((coco(tmp_path / 'half', masks=True) / 'labels.json').read_text())
    content['annotations'][0].pop('segmentation')
    (tmp_path / 'half' / 'labels.json').write_text(json.dumps(content))
    assert '--task detection' in refused(tmp_path / 'half')
    assert read(tmp_path / 'half', task='detection').task == 'detection'
    assert sum(len(one.objects) for one in read(tmp_path / 'half', task='instance-segmentation').pictures) == 15

    coco(tmp_path / 'two')
    coco(tmp_path / 'two', name='others.json')
    assert '--annotations' in refused(tmp_path / 'two')
    assert read(tmp_path / 'two', annotations='others.json').format == 'coco'

    assert '--legend' in refused(maps(tmp_path / 'colours', write=colours))
    binary = maps(tmp_path / 'binary', write=lambda labels: (labels > 0).astype(np.uint8) * 255)
    assert '--classes background,NAME' in refused(binary)
    assert read(binary, classes=['background', 'object']).values == {0: 0, 255: 1}
    three = maps(tmp_path / 'three', write=lambda labels: np.where(labels == 2, 255, labels).astype(np.uint8))
    assert read(three).classes == ['0', '1']  # 255 is ignored, as everywhere
    assert '--legend' in refused(three, classes=['ground', 'disk', 'square'])
    assert 'without gaps' in refused(maps(tmp_path / 'gaps', write=lambda labels: labels * 7))

    text = 'file,a,b\n' + '\n'.join(f'{number}.jpg,x,{number % 2}' for number in range(4))
    for number in range(4):
        save(tmp_path / 'table' / f'{number}.jpg', scene(number)[0])
    (tmp_path / 'table' / 'labels.csv').write_text(text)
    assert '--label-column' in refused(tmp_path / 'table')
    assert read(tmp_path / 'table', label_column='b').classes == ['0', '1']


def test_a_line_of_four_corners_may_be_a_turned_box(tmp_path):
    folder = yolo(tmp_path)
    for path in (tmp_path / 'labels').rglob('*.txt'):
        path.write_text('0 0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4\n')
    assert 'OBB' in refused(folder)
    assert read(folder, task='detection').pictures[0].objects[0]['bbox'] == pytest.approx([4.8, 4.8, 14.4, 14.4])


# What is wrong


def test_faults_are_named_with_file_and_line(tmp_path):
    folder = yolo(tmp_path)
    label = tmp_path / 'labels' / 'train' / '0.txt'
    wrong = ('9 0.5 0.5 0.2 0.2', '0 30 30 10 10', '0 0.5 0.5 0.001 0.2', '0 nan 0.5 0.1 0.1', '0 1.01 0.5 0.03 0.2')
    label.write_text('\n'.join(('0 0.5 0.5 0.2 0.2', *wrong)))
    (tmp_path / 'labels' / 'train' / 'gone.txt').write_text('0 0.5 0.5 0.2 0.2\n')
    (tmp_path / 'images' / 'train' / '1.jpg').write_bytes(b'no image')
    data = read(folder)
    found = {what.rsplit(':', 1)[0]: where for what, where, _ in data.problems.lines()}
    assert found == {
        'class number outside of the 2 names': 'labels/train/0.txt:2',
        'numbers that are no shares of the image (0 to 1)': 'labels/train/0.txt:3',
        'box of less than a pixel': 'labels/train/0.txt:4',
        'line that is not "class x y width height" or a polygon': 'labels/train/0.txt:5',
        'box that reaches out of its image': 'labels/train/0.txt:6',
        'annotation without its image': 'labels/train/gone.txt',
        'image that cannot be read': 'images/train/1.jpg',
    }
    assert len(next(one for one in data.pictures if one.path.endswith('train/0.jpg')).objects) == 1


def test_annotations_of_another_size_are_left_out(tmp_path):
    folder = voc(tmp_path)
    path = tmp_path / 'Annotations' / '3.xml'
    path.write_text(path.read_text().replace(f'<width>{SIDE}</width>', '<width>640</width>'))
    data = read(folder)
    assert len(data.pictures) == 7
    assert 'annotated at 640x48' in data.problems.lines()[0][1]


def test_an_image_on_its_side_is_read_as_it_is_annotated(tmp_path):
    folder = voc(tmp_path)
    path = tmp_path / 'JPEGImages' / '0.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).crop((0, 0, 40, SIDE)).save(path, exif=exif)
    xml = tmp_path / 'Annotations' / '0.xml'
    for stored in (True, False):
        width, height = (40, SIDE) if stored else (SIDE, 40)
        text = xml.read_text()
        begin, end = text.index('<size>'), text.index('</size>')
        xml.write_text(text[:begin] + f'<size><width>{width}</width><height>{height}</height>' + text[end:])
        picture = next(one for one in read(folder).pictures if one.path == str(path))
        assert (picture.width, picture.height) == (width, height)


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda folder: folder.mkdir(), 'there is no image in'),
        (lambda folder: save(folder / 'one.jpg', scene(0)[0]), 'nothing that labels them'),
        (lambda folder: save(folder / 'cat' / 'one.jpg', scene(0)[0]), 'at least two classes'),
        (lambda folder: coco(folder, count=1), 'has one image that can be used'),
        (lambda folder: [p.write_bytes(b'') for p in folders(folder).rglob('*.png')], 'no image of'),
        (lambda folder: [p.write_text('') for p in yolo(folder).rglob('labels/*/*.txt')], 'nothing that labels'),
        (lambda folder: (coco(folder) / 'labels.json').write_text('{"images": [], "categories": ['), 'as JSON'),
    ],
)
def test_data_that_nothing_can_be_learned_from(make, words, tmp_path):
    make(tmp_path / 'data')
    assert words in refused(tmp_path / 'data')


@pytest.mark.parametrize('make, format', [(voc, 'voc'), (coco, 'coco'), (labelme, 'labelme')])
@pytest.mark.parametrize('inside', ['', 'train', 'photos'])
def test_annotations_beside_folders_of_classes(make, format, inside, tmp_path):
    make(tmp_path / 'annotated')
    for kind in ('cat', 'dog'):
        for number in range(5):
            save(tmp_path / inside / kind / f'{kind}{number}.jpg', scene(number)[0])
    text = refused(tmp_path)
    assert f'{format} annotates 8 images and none of the 10 in cat, dog' in text
    assert f'--format {format}' in text
    assert len(read(tmp_path, format=format).pictures) == 8
    assert read(tmp_path / 'annotated').format == format


@pytest.mark.parametrize(
    'others',
    [
        ('SegmentationClass/{}.png', 'SegmentationObject/{}.png'),  # masks of VOC 2012
        ('test2017/t{}.jpg', 'unlabeled2017/u{}.jpg'),
        ('test/berlin/b{}.jpg', 'test/bonn/c{}.jpg'),
        ('images/extra{}.jpg',),
    ],
)
def test_folders_beside_annotations_that_are_no_classes(others, tmp_path):
    voc(tmp_path)
    for name in others:
        for number in range(8):
            save(tmp_path / name.format(number), scene(number)[0])
    for name in ('docs/logo.png', 'assets/example.jpg'):
        save(tmp_path / name, scene(0)[0])
    assert len(read(tmp_path).pictures) == 8


@pytest.mark.parametrize('broken', ['garbage', 'cut off', 'JPEG'])
def test_images_and_maps_that_cannot_be_read_are_no_classes(broken, tmp_path):
    folder = maps(tmp_path / 'data')
    found = read(folder).pictures
    for picture in found:
        path = Path(picture.map)
        if broken == 'JPEG':
            noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            save(path.with_suffix('.jpg'), noise)
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:60] if broken == 'cut off' else b'no image')
    text = refused(folder)
    assert 'looks like images with label maps' in text
    assert '--format folders' in text
    if broken == 'JPEG':
        assert read(folder, format='folders').task == 'classification'


def test_one_map_that_cannot_be_read_is_named_and_the_others_are_used(tmp_path):
    folder = maps(tmp_path / 'data')
    first = min(read(folder).pictures, key=lambda one: one.path)
    Path(first.map).write_bytes(b'no image')
    data = read(folder)
    assert data.format == 'maps'
    assert first.path not in {one.path for one in data.pictures}
    assert 'label map that cannot be read' in data.problems.lines()[0][0]


def test_classes_that_are_called_as_masks_are(tmp_path):
    for name, start in (('mask', 0), ('no_mask', 5)):
        for number in range(5):
            save(tmp_path / name / f'{start + number}.jpg', scene(number)[0])
    assert read(tmp_path).classes == ['mask', 'no_mask']


def test_ten_thousand_classes(tmp_path):
    image = scene(0)[0][:8, :8]
    for number in range(1000):  # a class for each image, as where file names are taken for labels
        save(tmp_path / 'data' / f'{number:05d}' / 'image.png', image)
    assert '1000 classes for 1000 images' in refused(tmp_path / 'data')
    content = json.loads((coco(tmp_path / 'coco') / 'labels.json').read_text())
    content['categories'] = [dict(id=number, name=f'name {number}') for number in range(10_000)]
    (tmp_path / 'coco' / 'labels.json').write_text(json.dumps(content))
    assert '10000 classes' in refused(tmp_path / 'coco')


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / 'images.zip').write_bytes(b'PK')
    assert 'unpack images.zip first' in refused(tmp_path)
    assert 'there is no folder' in refused(tmp_path / 'not_there')
