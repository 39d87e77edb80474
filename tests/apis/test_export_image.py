"""Resizing inside the graph, against the libraries that the pipelines resize with."""

import cv2
import mmcv
import numpy as np
import pytest
import torch
from PIL import Image

from xcit_mm.apis.export_image import _crop, _edge, _fit, resize_like_opencv, resize_like_pillow

SIZES = [
    ((60, 91), (100, 150)),
    ((200, 300), (100, 150)),
    ((64, 64), (64, 64)),
    ((301, 77), (33, 200)),
    ((2, 3), (50, 7)),
]


def picture(size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def resized(image, by, size):
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return by(tensor, torch.tensor(size))[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize('old, new', SIZES)
def test_opencv_to_the_bit(old, new):
    image = picture(old)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    assert (resized(image, resize_like_opencv, new) == expected).all()


@pytest.mark.parametrize('kind', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('old, new', [((60, 90), (100, 150)), ((300, 400), (75, 100)), ((64, 80), (64, 80))])
def test_pillow_but_for_rounding(old, new, kind):
    image = picture(old)
    expected = np.array(Image.fromarray(image).resize(new[::-1], getattr(Image.Resampling, kind.upper())))
    apart = np.abs(resized(image, lambda x, size: resize_like_pillow(x, size, kind), new) - expected)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.005


def test_sizes_are_the_libraries():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 5000, (300, 2)).tolist():
        size = torch.tensor([height, width])
        for scale in ((1333, 800), (2048, 512), (160, 160)):
            expected = mmcv.image.geometric.rescale_size((width, height), scale)[::-1]
            assert tuple(_fit(size, scale).tolist()) == expected
        short = min(height, width)
        assert _edge(size, 224, 'short').tolist() == [int(224 * height / short), int(224 * width / short)]


@pytest.mark.parametrize('size', [(10, 15), (11, 6), (5, 5)])
def test_the_middle_is_that_of_mmpretrain(size):
    from mmpretrain.datasets.transforms import CenterCrop

    image = picture(size)
    expected = CenterCrop(crop_size=6)(dict(img=image))['img']
    found = _crop(torch.from_numpy(image).permute(2, 0, 1)[None].float(), 6, 6)
    assert (found[0].permute(1, 2, 0).numpy() == expected).all()
