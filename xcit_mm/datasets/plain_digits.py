"""Handwritten digits, each on a plain ground, made when they are asked for: classes that differ by shape alone."""

from typing import List

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset

from ..registry import DATASETS, TRANSFORMS
from .digits import CLASSES, LUMA, MIN_CONTRAST, SPLITS, draw_stroke, load_sources


@DATASETS.register_module()
class PlainDigits(BaseDataset):
    """scikit-learn's 1797 digit scans at random places, in random colours on grounds of random colours.

    Colours and places say nothing about the class, so pixels are a poor guide to it. A picture depends on its number
    and the seed alone, and is the same in every epoch. The last fifth of each class is the validation split.

    Args:
        split (str): 'train' or 'val'.
        size (int): Side of a picture, px.
        seed (int): Of places, sizes and colours.
        **kwargs: As for :class:`mmengine.dataset.BaseDataset`. The pipeline begins with 'img', (size, size, 3) uint8
            BGR, and 'gt_label'.

    Raises:
        ValueError: If there is no such split.
        SourceMissing: If scikit-learn is not installed.
    """

    METAINFO = dict(classes=CLASSES)

    def __init__(self, split: str = 'train', size: int = 32, seed: int = 0, **kwargs):
        if split not in SPLITS:
            raise ValueError(f'PlainDigits: split must be one of {", ".join(SPLITS)}, got {split!r}')
        self.split, self.size, self.seed = split, size, seed
        super().__init__(**kwargs)

    def load_data_list(self) -> List[dict]:
        """-> one dict for each scan, with 'img' and 'gt_label'."""
        scans, labels, pools, _ = load_sources()
        return [dict(img=self._draw(scans[i], i), gt_label=int(labels[i])) for i in pools[self.split]]

    def _draw(self, scan: np.ndarray, number: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, int(number)])
        height = self.size * rng.uniform(0.6, 0.75)
        alpha = draw_stroke(scan, height, rng.uniform(-15, 15), rng.uniform(-0.15, 0.15))
        alpha = alpha[: self.size, : self.size]
        top, left = (int(rng.integers(0, self.size - extent + 1)) for extent in alpha.shape)
        opacity = np.zeros((self.size, self.size, 1), np.float32)
        opacity[top : top + alpha.shape[0], left : left + alpha.shape[1], 0] = alpha
        ground, ink = _contrasting_pair(rng, MIN_CONTRAST)
        return np.rint(ground + (ink - ground) * opacity).astype(np.uint8)


@TRANSFORMS.register_module()
class RandomDuotone(BaseTransform):
    """Draw an image in two random colours: its luma, stretched to the full range, goes from the one to the other.

    Views that are each drawn in colours of their own share shapes alone, so these are what DINO learns from them.

    Args:
        min_contrast (float): Least difference of the luma of the two colours, 0 to 255.
    """

    def __init__(self, min_contrast: float = 60):
        self.min_contrast = min_contrast

    def transform(self, results: dict) -> dict:
        """'img', (H, W, 3) uint8 BGR, becomes another of the same kind."""
        luma = results['img'][..., ::-1] @ LUMA
        low, high = float(luma.min()), float(luma.max())
        share = ((luma - low) / max(high - low, 1.0))[..., None]
        first, second = _contrasting_pair(np.random, self.min_contrast)
        results['img'] = np.rint(first + (second - first) * share).astype(np.uint8)
        return results


def _contrasting_pair(rng, least: float) -> np.ndarray:
    """Two random colours, (2, 3), whose luma differs by ``least`` or more; BGR."""
    draw = rng.integers if hasattr(rng, 'integers') else rng.randint
    while True:
        pair = draw(0, 256, (2, 3)).astype(np.float32)
        if abs(float(LUMA[::-1] @ (pair[0] - pair[1]))) >= least:
            return pair
