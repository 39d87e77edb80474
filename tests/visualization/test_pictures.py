"""Pictures of predictions: their colours, letters sized by the image, one folder for the tests of all libraries."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from small_runs import small_cfg

from xcit_mm.datasets.digits import FOLDERS
from xcit_mm.datasets.reading import to_picture
from xcit_mm.engine.setup import build_runner
from xcit_mm.errors import UsageError
from xcit_mm.visualization.colours import class_colours, colours_of
from xcit_mm.visualization.predictions import draw_classes, draw_detections, draw_map, put_tag
from xcit_mm.visualization.results import draw_results

RED, BLUE = (220, 20, 20), (20, 20, 220)
COLOURS = [(220 - 20 * i, 10, 20 * i) for i in range(10)]


@pytest.mark.parametrize('number', [2, 3, 10, 11, 150, 1000])
def test_no_two_classes_have_the_same_colour(number):
    colours = class_colours(number)
    assert len(colours) == number == len(set(colours))
    few = np.array(colours[:10], float)
    distances = np.linalg.norm(few[:, None] - few[None], axis=-1) + 1e3 * np.eye(len(few))
    assert distances.min() > 60


def test_background_is_black_and_the_other_classes_have_the_first_colours():
    assert colours_of(['background', 'a', 'b']) == [(0, 0, 0), *class_colours(2)]


def test_a_palette_of_the_data_is_kept_unless_two_classes_share_a_colour():
    assert colours_of(['a', 'b'], [[1, 2, 3], [4, 5, 6]]) == [(1, 2, 3), (4, 5, 6)]
    for palette in ([[1, 2, 3], [1, 2, 3]], [[1, 2, 3]], None, 'random'):
        assert colours_of(['a', 'b'], palette) == class_colours(2)


@pytest.mark.parametrize('size', [(48, 64), (480, 640), (3000, 4000)])
def test_letters_are_sized_by_the_image(size):
    image = np.zeros((*size, 3), np.uint8)
    height = put_tag(image, 'green 0.99', (size[1] // 2, size[0] // 2), RED)
    rows, columns = np.nonzero((image == RED).all(-1))
    assert 0.01 < height / size[0] < 0.4 and columns.max() - columns.min() > 3 * height
    assert len(np.unique(rows)) == height


def test_masks_and_boxes_are_drawn_where_they_are():
    image = np.full((300, 400, 3), 100, np.uint8)
    masks = np.zeros((2, 300, 400), bool)
    masks[0, 150:200, 50:120] = True
    boxes = np.array([[50, 150, 120, 200], [250, 150, 300, 180]], float)
    drawn = draw_detections(image, boxes, [0, 1], ['a', 'b'], [RED, BLUE], [0.9, 0.8], masks)
    assert (image == 100).all()  # a copy was drawn on
    assert drawn[175, 85, 0] > drawn[175, 85, 2] and (drawn[165, 275] == 100).all()
    assert (drawn[150, 280] == BLUE).all() and (drawn[150, 60] == RED).all()
    changed = (drawn != 100).any(-1)
    assert not changed[210:].any() and not changed[:, :45].any()
    nothing = draw_detections(image, np.zeros((0, 4)), [], ['a'], [RED], [], np.zeros((0, 300, 400), bool))
    assert (nothing == image).all()


def test_maps_keep_pixels_of_no_class():
    image = np.full((200, 300, 3), 100, np.uint8)
    labels = np.zeros((200, 300), np.uint8)
    labels[:, 150:] = 1
    labels[180:] = 255
    drawn = draw_map(image, labels, ['left', 'right'], [RED, BLUE])
    assert (drawn[190:] == 100).all()
    assert drawn[5, 5, 0] > drawn[5, 5, 2] and drawn[5, 295, 2] > drawn[5, 295, 0]
    assert draw_map(image[:1, :1], labels[:1, :1], ['left', 'right'], [RED, BLUE]).shape == (1, 1, 3)
    assert draw_classes(image[:3, :5], [('a long name 0.99', RED)]).shape == (3, 5, 3)


@pytest.mark.parametrize('scale, dtype', [(1, np.uint8), (257, np.uint16), (16, np.uint16), (1 / 255, np.float32)])
def test_any_depth_is_shown_as_bright_as_it_is(scale, dtype):
    seen = np.array([[[255, 128, 10], [0, 40, 200]]], np.uint8)
    image = (seen.astype(float) * scale).astype(dtype)
    assert np.abs(to_picture(image, 'RGB').astype(int) - seen).max() <= 1
    assert np.abs(to_picture(image[..., ::-1]).astype(int) - seen).max() <= 1
    assert to_picture(image[..., 0]).shape == to_picture(np.dstack([image, image[..., :1]])).shape == (1, 2, 3)


def pictures_of(cfg, checkpoint, folder):
    """Test as the tool does, with pictures."""
    cfg.load_from = checkpoint
    draw_results(cfg, str(folder))
    build_runner(Config(cfg.to_dict())).test()
    return {str(path.relative_to(folder)): Image.open(path) for path in folder.rglob('*') if path.is_file()}


def test_a_classifiers_pictures(small_models, tmp_path, capsys):
    """All of them, in their own colours and size, though all have the same name."""
    for name, colour in zip(FOLDERS, COLOURS):
        (tmp_path / 'data/val' / name).mkdir(parents=True)
        Image.new('RGB', (90, 70), colour).save(tmp_path / 'data/val' / name / 'photo.png')
    cfg = Config.fromfile(small_models['classifier'][0])
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.test_dataloader.dataset.data_root = str(tmp_path / 'data')
    cfg.update(launcher='none', work_dir=str(tmp_path / 'work'), log_level='ERROR', experiment_name='pictures_cls')
    pictures = pictures_of(cfg, small_models['classifier'][1], tmp_path / 'pictures')
    assert f'10 pictures are in {tmp_path / "pictures"}' in capsys.readouterr().out
    assert set(pictures) == {f'{name}/photo.png' for name in FOLDERS}
    for name, colour in zip(FOLDERS, COLOURS):
        picture = np.asarray(pictures[f'{name}/photo.png'])
        assert picture.shape == (70, 90, 3) and (picture[-1, -1] == colour).all()


@pytest.mark.parametrize('kind', ['detector', 'semantic_fpn'])
def test_truth_and_prediction_are_side_by_side(kind, small_models, small_digits, tmp_path):
    cfg = small_cfg(small_models, kind, small_digits, tmp_path / 'work')
    pictures = pictures_of(cfg, small_models[kind][1], tmp_path / 'pictures')
    folder = small_digits / ('coco/val2017' if kind == 'detector' else 'ade/images/validation')
    assert set(pictures) == {path.name for path in folder.iterdir()}
    for name, picture in pictures.items():
        seen = np.asarray(Image.open(folder / name).convert('RGB')).astype(int)
        drawn = np.asarray(picture.convert('RGB')).astype(int)
        assert drawn.shape == (seen.shape[0], 2 * seen.shape[1], 3)
        if kind == 'detector':
            same = np.abs(drawn[:, : seen.shape[1]] - seen).max(-1) < 40
            assert 0.2 < same.mean() < 1  # the picture, with something drawn in


def test_a_folder_that_cannot_be_created_is_refused(small_models, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UsageError, match='cannot be created'):
        draw_results(Config.fromfile(small_models['detector'][0]), str(tmp_path / 'file/pictures'))
