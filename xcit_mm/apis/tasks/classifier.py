"""Classifiers of MMPretrain."""

from collections import defaultdict
from typing import Sequence

import numpy as np
from mmengine.dataset import default_collate

from ...visualization.predictions import draw_classes
from .task import Task


class Classifier(Task):
    """A classifier with its weights."""

    collate = staticmethod(default_collate)

    def describe(self, sample, score_thr: float) -> dict:
        """The five best classes of one image."""
        scores, labels = sample.pred_score.cpu().topk(min(5, len(sample.pred_score)))
        found = zip(labels.tolist(), scores.tolist())
        return {'predictions': [{'class': self.name(label), 'label': label, 'score': score} for label, score in found]}

    def draw(self, image: np.ndarray, sample, score_thr: float) -> np.ndarray:
        """The RGB image with the best class."""
        score, label = sample.pred_score.cpu().max(dim=0)
        return draw_classes(image, [(f'{self.name(int(label))} {float(score):.2f}', self.colours[int(label)])])

    def summarise(self, results: Sequence[dict]) -> dict:
        """In how many images each class is the best, and its mean score."""
        scores = defaultdict(list)
        for result in results:
            best = result['predictions'][0]
            scores[best['class']].append(best['score'])
        ranked = sorted(scores.items(), key=lambda item: -len(item[1]))
        return {'classes': {name: {'images': len(v), 'mean_score': float(np.mean(v))} for name, v in ranked}}
