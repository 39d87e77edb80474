"""Classifiers of MMPretrain."""

from collections import defaultdict
from typing import Sequence

import numpy as np
from mmpretrain.visualization import UniversalVisualizer

from ..classification import ImageClassificationInferencer


class Classifier:
    """A classifier with its weights."""

    def __init__(self, cfg, checkpoint: str, device: str):
        self.inferencer = ImageClassificationInferencer(cfg, checkpoint, device=device)
        self.classes = self.inferencer.classes
        self.visualizer = UniversalVisualizer()

    def predict(self, images: Sequence[np.ndarray]) -> list:
        """BGR images -> data samples."""
        samples = []
        for data in self.inferencer.preprocess(list(images), batch_size=len(images)):
            samples.extend(self.inferencer.forward(data))
        return samples

    def describe(self, sample, score_thr: float) -> dict:
        """The five best classes of one image."""
        scores, labels = sample.pred_score.cpu().topk(min(5, len(sample.pred_score)))
        names = [self.classes[label] if self.classes else str(label) for label in labels.tolist()]
        found = zip(names, labels.tolist(), scores.tolist())
        return {'predictions': [{'class': name, 'label': label, 'score': score} for name, label, score in found]}

    def draw(self, image: np.ndarray, sample, score_thr: float) -> np.ndarray:
        """The RGB image, large enough to be read, with the best class."""
        edge = min(image.shape[:2])
        return self.visualizer.visualize_cls(
            np.ascontiguousarray(image), sample, self.classes, resize=max(edge, 224), draw_gt=False
        )

    def summarise(self, results: Sequence[dict]) -> dict:
        """How often each class is the best, and how sure the model is of it."""
        scores = defaultdict(list)
        for result in results:
            best = result['predictions'][0]
            scores[best['class']].append(best['score'])
        ranked = sorted(scores.items(), key=lambda item: -len(item[1]))
        return {'classes': {name: {'images': len(v), 'mean_score': float(np.mean(v))} for name, v in ranked}}
