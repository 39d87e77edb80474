"""MMPretrain's data sets of folders, with labels that follow the classes of the config."""

from typing import Dict, List, Tuple

import mmpretrain.datasets

from ..compat import Mixin
from .folder_labels import folder_labels


class _LabelsByName(Mixin):
    """Gives a folder with the name of a class the label of that class, see :func:`folder_labels`."""

    folder_to_idx: Dict[str, int]

    def _find_samples(self) -> List[Tuple[str, int]]:
        """-> path and label of each image."""
        classes = self.CLASSES
        samples = super()._find_samples()
        if not self.with_label:
            return samples
        labels = folder_labels(
            list(self.folder_to_idx),
            classes,
            self._metainfo.get('folders'),
            classes == self.METAINFO.get('classes'),
            self.img_prefix,
        )
        renamed = {number: labels[name] for name, number in self.folder_to_idx.items()}
        self.folder_to_idx = labels
        # Saved in checkpoints, where FolderLabelsHook compares it.
        self._metainfo['folders'] = tuple(sorted(labels, key=labels.__getitem__))
        if classes is None:
            self._metainfo['classes'] = self._metainfo['folders']
        return [(path, renamed[number]) for path, number in samples]


class CustomDataset(_LabelsByName, mmpretrain.datasets.CustomDataset):
    """Labels of folders follow ``classes``; else as :class:`mmpretrain.datasets.CustomDataset`."""


class ImageNet(_LabelsByName, mmpretrain.datasets.ImageNet):
    """Labels of folders follow ``classes``; else as :class:`mmpretrain.datasets.ImageNet`."""


class ImageNet21k(_LabelsByName, mmpretrain.datasets.ImageNet21k):
    """Labels of folders follow ``classes``; else as :class:`mmpretrain.datasets.ImageNet21k`."""
