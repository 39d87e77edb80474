"""Detectors of MMDetection."""

from collections import defaultdict
from typing import List, Sequence

import numpy as np
from mmdet.structures.mask import encode_mask_results

from ..detection import DetInferencer


class Detector:
    """A detector with its weights."""

    def __init__(self, cfg, checkpoint: str, device: str):
        self.inferencer = DetInferencer(cfg, checkpoint, device=device, palette='random', show_progress=False)
        self.classes = self.inferencer.model.dataset_meta['classes']

    def predict(self, images: Sequence[np.ndarray]) -> list:
        """BGR images -> data samples."""
        return self.inferencer(list(images), return_datasamples=True, batch_size=len(images))['predictions']

    def describe(self, sample, score_thr: float) -> dict:
        """The detections of one image."""
        found = sample.pred_instances
        found = found[found.scores >= score_thr].cpu()
        detections: List[dict] = []
        for box, label, score in zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist()):
            detections.append({'class': self.classes[label], 'label': label, 'score': score, 'box': box})
        if 'masks' in found:
            for detection, mask in zip(detections, encode_mask_results(np.asarray(found.masks, dtype=bool))):
                detection['mask'] = {'size': list(mask['size']), 'counts': mask['counts'].decode()}
        return {'detections': detections}

    def draw(self, image: np.ndarray, sample, score_thr: float) -> np.ndarray:
        """The RGB image with boxes, masks and class names."""
        visualizer = self.inferencer.visualizer
        visualizer.add_datasample('', image, sample.cpu(), draw_gt=False, pred_score_thr=score_thr)
        return visualizer.get_image()

    def summarise(self, results: Sequence[dict]) -> dict:
        """How many objects of each class, and how sure the model is of them."""
        scores = defaultdict(list)
        for result in results:
            for detection in result['detections']:
                scores[detection['class']].append(detection['score'])
        ranked = sorted(scores.items(), key=lambda item: -len(item[1]))
        counts = {name: {'objects': len(values), 'mean_score': float(np.mean(values))} for name, values in ranked}
        return {'objects': sum(map(len, scores.values())), 'classes': counts}
