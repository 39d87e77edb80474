"""Segmentors of MMSegmentation."""

from collections import defaultdict
from typing import Sequence

import numpy as np

from ...visualization.predictions import draw_map
from .task import Task


class Segmentor(Task):
    """A segmentor with its weights."""

    def describe(self, sample, score_thr: float) -> dict:
        """The classes of one image by the area they take."""
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        numbers, counts = np.unique(labels, return_counts=True)
        found = sorted(zip((counts / labels.size).tolist(), numbers.tolist()), reverse=True)
        classes = [{'class': self.name(label), 'label': label, 'fraction': part} for part, label in found]
        return {'classes': classes, 'map': labels}

    def draw(self, image: np.ndarray, sample, score_thr: float) -> np.ndarray:
        """The RGB image under the classes' colours."""
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        return draw_map(image, labels, [self.name(i) for i in range(len(self.colours))], self.colours)

    def summarise(self, results: Sequence[dict]) -> dict:
        """Mean share of the image of each class, and the number of images that contain it."""
        parts = defaultdict(list)
        for result in results:
            for found in result['classes']:
                parts[found['class']].append(found['fraction'])
        ranked = sorted(parts.items(), key=lambda item: -sum(item[1]))
        mean = {name: {'images': len(v), 'mean_fraction': sum(v) / len(results)} for name, v in ranked}
        return {'classes': mean}
