"""CIFAR in BGR, the channel order in which image files are read."""

from typing import List

from mmpretrain import datasets

from ..compat import Mixin
from ..errors import UsageError
from ..registry import DATASETS


class _InBGR(Mixin):
    """Turn MMPretrain's RGB images into BGR, as image files are read, so that one config serves both."""

    def load_data_list(self) -> List[dict]:
        """-> one dict for each image, with 'img' (32, 32, 3) and 'gt_label'.

        Raises:
            UsageError: If the data is not there and cannot be downloaded.
        """
        try:
            items = super().load_data_list()
        except (OSError, RuntimeError, AssertionError) as error:
            root = self.data_prefix['root']
            raise UsageError(
                f'{type(self).__name__} is not in {root}, and could not be downloaded ({error}). Without network, '
                f'fetch {self.url} elsewhere and put it there, or name the folder with --data-root'
            ) from None
        return [dict(item, img=item['img'][..., ::-1]) for item in items]


@DATASETS.register_module()
class CIFAR10(_InBGR, datasets.CIFAR10):
    """MMPretrain's CIFAR10 with images in BGR, as ``to_rgb=True`` of the data preprocessor expects them."""


@DATASETS.register_module()
class CIFAR100(_InBGR, datasets.CIFAR100):
    """MMPretrain's CIFAR100 with images in BGR, as ``to_rgb=True`` of the data preprocessor expects them."""
