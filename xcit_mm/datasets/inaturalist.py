"""The iNaturalist competitions, in which DeiT and XCiT measure transfer."""

from typing import List

from mmengine import fileio
from mmpretrain.datasets import BaseDataset

from ..registry import DATASETS


@DATASETS.register_module()
class INaturalist(BaseDataset):
    """iNaturalist 2018 (8,142 classes) or 2019 (1,010) as the archives unpack, with COCO's JSON files.

    ``data_root`` holds ``train_val2018/`` with the images, ``train2018.json`` and ``val2018.json``. The label of an
    image is the id of its category, which counts from 0.

    Args:
        ann_file (str): 'train2018.json' or 'val2018.json'.
        **kwargs: As for :class:`mmpretrain.datasets.BaseDataset`.
    """

    def load_data_list(self) -> List[dict]:
        """-> one dict for each image, with 'img_path' and 'gt_label'."""
        content = fileio.load(self.ann_file)
        labels = {item['image_id']: item['category_id'] for item in content['annotations']}
        folder = self.img_prefix or self.data_root
        return [
            dict(img_path=fileio.join_path(folder, image['file_name']), gt_label=labels[image['id']])
            for image in content['images']
        ]
