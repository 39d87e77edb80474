"""Segmentors of MMSegmentation."""

from collections import defaultdict
from typing import Sequence

import numpy as np

from ..segmentation import MMSegInferencer


class Segmentor:
    """A segmentor with its weights."""

    def __init__(self, cfg, checkpoint: str, device: str):
        self.inferencer = MMSegInferencer(cfg, checkpoint, device=device)
        self.inferencer.visualizer.set_dataset_meta(**self.inferencer.model.dataset_meta)
        self.inferencer.visualizer.alpha = 0.6
        self.classes = self.inferencer.model.dataset_meta['classes']

    def predict(self, images: Sequence[np.ndarray]) -> list:
        """BGR images -> data samples."""
        # MMSegmentation takes images of one size at a time; its inferencer's own call unpacks a list of one.
        batch_size = len(images) if len({image.shape for image in images}) == 1 else 1
        samples = []
        for data in self.inferencer.preprocess(list(images), batch_size=batch_size):
            samples.extend(self.inferencer.forward(data))
        return samples

    def describe(self, sample, score_thr: float) -> dict:
        """The classes of one image by the area they take."""
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        numbers, counts = np.unique(labels, return_counts=True)
        found = sorted(zip((counts / labels.size).tolist(), numbers.tolist()), reverse=True)
        classes = [{'class': self.classes[label], 'label': label, 'fraction': part} for part, label in found]
        return {'classes': classes, 'map': labels}

    def draw(self, image: np.ndarray, sample, score_thr: float) -> np.ndarray:
        """The RGB image under the classes' colours."""
        if image.shape[:2] == (1, 1):
            return image  # MMSegmentation takes the mask of a single pixel for an index
        visualizer = self.inferencer.visualizer
        visualizer.add_datasample('', np.ascontiguousarray(image), sample.cpu(), draw_gt=False)
        return visualizer.get_image()

    def summarise(self, results: Sequence[dict]) -> dict:
        """Mean part of the image that each class takes, and in how many images it is."""
        parts = defaultdict(list)
        for result in results:
            for found in result['classes']:
                parts[found['class']].append(found['fraction'])
        ranked = sorted(parts.items(), key=lambda item: -sum(item[1]))
        mean = {name: {'images': len(v), 'mean_fraction': sum(v) / len(results)} for name, v in ranked}
        return {'classes': mean}
