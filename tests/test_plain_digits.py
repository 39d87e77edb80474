"""Digits on plain grounds: which scans, how they are drawn, and that colours tell nothing."""

import numpy as np
import pytest
from mmengine.registry import DATASETS, TRANSFORMS

from xcit_mm.datasets.digits import LUMA, MIN_CONTRAST, load_sources

pytest.importorskip('sklearn')


def build(**kwargs):
    return DATASETS.build(dict(type='xcit_mm.PlainDigits', pipeline=[], **kwargs))


def test_every_scan_is_in_one_split_with_its_label():
    _, labels, pools, _ = load_sources()
    for split in ('train', 'val'):
        data = build(split=split)
        assert [data[i]['gt_label'] for i in range(len(data))] == labels[pools[split]].tolist()
    assert len(pools['train']) + len(pools['val']) == 1797


def test_pictures_are_the_same_in_every_epoch_and_differ_between_seeds():
    first, again, other = build(split='val'), build(split='val'), build(split='val', seed=1)
    assert all(np.array_equal(first[i]['img'], again[i]['img']) for i in range(50))
    assert not any(np.array_equal(first[i]['img'], other[i]['img']) for i in range(50))


def test_a_stroke_stands_out_from_one_plain_ground():
    data = build(split='val', size=40)
    for i in range(50):
        picture = data[i]['img']
        assert picture.shape == (40, 40, 3) and picture.dtype == np.uint8
        luma = picture[..., ::-1] @ LUMA
        colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        assert counts.max() > 0.4 * 40 * 40  # the ground
        assert luma.max() - luma.min() >= MIN_CONTRAST - 1


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="split must be one of train, val, got 'test'"):
        build(split='test')


def test_duotone_keeps_the_shape_and_nothing_of_the_colours():
    picture = build(split='val')[0]['img']
    duotone = TRANSFORMS.build(dict(type='xcit_mm.RandomDuotone', min_contrast=100))
    np.random.seed(0)
    before = picture[..., ::-1] @ LUMA
    grounds = []
    for _ in range(20):
        drawn = duotone(dict(img=picture))['img']
        luma = drawn[..., ::-1] @ LUMA
        assert drawn.dtype == np.uint8 and luma.max() - luma.min() >= 98
        assert abs(np.corrcoef(before.ravel(), luma.ravel())[0, 1]) > 0.999
        grounds.append(luma.ravel()[0])
    assert np.std(grounds) > 20
