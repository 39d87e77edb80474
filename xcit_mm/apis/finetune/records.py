"""Truth and prediction of every tested image for the report, small enough to keep all of them."""

from typing import Any, Dict, List, Optional, Sequence

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric

from .data import IGNORED


class Records(BaseMetric):
    """Keep truth and prediction of each image instead of scoring them.

    Args:
        task (str): One of :data:`.data.TASKS`.
        num_classes (int): For the confusion matrix of segmentors.

    Attributes:
        records (list[dict]): 'path' and, by task, 'truth' and 'scores' (classification); 'boxes', 'labels', 'crowd' and
            'predicted' (boxes, labels, scores; detection); 'confusion' (truth x prediction, in pixels) and 'map', a PNG
            of the prediction (segmentation).
    """

    default_prefix = 'records'

    def __init__(self, task: str, num_classes: int):
        super().__init__(collect_device='cpu')
        self.num_classes = num_classes
        self.records: List[dict] = []
        self._keep = {
            'classification': self._classified,
            'semantic-segmentation': self._segmented,
        }.get(task, self._detected)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.results.extend(dict(self._keep(sample), path=sample['img_path']) for sample in data_samples)

    @staticmethod
    def _classified(sample: dict) -> dict:
        return dict(truth=int(sample['gt_label'].flatten()[0]), scores=sample['pred_score'].cpu().numpy())

    @staticmethod
    def _detected(sample: dict) -> dict:
        truth, found = sample['gt_instances'], sample['pred_instances']
        aside = sample.get('ignored_instances')
        return dict(
            boxes=_array(truth['bboxes']).reshape(-1, 4),
            labels=_array(truth['labels']).astype(int),
            crowd=_array(aside['bboxes']).reshape(-1, 4) if aside is not None else np.zeros((0, 4)),
            crowd_labels=_array(aside['labels']).astype(int) if aside is not None else np.zeros(0, int),
            predicted=(
                _array(found['bboxes']).reshape(-1, 4),
                _array(found['labels']).astype(int),
                _array(found['scores']),
            ),
        )

    def _segmented(self, sample: dict) -> dict:
        truth = _array(sample['gt_sem_seg']['data'])[0]
        found = _array(sample['pred_sem_seg']['data'])[0]
        valid = truth != IGNORED
        pairs = truth[valid].astype(np.int64) * self.num_classes + found[valid]
        confusion = np.bincount(pairs, minlength=self.num_classes**2).reshape(self.num_classes, -1)
        return dict(confusion=confusion, map=cv2.imencode('.png', found.astype(np.uint8))[1].tobytes())

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        self.records = results
        return {}


def _array(values: Any) -> np.ndarray:
    """Convert a tensor, boxes that hold a tensor, or an array."""
    values = getattr(values, 'tensor', values)
    return values.cpu().numpy() if hasattr(values, 'cpu') else np.asarray(values)


def by_class(labels: np.ndarray, rows: np.ndarray, num_classes: int) -> List[np.ndarray]:
    """Split the rows of an array by class."""
    return [rows[labels == label] for label in range(num_classes)]


def best_first(records: List[dict], key, limit: Optional[int] = None) -> List[dict]:
    """Sort records by ``key``, the greatest first."""
    return sorted(records, key=key, reverse=True)[:limit]
