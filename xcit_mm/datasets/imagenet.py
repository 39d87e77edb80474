"""ImageNet's later test sets."""

from pathlib import Path
from typing import List

from mmpretrain.datasets import ImageNet

from ..registry import DATASETS


@DATASETS.register_module()
class ImageNetV2(ImageNet):
    """ImageNet-V2 (Recht et al., arXiv:1902.10811): folders ``0`` to ``999``, the class indices.

    As text these names sort as 0, 1, 10, 100, ..., so reading them as an ImageNet folder gives wrong labels.

    Args:
        As for :class:`mmpretrain.datasets.ImageNet`, without ``split``.
    """

    def load_data_list(self) -> List[dict]:
        """-> one dict for each image, with 'img_path' and 'gt_label'."""
        return [dict(item, gt_label=int(Path(item['img_path']).parent.name)) for item in super().load_data_list()]
