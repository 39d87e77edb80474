"""Detectors of MMDetection."""

from collections import defaultdict
from typing import List, Sequence

import numpy as np
from mmdet.structures.mask import encode_mask_results

from ...visualization.predictions import draw_detections
from .task import Task


class Detector(Task):
    """A detector with its weights."""

    def describe(self, sample, score_thr: float) -> dict:
        """The detections of one image."""
        found = sample.pred_instances
        found = found[found.scores >= score_thr].cpu()
        detections: List[dict] = []
        for box, label, score in zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist()):
            detections.append({'class': self.name(label), 'label': label, 'score': score, 'box': box})
        if 'masks' in found:
            masks = found.masks if isinstance(found.masks, list) else encode_mask_results(np.asarray(found.masks, bool))
            for detection, mask in zip(detections, masks):
                detection['mask'] = {'size': list(mask['size']), 'counts': mask['counts'].decode()}
        return {'detections': detections}

    def draw(self, image: np.ndarray, sample, score_thr: float) -> np.ndarray:
        """The RGB image with boxes, masks and class names."""
        found = sample.pred_instances
        found = found[found.scores >= score_thr].cpu()
        masks = found.masks if 'masks' in found else None
        labels, scores = found.labels.tolist(), found.scores.tolist()
        return draw_detections(image, found.bboxes.numpy(), labels, self.classes, self.colours, scores, masks)

    def summarise(self, results: Sequence[dict]) -> dict:
        """Number of objects and mean score of each class."""
        scores = defaultdict(list)
        for result in results:
            for detection in result['detections']:
                scores[detection['class']].append(detection['score'])
        ranked = sorted(scores.items(), key=lambda item: -len(item[1]))
        counts = {name: {'objects': len(values), 'mean_score': float(np.mean(values))} for name, values in ranked}
        return {'objects': sum(map(len, scores.values())), 'classes': counts}
