"""The numbers of a report, of predictions whose answers are known."""

import numpy as np
import pytest

from xcit_mm.apis.finetune.analysis import analyse, confuse


def detected(boxes, labels, predicted, crowd=()):
    found, numbers, scores = zip(*predicted) if predicted else ((), (), ())
    return dict(
        path='',
        boxes=np.array(boxes, float).reshape(-1, 4),
        labels=np.array(labels, int),
        crowd=np.array(crowd, float).reshape(-1, 4),
        crowd_labels=np.zeros(len(crowd), int),
        predicted=(np.array(found, float).reshape(-1, 4), np.array(numbers, int), np.array(scores, float)),
    )


def test_each_object_has_one_detection():
    record = detected(
        [[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]],
        [0, 1, 1],
        [
            ([0, 0, 10, 10], 0, 0.9),  # right
            ([0, 0, 10, 9], 0, 0.8),  # a second one of the same object: of nothing
            ([20, 20, 30, 30], 0, 0.7),  # another class
            ([80, 80, 90, 90], 1, 0.6),  # of nothing
            ([50, 50, 60, 60], 1, 0.1),  # too unsure, so its object is missed
        ],
    )
    assert confuse(record, 2).tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]


def test_detections_of_a_crowd_count_for_nothing():
    record = detected([], [], [([0, 0, 10, 10], 0, 0.9), ([40, 40, 50, 50], 0, 0.9)], crowd=[[0, 0, 30, 30]])
    assert confuse(record, 1).tolist() == [[0, 0], [1, 0]]


def test_no_detections_and_no_objects():
    assert confuse(detected([], [], []), 1).tolist() == [[0, 0], [0, 0]]
    assert confuse(detected([[0, 0, 5, 5]], [0], []), 1).tolist() == [[0, 1], [0, 0]]


def test_detectors():
    records = [
        detected([[0, 0, 10, 10]], [0], [([0, 0, 10, 10], 0, 0.9)]),
        detected([[0, 0, 10, 10]], [0], [([30, 30, 40, 40], 0, 0.8)]),
    ]
    found = analyse('detection', records, ['a', 'b'], {'coco/a_precision': 0.5})
    objects, ap, ap50, precision, recall = found.rows[0]
    assert (objects, ap, precision, recall) == (2, 50, 50, 50)
    assert ap50 == pytest.approx(50)
    assert np.isnan(found.rows[1][1:]).all()
    assert found.badness[1] > found.badness[0] == 0
    recall, precision = found.curves['a']
    assert recall.tolist() == [0.5, 0.5]
    assert precision.tolist() == [1.0, 0.5]


def test_classifiers():
    scores = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.3, 0.7, 0]])
    records = [dict(path='', truth=truth, scores=row) for truth, row in zip((0, 1, 1, 0), scores)]
    found = analyse('classification', records, ['a', 'b', 'c'], {})
    assert found.rows[0] == [2, 50, 50, 50]
    assert np.isnan(found.rows[2][1:]).all()
    assert found.confusion.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert int(np.argmax(found.badness)) == 3  # 0.7 for the wrong class, 0.3 for the right one


def test_segmentors():
    confusion = np.array([[8, 2, 0], [0, 6, 0], [0, 0, 0]])
    found = analyse('semantic-segmentation', [dict(path='', confusion=confusion)], ['a', 'b', 'c'], {})
    assert found.rows[0] == pytest.approx([62.5, 80, 100, 80])
    assert found.rows[1] == pytest.approx([37.5, 75, 75, 100])
    assert np.isnan(found.rows[2][1])
    assert found.badness == pytest.approx([1 - (0.8 + 0.75) / 2])
