"""Accuracy against several right answers for one image (Beyer et al., Are we done with ImageNet?, arXiv:2006.07159)."""

import json
import os
from pathlib import Path
from typing import Dict, List, Sequence, Union

from mmengine.evaluator import BaseMetric

from ..registry import METRICS

Labels = Union[List[List[int]], Dict[str, List[int]]]


def read_labels(path: str) -> Labels:
    """Read a file of reassessed labels.

    Args:
        path (str): JSON: a list with the right classes of each image, in the order of the file names, as ``real.json``
            of ImageNet-ReaL; or a dict of file name to right classes. An image may have none.

    Returns:
        list[list[int]] | dict[str, list[int]]: As in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of this form.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no label file {path}; ImageNet-ReaL publishes its labels as real.json')
    try:
        labels = json.loads(Path(path).read_text())
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f'the label file {path} is not JSON: {error}') from None
    rows = list(labels.values()) if isinstance(labels, dict) else labels
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and all(isinstance(label, int) for label in row) for row in rows
    ):
        raise ValueError(
            f'the label file {path} does not hold a list of class indices for each image, '
            f'such as [[3], [17, 25], []] or {{"ILSVRC2012_val_00000001.JPEG": [3]}}'
        )
    return labels


@METRICS.register_module()
class ReaLAccuracy(BaseMetric):
    """Share of the images, in percent, whose predicted class is among the right ones; images without any do not count.

    Args:
        label_file (str): See :func:`read_labels`.
        collect_device (str): As in :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        FileNotFoundError, ValueError: See :func:`read_labels`; and ValueError at the end, if the file belongs to
            other images.
    """

    default_prefix = 'real'

    def __init__(self, label_file: str, collect_device: str = 'cpu'):
        super().__init__(collect_device=collect_device)
        self.label_file = label_file
        self.labels = read_labels(label_file)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep each image's file name and predicted class."""
        for sample in data_samples:
            name = os.path.basename(sample['img_path'])
            self.results.append((name, int(sample['pred_score'].argmax())))

    def compute_metrics(self, results: list) -> dict:
        """-> {'top1': percent}."""
        predicted = dict(results)
        if isinstance(self.labels, dict):
            labels = self.labels
        else:
            if len(self.labels) != len(predicted):
                raise ValueError(
                    f'the label file {self.label_file} is for {len(self.labels)} images and the data set has '
                    f'{len(predicted)}; use the labels of this data set'
                )
            labels = dict(zip(sorted(predicted), self.labels))
        unknown = sorted(predicted.keys() - labels.keys())
        if unknown:
            raise ValueError(f'the label file {self.label_file} has no entry for {len(unknown)} images: {unknown[:3]}')
        judged = [predicted[name] in labels[name] for name in predicted if labels[name]]
        if not judged:
            raise ValueError(f'the label file {self.label_file} has no label for any image of the data set')
        return {'top1': 100 * sum(judged) / len(judged)}
