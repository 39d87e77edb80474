"""The digit data set: what is in it, that the OpenMMLab loaders read it, and what it refuses."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, call

pytest.importorskip('sklearn')
pytest.importorskip('skimage')
coco_mask = pytest.importorskip('pycocotools.mask')

from xcit_mm.datasets import digits  # noqa: E402

TOOL = ROOT / 'tools' / 'make_digits.py'
SMALL = {'train': 12, 'val': 6, 'size': 96, 'seed': 3}
OPTIONS = [f'--{name}={value}' for name, value in SMALL.items()]


def run_tool(*arguments):
    return call([sys.executable, TOOL, *arguments])


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def annotations(root, split):
    return json.loads((root / f'coco/annotations/instances_{split}2017.json').read_text())


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp('made') / 'digits'
    counts, made = digits.make_digits(out, **SMALL)
    assert made and counts['train'] == 12 and counts['val'] == 6
    return out


@pytest.fixture(scope='module')
def scenes():
    """The scenes of both splits, composed anew: the masks before any file format."""
    sources = digits.load_sources()
    made = {
        split: [digits.make_scene(sources, split, index, SMALL['size'], SMALL['seed']) for index in range(SMALL[split])]
        for split in digits.SPLITS
    }
    return made, sources[1]


@pytest.fixture
def ours(tmp_path):
    """A folder that says it holds the SMALL data set, as far as the checks before any work look."""
    out = tmp_path / 'digits'
    out.mkdir()
    counts = {name: 1 for split in digits.SPLITS for name in (split, f'{split}_objects', f'{split}_crops')}
    stamp = {'generator': 'xcit_mm.datasets.digits', 'version': digits.VERSION, 'parameters': SMALL}
    (out / digits.MANIFEST).write_text(json.dumps({**stamp, 'counts': counts}))
    return out


def test_same_seed_gives_the_same_bytes(root, tmp_path):
    result = run_tool(tmp_path / 'again', *OPTIONS)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / 'again') == contents(root)
    assert [path.name for path in tmp_path.iterdir()] == ['again']


def test_a_scene_depends_on_the_seed_and_not_on_the_number_of_scenes(scenes):
    sources = digits.load_sources()
    assert not np.array_equal(digits.make_scene(sources, 'train', 0, 96, 4)[0], scenes[0]['train'][0][0])
    first, last = (digits.make_scene(sources, 'val', 5, 96, 3)[0], scenes[0]['val'][5][0])
    assert np.array_equal(first, last)


def test_splits_share_no_handwriting(root):
    samples = {}
    for split in digits.SPLITS:
        data = annotations(root, split)
        crops = [(int(path.stem), path.parent.name) for path in root.glob(f'imagenet/{split}/*/*.png')]
        assert {folder for _, folder in crops} == set(digits.FOLDERS)
        samples[split] = {sample for sample, _ in crops}
        assert len(samples[split]) == len(crops)
        assert {item['source'] for item in data['annotations']} <= samples[split]
    assert not samples['train'] & samples['val']
    assert len(samples['train'] | samples['val']) == 1797
    assert 340 <= len(samples['val']) <= 370


@pytest.mark.parametrize('shape', [(30, 50), (50, 30)])
def test_splits_share_no_part_of_a_photograph(shape):
    photo = np.arange(np.prod(shape) * 3).reshape(*shape, 3)
    train, val = digits.split_photo(photo)
    assert (train.size, val.size) == (0.7 * photo.size, 0.3 * photo.size)
    assert not set(train.flat) & set(val.flat)


def test_labels_are_those_of_scikit_learn(root):
    from sklearn.datasets import load_digits

    target = load_digits().target
    for split in digits.SPLITS:
        for item in annotations(root, split)['annotations']:
            assert item['category_id'] == target[item['source']] + 1
        for path in root.glob(f'imagenet/{split}/*/*.png'):
            assert path.parent.name == digits.FOLDERS[target[int(path.stem)]]
            assert Image.open(path).size == (64, 64)


@pytest.mark.parametrize('split, folder', [('train', 'training'), ('val', 'validation')])
def test_coco_masks_are_the_ade_maps(root, split, folder):
    data = annotations(root, split)
    assert [item['id'] for item in data['annotations']] == list(range(1, len(data['annotations']) + 1))
    for image in data['images']:
        name = image['file_name']
        picture = root / f'coco/{split}2017' / name
        assert picture.read_bytes() == (root / f'ade/images/{folder}' / name).read_bytes()
        drawn = Image.open(root / f'ade/annotations/{folder}' / name.replace('.jpg', '.png'))
        assert drawn.mode == 'L' and drawn.size == Image.open(picture).size == (96, 96)
        expected = np.ones((96, 96), np.uint8)
        found = [item for item in data['annotations'] if item['image_id'] == image['id']]
        assert 1 <= len(found) <= 4
        for item in found:
            mask = coco_mask.decode(item['segmentation']).astype(bool)
            assert (expected[mask] == 1).all(), 'masks overlap'
            expected[mask] = item['category_id'] + 1
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            tight = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            assert item['bbox'] == tight and item['area'] == mask.sum() >= 20 and item['iscrowd'] == 0
        assert np.array_equal(np.asarray(drawn), expected)


def test_visible_strokes_stand_out_and_are_kept_in_part(monkeypatch):
    """Many digits in a small picture: each kept stroke still shows, and covers what it was put on."""
    strokes = []
    draw = digits.draw_stroke

    def remember(*arguments):
        strokes.append((draw(*arguments) > 0.5).sum())
        return draw(*arguments)

    monkeypatch.setattr(digits, 'draw_stroke', remember)
    scans, _, pools, photos = digits.load_sources()
    rng = np.random.default_rng(0)
    _, _, visible = digits.compose(rng, scans[pools['train'][:30]], photos['train'], 96, (0.3, 0.5))
    masks = list(visible.values())
    assert len(masks) > 4 and sum(mask.astype(int) for mask in masks).max() == 1
    assert min(mask.sum() for mask in masks) >= max(digits.MIN_PIXELS, digits.MIN_VISIBLE * min(strokes))
    patch = np.full((20, 20, 3), 128, np.uint8)
    colour = digits.contrasting_colour(rng, patch)
    assert abs(float(colour @ digits.LUMA) - 128) >= digits.MIN_CONTRAST


@pytest.mark.parametrize('split', digits.SPLITS)
def test_mmdet_reads_the_masks_exactly(root, scenes, split):
    datasets = pytest.importorskip('mmdet.datasets')
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    dataset = datasets.CocoDataset(
        data_root=str(root / 'coco'),
        ann_file=f'annotations/instances_{split}2017.json',
        data_prefix={'img': f'{split}2017/'},
        metainfo={'classes': digits.CLASSES},
        pipeline=[{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}],
    )
    made, labels = scenes
    assert len(dataset) == len(made[split])
    for item, (picture, _, objects) in zip(dataset, made[split]):
        assert np.array_equal(item['gt_masks'].masks.astype(bool), np.stack([mask for _, mask in objects]))
        assert item['gt_bboxes_labels'].tolist() == [labels[sample] for sample, _ in objects]
        assert not item['gt_ignore_flags'].any()
        boxes = item['gt_masks'].get_bboxes('hbox').tensor
        assert np.array_equal(item['gt_bboxes'].tensor, boxes)
        assert abs(item['img'][..., ::-1].astype(int) - picture).mean() < 4, 'JPEG of another scene'


@pytest.mark.parametrize(
    'options',
    [
        {'type': 'ADE20KDataset'},
        {
            'type': 'BaseSegDataset',
            'reduce_zero_label': True,
            'metainfo': {'classes': ('background', *digits.CLASSES), 'palette': [[i, i, i] for i in range(11)]},
        },
    ],
    ids=['published names', 'own names'],
)
def test_mmseg_reads_the_maps_exactly(root, scenes, options):
    registry = pytest.importorskip('mmseg.registry')
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    dataset = registry.DATASETS.build(
        {
            'data_root': str(root / 'ade'),
            'data_prefix': {'img_path': 'images/training', 'seg_map_path': 'annotations/training'},
            'pipeline': [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}],
            **options,
        }
    )
    made, labels = scenes
    assert len(dataset) == len(made['train'])
    for item, (_, _, objects) in zip(dataset, made['train']):
        expected = np.zeros((96, 96), np.uint8)
        for sample, mask in objects:
            expected[mask] = labels[sample] + 1
        assert np.array_equal(item['gt_seg_map'], expected)


def test_mmpretrain_finds_the_classes_in_order(root):
    datasets = pytest.importorskip('mmpretrain.datasets')
    dataset = datasets.ImageNet(data_root=str(root / 'imagenet'), split='val', metainfo={'classes': digits.FOLDERS})
    for index in range(0, len(dataset), 20):
        item = dataset.get_data_info(index)
        assert Path(item['img_path']).parent.name == digits.FOLDERS[item['gt_label']]


def test_preview_and_readme_are_written(root):
    assert min(Image.open(root / 'preview.png').size) > 900
    assert '--train 12 --val 6 --size 96 --seed 3' in (root / 'README.md').read_text()


def test_what_is_there_is_not_made_again(root):
    before = (root / digits.MANIFEST).stat().st_mtime_ns
    counts, made = digits.make_digits(root, **SMALL)
    assert not made and counts['train'] == 12
    assert 'already there' in run_tool(root, *OPTIONS).stdout
    assert (root / digits.MANIFEST).stat().st_mtime_ns == before


def test_other_options_are_refused_without_force(ours):
    result = run_tool(ours, '--train=5')
    assert result.returncode != 0 and '--force' in result.stderr and 'Traceback' not in result.stderr
    assert [path.name for path in ours.iterdir()] == [digits.MANIFEST]


def test_force_replaces_what_it_made(ours):
    (ours / 'old').touch()
    _, made = digits.make_digits(ours, train=1, val=1, size=64, force=True)
    assert made and not (ours / 'old').exists() and (ours / 'coco').is_dir()
    assert [path.name for path in ours.parent.iterdir()] == ['digits']


@pytest.mark.parametrize('force', [[], ['--force']])
def test_a_folder_of_somebody_else_is_never_touched(tmp_path, force):
    (tmp_path / 'thesis.txt').write_text('years of work')
    result = run_tool(tmp_path, *force)
    assert result.returncode != 0 and 'was not made by this tool' in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / 'file').touch()
    result = run_tool(tmp_path / 'file' / 'digits')
    assert result.returncode != 0 and result.stderr.startswith('make_digits: cannot write in')


@pytest.mark.parametrize('name, value', [('train', 0), ('val', 0), ('size', 63), ('seed', -1)])
def test_a_value_out_of_range_is_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f'{name} is {value}'):
        digits.make_digits(tmp_path / 'digits', **{name: value})


@pytest.mark.parametrize('package', ['sklearn', 'skimage', 'pycocotools'])
def test_a_missing_package_is_named_with_its_cure(tmp_path, monkeypatch, package):
    for name in [name for name in sys.modules if name.split('.')[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails, as if it was not installed
    with pytest.raises(digits.SourceMissing, match=rf'{package}.*pip install "xcit_mm\[digits\]"'):
        digits.make_digits(tmp_path / 'digits')
    assert not list(tmp_path.iterdir())


def start_and_signal(out, number):
    """Start a long run, send it a signal once it writes pictures, and return its exit status."""
    process = subprocess.Popen(
        [sys.executable, str(TOOL), str(out), '--train=100000'],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    end = time.monotonic() + 60
    while not list(out.parent.glob('*.partial-*/coco/train2017/*.jpg')):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    return process.wait(60)


@pytest.mark.skipif(os.name != 'posix', reason='signals')
def test_an_interrupted_run_leaves_nothing(tmp_path):
    assert start_and_signal(tmp_path / 'digits', signal.SIGINT) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec('fcntl') is None, reason='file locks')
def test_the_remains_of_a_killed_run_are_removed_but_not_a_running_one(tmp_path):
    import fcntl

    out = tmp_path / 'digits'
    start_and_signal(out, signal.SIGKILL)
    (remains,) = tmp_path.iterdir()
    (tmp_path / 'digits.partial-notes').mkdir()  # not ours: stays
    with open(remains / digits.UNFINISHED) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FileExistsError, match='another run is writing'):
            digits.make_digits(out, train=1, val=1, size=64)
        assert remains.exists()
    digits.make_digits(out, train=1, val=1, size=64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['digits', 'digits.partial-notes']
