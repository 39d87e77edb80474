"""Augmentations of classifiers as timm computes them, where MMPretrain's of the same name differ."""

import math

import numpy as np
from mmcv.transforms.utils import cache_randomness
from mmpretrain.datasets import transforms
from mmpretrain.datasets.transforms.auto_augment import RANDAUG_POLICIES, BaseAugTransform
from PIL import Image

from ..registry import TRANSFORMS

BY_PILLOW = ('Rotate', 'Shear', 'Translate')


@TRANSFORMS.register_module()
class RandAugment(transforms.RandAugment):
    """MMPretrain's, whose preset policies rotate, shear and translate with Pillow instead of OpenCV.

    Args:
        policies (str | list[dict]): As for :class:`mmpretrain.datasets.RandAugment`; ``'timm_increasing'`` with
            ``num_policies=2``, ``magnitude_level=9`` and ``magnitude_std=0.5`` is timm's ``rand-m9-mstd0.5-inc1``.
        **kwargs: As for :class:`mmpretrain.datasets.RandAugment`.
    """

    def __init__(self, policies, **kwargs):
        if isinstance(policies, str) and policies in RANDAUG_POLICIES:
            policies = [
                dict(policy, type=f'xcit_mm.{policy["type"]}') if policy['type'] in BY_PILLOW else policy
                for policy in RANDAUG_POLICIES[policies]
            ]
        super().__init__(policies, **kwargs)


class _ByPillow(BaseAugTransform):
    """A geometric augmentation of an image (H, W, 3), uint8, that keeps its size.

    Args:
        direction (str): 'horizontal' or 'vertical', for those that have one.
        pad_val (int | Sequence[int]): Value of pixels from outside the image, in its channel order.
        interpolation (str): 'nearest', 'bilinear' or 'bicubic'.
        **kwargs: As for :class:`mmpretrain.datasets.transforms.auto_augment.BaseAugTransform`.
    """

    def __init__(self, direction: str = 'horizontal', pad_val=128, interpolation: str = 'bicubic', **kwargs):
        super().__init__(**kwargs)
        self.horizontal = direction == 'horizontal'
        self.pad_val = tuple(pad_val) if isinstance(pad_val, (list, tuple)) else (pad_val,) * 3
        self.resample = getattr(Image, interpolation.upper())

    def transform(self, results: dict) -> dict:
        if not self.random_disable():
            image, magnitude = Image.fromarray(results['img']), self.random_negative(self.random_magnitude())
            results['img'] = np.array(self.move(image, magnitude))
        return results

    def move(self, image: Image.Image, magnitude: float) -> Image.Image:
        """Warp by the matrix that maps output pixels to input pixels."""
        matrix = self.matrix(magnitude, *image.size)
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, resample=self.resample, fillcolor=self.pad_val
        )


@TRANSFORMS.register_module()
class Rotate(_ByPillow):
    """Rotate about the centre; the magnitude is in degrees."""

    def move(self, image: Image.Image, magnitude: float) -> Image.Image:
        return image.rotate(magnitude, resample=self.resample, fillcolor=self.pad_val)


@TRANSFORMS.register_module()
class Shear(_ByPillow):
    """Shift each row by the magnitude times its number, or each column."""

    def matrix(self, magnitude: float, width: int, height: int) -> tuple:
        return (1, magnitude, 0, 0, 1, 0) if self.horizontal else (1, 0, 0, magnitude, 1, 0)


@TRANSFORMS.register_module()
class Translate(_ByPillow):
    """Shift by the magnitude times the width, or the height."""

    def matrix(self, magnitude: float, width: int, height: int) -> tuple:
        return (1, 0, magnitude * width, 0, 1, 0) if self.horizontal else (1, 0, 0, 0, 1, magnitude * height)


@TRANSFORMS.register_module()
class RandomErasing(transforms.RandomErasing):
    """MMPretrain's, with noise that is neither rounded nor cut to 0 ... 255, as if it were drawn after normalisation.

    With mean and deviation of the data preprocessor as ``fill_color`` and ``fill_std``, the network sees standard
    normal noise, as with timm's mode 'pixel'. The image, (H, W, 3), becomes float32, erased or not, since a batch
    has one type. Areas that do not fit into the image are drawn again, ten times at most, and not cut to it.

    Args:
        As for :class:`mmpretrain.datasets.transforms.RandomErasing`.
    """

    def transform(self, results: dict) -> dict:
        results['img'] = results['img'].astype(np.float32)
        return super().transform(results)

    def _fill_pixels(self, img, top, left, h, w):
        if self.mode == 'rand' and self.fill_std is not None and h:
            img[top : top + h, left : left + w] = np.random.normal(self.fill_color, self.fill_std, (h, w, 3))
            return img
        return super()._fill_pixels(img, top, left, h, w)

    @cache_randomness
    def random_patch(self, img_h: int, img_w: int) -> tuple:
        """-> top, left, height and width; the size is 0 if nothing fitted."""
        for _ in range(10):
            area = img_h * img_w * np.random.uniform(self.min_area_ratio, self.max_area_ratio)
            aspect = math.exp(np.random.uniform(*np.log(self.aspect_range)))
            h, w = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
            if h < img_h and w < img_w:
                return np.random.randint(img_h - h + 1), np.random.randint(img_w - w + 1), h, w
        return 0, 0, 0, 0
