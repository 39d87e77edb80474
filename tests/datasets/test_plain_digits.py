"""Digits drawn anew: which scans, and what their drawings share."""

import numpy as np
import pytest
from mmengine.registry import DATASETS, TRANSFORMS

from xcit_mm.datasets.digits import load_sources

pytest.importorskip('sklearn')


def build(**kwargs):
    return DATASETS.build(dict(type='xcit_mm.PlainDigits', pipeline=[], **kwargs))


def drawer(**kwargs):
    return TRANSFORMS.build(dict(type='xcit_mm.DrawDigit', **kwargs))


def test_every_scan_is_in_one_split_with_its_label():
    scans, labels, pools, _ = load_sources()
    for split in ('train', 'val'):
        data = build(split=split)
        assert [data[i]['gt_label'] for i in range(len(data))] == labels[pools[split]].tolist()
        assert all(np.array_equal(data[i]['scan'], scans[data[i]['number']]) for i in range(len(data)))
    assert len(pools['train']) + len(pools['val']) == 1797


def test_fixed_drawings_are_always_alike_and_others_never():
    data, fixed, free = build(split='val'), drawer(fixed=True), drawer()
    for i in range(20):
        first, again = (fixed(dict(data[i]))['img'] for _ in range(2))
        assert np.array_equal(first, again)
        first, again = (free(dict(data[i]))['img'] for _ in range(2))
        assert not np.array_equal(first, again)


@pytest.mark.parametrize('size', [32, 48])
def test_a_digit_lies_inside_in_a_size_within_the_bounds(size):
    data, draw = build(split='val'), drawer(size=size, min_height=0.5, max_height=0.8, max_rotation=0, max_shear=0)
    heights = []
    for i in range(100):
        picture = draw(dict(data[i]))['img']
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8 and picture.max() == 255
        heights.append(np.ptp(np.flatnonzero(picture.any((1, 2)))) + 1)
    assert 0.35 * size < min(heights) and max(heights) <= 0.9 * size and np.ptp(heights) > 0.15 * size


def test_places_and_slants_differ():
    data, draw = build(split='val'), drawer()
    rows, columns = np.transpose([np.argwhere(draw(dict(data[0]))['img'][..., 0]).mean(0) for _ in range(100)])
    assert np.ptp(rows) > 5 and np.ptp(columns) > 5


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="split must be one of train, val, got 'test'"):
        build(split='test')
