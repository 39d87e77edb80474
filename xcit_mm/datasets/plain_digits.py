"""Handwritten digits, drawn anew at each access: classes that differ by shape alone."""

from typing import List

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset

from ..registry import DATASETS, TRANSFORMS
from .digits import CLASSES, SPLITS, draw_stroke, load_sources


@DATASETS.register_module()
class PlainDigits(BaseDataset):
    """scikit-learn's 1797 scans of handwritten digits, for :class:`DrawDigit`.

    The last fifth of each class is the validation split, as in the scenes of ``tools/make_digits.py``.

    Args:
        split (str): 'train' or 'val'.
        **kwargs: As for :class:`mmengine.dataset.BaseDataset`. The pipeline begins with 'scan', (8, 8) float32, its
            'number', and 'gt_label'.

    Raises:
        ValueError: If there is no such split.
        SourceMissing: If scikit-learn is not installed.
    """

    METAINFO = dict(classes=CLASSES)

    def __init__(self, split: str = 'train', **kwargs):
        if split not in SPLITS:
            raise ValueError(f'PlainDigits: split must be one of {", ".join(SPLITS)}, got {split!r}')
        self.split = split
        super().__init__(**kwargs)

    def load_data_list(self) -> List[dict]:
        """-> one dict for each scan."""
        scans, labels, pools, _ = load_sources()
        return [dict(scan=scans[i], number=int(i), gt_label=int(labels[i])) for i in pools[self.split]]


@TRANSFORMS.register_module()
class DrawDigit(BaseTransform):
    """Draw a scan as a white stroke on black: at a random place, in a random size, turned and slanted at random.

    Two drawings of a scan share its shape and nothing else, so that is what a network learns from pairs of them.

    Args:
        size (int): Side of the picture, px.
        min_height, max_height (float): Height of the digit, share of ``size``.
        max_rotation (float): Degrees to either side.
        max_shear (float): Horizontal shift over height, to either side.
        fixed (bool): Draw a scan always alike, by its number: for tests.
    """

    def __init__(
        self,
        size: int = 32,
        min_height: float = 0.5,
        max_height: float = 0.8,
        max_rotation: float = 20.0,
        max_shear: float = 0.2,
        fixed: bool = False,
    ):
        self.size, self.heights = size, (min_height, max_height)
        self.max_rotation, self.max_shear, self.fixed = max_rotation, max_shear, fixed

    def transform(self, results: dict) -> dict:
        """'scan', (8, 8) float32 in 0..1, and 'number' -> 'img', (size, size, 3) uint8."""
        rng = np.random.RandomState(results['number']) if self.fixed else np.random
        rotation, shear = rng.uniform(-1, 1, 2) * (self.max_rotation, self.max_shear)
        stroke = draw_stroke(results['scan'], self.size * rng.uniform(*self.heights), rotation, shear)
        stroke = stroke[: self.size, : self.size]
        top, left = (rng.randint(self.size - extent + 1) for extent in stroke.shape)
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        picture[top : top + stroke.shape[0], left : left + stroke.shape[1]] = np.rint(255 * stroke)[..., None]
        results.update(img=picture, img_shape=picture.shape[:2], ori_shape=picture.shape[:2])
        return results
