"""The figures of a report: metrics by class, confusion matrix, precision and recall."""

from typing import Dict, List, NamedTuple, Tuple

import numpy as np

from .records import by_class

SCORE, OVERLAP = 0.3, 0.5  # lowest score of a detection that counts; IoU of a box with its object


class Analysis(NamedTuple):
    """What a report shows.

    Attributes:
        columns (list[str]): Names of the metrics of each class.
        rows (list[list[float]]): One for each class; NaN where nothing can be measured.
        confusion (np.ndarray): Truth x prediction, as counts; detectors have a last row and column 'nothing'.
        curves (dict): Recall and precision by class name.
        badness (list[float]): For each record; the greater, the worse.
    """

    columns: List[str]
    rows: List[List[float]]
    confusion: np.ndarray
    curves: Dict[str, Tuple[np.ndarray, np.ndarray]]
    badness: List[float]


def analyse(task: str, records: List[dict], classes: List[str], metrics: Dict[str, float]) -> Analysis:
    """Compute the figures of a report from the records of a test.

    Args:
        task (str): One of :data:`.data.TASKS`.
        records (list[dict]): Of :class:`.records.Records`.
        classes (list[str]): Names in the order of the labels.
        metrics (dict): Metrics of the test; those of detectors hold the AP by class.
    """
    if task == 'classification':
        return _classified(records, classes)
    if task == 'semantic-segmentation':
        return _segmented(records, classes)
    return _detected(records, classes, metrics)


def _classified(records: List[dict], classes: List[str]) -> Analysis:
    from mmpretrain.evaluation import ConfusionMatrix, SingleLabelMetric

    scores, truth = np.stack([one['scores'] for one in records]), np.array([one['truth'] for one in records])
    found = scores.argmax(1)
    numbers = SingleLabelMetric.calculate(found, truth, num_classes=len(classes), average=None)
    precision, recall, f1 = (np.asarray(part, float) for part in numbers[:3])
    support = np.bincount(truth, minlength=len(classes))
    rows = [
        [int(support[i]), *(v[i] if support[i] else float('nan') for v in (precision, recall, f1))]
        for i in range(len(classes))
    ]
    confusion = ConfusionMatrix.calculate(found, truth, num_classes=len(classes)).numpy()
    curves = {}
    for label, name in enumerate(classes):
        if support[label]:
            order = np.argsort(-scores[:, label], kind='stable')
            hits = np.cumsum(truth[order] == label)
            curves[name] = hits / support[label], hits / np.arange(1, len(hits) + 1)
    # Wrong predictions first, the most confident one the worst; then correct ones by their margin.
    badness = [float(one['scores'].max() - one['scores'][one['truth']]) for one in records]
    return Analysis(['images', 'precision %', 'recall %', 'F1 %'], rows, confusion, curves, badness)


def _segmented(records: List[dict], classes: List[str]) -> Analysis:
    total = sum(one['confusion'] for one in records)
    hits, truth, found = np.diag(total), total.sum(1), total.sum(0)
    with np.errstate(divide='ignore', invalid='ignore'):
        iou, precision, recall = 100 * hits / (truth + found - hits), 100 * hits / found, 100 * hits / truth
    share = 100 * truth / max(truth.sum(), 1)
    rows = [[share[i], iou[i], precision[i], recall[i]] for i in range(len(classes))]
    return Analysis(['share %', 'IoU %', 'precision %', 'recall %'], rows, total, {}, list(map(_lost, records)))


def _lost(record: dict) -> float:
    """1 - mean IoU over the classes in an image."""
    confusion = record['confusion']
    hits, truth, found = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    there = truth > 0
    if not there.any():
        return 0.0
    return float(1 - (hits[there] / (truth + found - hits)[there]).mean())


def _detected(records: List[dict], classes: List[str], metrics: Dict[str, float]) -> Analysis:
    from mmdet.evaluation.functional import eval_map

    number = len(classes)
    predicted, truths = [], []
    for one in records:
        boxes, labels, scores = one['predicted']
        predicted.append(by_class(labels, np.hstack([boxes, scores[:, None]]).astype(np.float32), number))
        truths.append(
            dict(
                bboxes=one['boxes'].astype(np.float32),
                labels=one['labels'],
                bboxes_ignore=one['crowd'].astype(np.float32),
                labels_ignore=one['crowd_labels'],
            )
        )
    _, results = eval_map(predicted, truths, iou_thr=OVERLAP, logger='silent', nproc=1)
    confusion = np.zeros((number + 1, number + 1), int)
    badness = []
    for one in records:
        part = confuse(one, number)
        confusion += part
        right = np.diag(part)[:-1].sum()
        badness.append(float(part.sum() - right) / max(part.sum(), 1) if part.sum() else 0.0)
    rows, curves = [], {}
    for label, (name, result) in enumerate(zip(classes, results)):
        objects = int(np.sum(result['num_gts']))
        right = confusion[label, label]
        found, there = confusion[:, label].sum(), confusion[label].sum()
        whole = next((v for k, v in metrics.items() if k.endswith(f'/{name}_precision')), float('nan'))
        rows.append(
            [
                objects,
                100 * float(whole),
                100 * float(result['ap']) if objects else float('nan'),
                100 * right / found if found else float('nan'),
                100 * right / there if there else float('nan'),
            ]
        )
        if objects:
            curves[name] = np.atleast_1d(result['recall']), np.atleast_1d(result['precision'])
    columns = ['objects', 'AP %', f'AP at {OVERLAP} %', f'precision at {SCORE} %', f'recall at {SCORE} %']
    return Analysis(columns, rows, confusion, curves, badness)


def confuse(record: dict, number: int) -> np.ndarray:
    """Objects x detections of one image, (number + 1, number + 1); each object has the detection that overlaps it most.

    Detections below :data:`SCORE` do not count, nor do those that overlap a crowd. The last row holds false positives,
    the last column missed objects.
    """
    from mmdet.evaluation.functional import bbox_overlaps

    boxes, labels, scores = record['predicted']
    sure = scores >= SCORE
    boxes, labels, scores = boxes[sure], labels[sure], scores[sure]
    matrix = np.zeros((number + 1, number + 1), int)
    overlaps = bbox_overlaps(record['boxes'].astype(np.float32), boxes.astype(np.float32))
    taken, matched = set(), {}
    for place in np.argsort(-overlaps, axis=None):
        truth, found = divmod(int(place), max(len(boxes), 1))
        if not overlaps.size or overlaps.flat[place] < OVERLAP:
            break
        if truth not in matched and found not in taken:
            matched[truth] = found
            taken.add(found)
    for truth, label in enumerate(record['labels']):
        matrix[label, labels[matched[truth]] if truth in matched else number] += 1
    crowd = bbox_overlaps(boxes.astype(np.float32), record['crowd'].astype(np.float32), mode='iof')  # of a detection
    for found, label in enumerate(labels):
        if found not in taken and not (crowd.size and crowd[found].max() >= OVERLAP):
            matrix[number, label] += 1
    return matrix
