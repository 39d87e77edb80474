"""CIFAR as image files are read."""

from typing import List

from mmpretrain import datasets

from ..registry import DATASETS


class _InBGR:
    """MMPretrain's CIFAR has its images in RGB, and image files are read in BGR: so one config serves both."""

    def load_data_list(self) -> List[dict]:
        return [dict(item, img=item['img'][..., ::-1]) for item in super().load_data_list()]


@DATASETS.register_module()
class CIFAR10(_InBGR, datasets.CIFAR10):
    """MMPretrain's CIFAR10 with images in BGR, as ``to_rgb=True`` of the data preprocessor expects them."""


@DATASETS.register_module()
class CIFAR100(_InBGR, datasets.CIFAR100):
    """MMPretrain's CIFAR100 with images in BGR, as ``to_rgb=True`` of the data preprocessor expects them."""
