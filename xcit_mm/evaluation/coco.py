"""COCO's metric on the images and annotations of the data set, with labels in the order of the config's classes.

MMDetection's metric reads an annotation file of its own, which may differ from that of the data set. It takes labels in
the order of the file's categories, scores a part of the data against all images, and reports -1 where there is nothing
to score.
"""

import io
import logging
import math
import os
import sys
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from typing import Dict, List, Optional, Sequence

from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger, print_log

from ..compat import Mixin
from ..datasets.annotations import counted, mistake_of_mask, some
from ..datasets.coco import CheckedAnnotations, CheckedLoading, warn
from ..datasets.config import side_by_side
from ..errors import UsageError

# COCO's object sizes: ranges of the area in pixels.
AREAS = {'s': (0, 32**2), 'm': (32**2, 96**2), 'l': (96**2, 1e10)}
# Tables of more classes are only logged if the config asks for them.
MOST_CLASSES = 100
ALLOWED = ('bbox', 'segm', 'proposal', 'proposal_fast')


class DataSetMetric(Mixin):
    """Mixin for :class:`mmdet.evaluation.CocoMetric`: the ground truth is the data set's, see :meth:`use`.

    Values that cannot be measured, such as the AP of small objects where there are none, are omitted instead of -1 or
    NaN. The AP per class is logged as a table; with ``classwise=True`` it is also part of the result.
    """

    def __init__(self, ann_file: Optional[str] = None, classwise: bool = False, **kwargs):
        metrics = kwargs.get('metric', 'bbox')
        for one in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
            if one not in ALLOWED:
                raise UsageError(f'the metric of {type(self).__name__} is one of {", ".join(ALLOWED)}, got {one!r}')
        if kwargs.get('format_only') and not kwargs.get('outfile_prefix'):
            raise UsageError(
                f'{type(self).__name__} with format_only=True needs outfile_prefix, where results are written'
            )
        super().__init__(classwise=classwise, **kwargs)
        self.ann_file, self.class_results = ann_file, classwise
        self.sizes = set(AREAS)
        self.file_ids: Optional[list] = None

    def use(self, datasets: Sequence, split: str) -> None:
        """Take the ground truth from the data sets to test on.

        Args:
            datasets (Sequence[BaseDataset]): In the order of the samples, without wrappers.
            split (str): 'val' or 'test', for messages.

        Raises:
            UsageError: If the metric's own ``ann_file`` disagrees with the data set's about the images, if several
                images have one id, if there is nothing to score, or if there are no masks to compare with.
        """
        if self.cat_ids is not None:
            return
        known = [dataset for dataset in datasets if isinstance(dataset, CheckedLoading) and dataset.annotations]
        if self.ann_file is None and len(known) < len(datasets):
            return  # MMDetection takes the ground truth out of the samples then
        classes = list(datasets[0].metainfo['classes'])
        img_ids = [one for dataset in datasets for one in _ids(dataset)]
        twice = [str(one) for one, count in Counter(img_ids).items() if count > 1]
        if twice:
            raise UsageError(
                f'the data for {split} have {len(twice)} images whose id another one has too ({some(twice)}), and the '
                f'metric tells them apart by it. Test the annotation files one after another, or renumber the images'
            )
        sources = self._sources(known, datasets, classes, img_ids, split)
        self._set_ground_truth(sources, classes, img_ids)
        if not self.format_only:
            self._check_ground_truth(classes, datasets, split)

    def _sources(self, known, datasets, classes, img_ids, split) -> List[CheckedAnnotations]:
        """The annotation files to score against."""
        of_data = [dataset.annotations for dataset in known]
        names = [dataset.ann_file for dataset in known]
        if self.ann_file is None or (len(names) == len(datasets) == 1 and _is_same_file(self.ann_file, names[0])):
            return of_data
        key = f'{split}_evaluator.ann_file'
        if '://' not in self.ann_file and not os.path.isfile(self.ann_file):
            if len(known) < len(datasets):
                raise UsageError(f'there is no file {self.ann_file} ({key})')
            warn(f'there is no file {self.ann_file} ({key}): scored against that of the data set, {some(names)}')
            return of_data
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            own = CheckedAnnotations(path, self.ann_file, classes, with_masks=False, test_mode=True)
        for dataset in datasets:
            if dataset not in known and hasattr(dataset, 'cat_ids'):  # it reads its file differently
                names = [own.cats[one]['name'] for one in dataset.cat_ids if one in own.cats]
                if names != list(classes):
                    raise UsageError(
                        f'the data for {split} give labels in the order of the file.'
                        f'{side_by_side(names, classes, (type(dataset).__name__, "config"))}\n'
                        f'List metainfo.classes in that order'
                    )
        advice = f'Set {key} to the file of {split}_dataloader.dataset, or to None: the metric takes it from there then'
        missing = [str(one) for one in img_ids if one not in own.imgs]
        if missing:
            raise UsageError(
                f'data set and metric do not belong together: {len(missing)} of {len(img_ids)} images for {split} '
                f'({some(names) or type(datasets[0]).__name__}) are not in {self.ann_file} ({key}), with the ids '
                f'{some(missing)}. {advice}'
            )
        for annotations in of_data:
            other = [
                str(one) for one in img_ids if one in annotations.imgs and _differs(annotations, own, one, classes)
            ]
            if other:
                raise UsageError(
                    f'data set and metric do not belong together: {annotations.name} (data for {split}) and '
                    f'{self.ann_file} ({key}) have other annotations for {len(other)} of {len(img_ids)} images, with '
                    f'the ids {some(other)}. {advice}'
                )
        return [own]

    def _set_ground_truth(self, sources: List[CheckedAnnotations], classes: List[str], img_ids: list) -> None:
        label, wanted = {name: i for i, name in enumerate(classes)}, set(img_ids)
        images: List[dict] = []
        annotations: List[dict] = []
        file_ids: dict = {}
        for source in sources:
            names = {category['id']: category['name'] for category in source.dataset['categories']}
            file_ids.update((name, one) for one, name in reversed(list(names.items())))
            images += [image for image in source.dataset['images'] if image['id'] in wanted]
            annotations += [
                dict(row, category_id=label[names[row['category_id']]])
                for row in source.dataset['annotations']
                if row['image_id'] in wanted and names[row['category_id']] in label
            ]
        if 'segm' in self.metrics and not self.format_only:
            _check_masks(annotations, {image['id']: image for image in images})
        # COCO's code treats an object with id 0 as never found.
        annotations = [dict(row, id=number) for number, row in enumerate(annotations, 1)]
        # Labels as ids: the order of sorted ids, in which COCO's code gives its results, is that of the classes.
        categories = [dict(id=i, name=name) for i, name in enumerate(classes)]
        self._coco_api = GroundTruth.of(dict(images=images, annotations=annotations, categories=categories))
        self.cat_ids, self.img_ids = list(range(len(classes))), img_ids
        self.file_ids = [file_ids[name] for name in classes]
        if not self.class_results:
            self.classwise = len(classes) <= MOST_CLASSES

    def _check_ground_truth(self, classes: List[str], datasets: Sequence, split: str) -> None:
        rows = [row for row in self._coco_api.dataset['annotations'] if not row['iscrowd']]
        if not rows:
            why = '; '.join(getattr(dataset, 'why_nothing', '') for dataset in datasets)
            raise UsageError(f'there is no object to score in the data for {split}: {why}')
        self.sizes = {name for name, (low, high) in AREAS.items() if any(low <= row['area'] <= high for row in rows)}
        there = {row['category_id'] for row in rows}
        absent = [str(name) for i, name in enumerate(classes) if i not in there]
        if absent:
            warn(
                f'{len(absent)} of {len(classes)} classes have no object in the data for {split} '
                f'({some(absent, 5)}): they have no AP, and mAP is the mean of the others'
            )

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """As in MMDetection; raises a UsageError at the first batch of a model without masks."""
        if 'segm' in self.metrics and any('masks' not in sample['pred_instances'] for sample in data_samples):
            raise UsageError(
                "the metric 'segm' compares masks, and the model gives boxes alone; set metric='bbox' in val_evaluator "
                'and test_evaluator'
            )
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """As in MMDetection, without values that cannot be measured."""
        if self.format_only and self.file_ids:
            self.cat_ids = self.file_ids
        with _absent_as_words():
            values = super().compute_metrics(results)
        if self.outfile_prefix and self.file_ids and not self.format_only:
            labels, self.cat_ids = self.cat_ids, self.file_ids
            self.results2json([prediction for _, prediction in results], self.outfile_prefix)
            self.cat_ids = labels
        measured = {name: value for name, value in values.items() if not math.isnan(value) and value != -1}
        if not self.class_results:
            measured = {name: value for name, value in measured.items() if not name.endswith('_precision')}
        return measured


def follow(metric: MMDetCocoMetric, datasets: Sequence) -> None:
    """Make a metric with its own scoring take labels and images from the data sets.

    Raises:
        UsageError: If its table of classes would show the wrong names.
    """
    api = getattr(metric, '_coco_api', None)
    if api is None or not all(isinstance(dataset, CheckedLoading) for dataset in datasets):
        return
    label = {name: i for i, name in enumerate(datasets[0].metainfo['classes'])}
    api.dataset['categories'].sort(key=lambda category: label.get(category['name'], len(label)))
    ids = [category['id'] for category in api.dataset['categories'] if category['name'] in label]
    if metric.classwise and ids != sorted(ids):
        raise UsageError(
            f'{type(metric).__name__} with classwise=True writes results in the order of the ids in '
            f'{datasets[0].ann_file}, which is not that of metainfo.classes. Take CocoMetric, or write classes in the '
            f'order of the ids'
        )
    metric.img_ids = [one for dataset in datasets for one in dataset.img_ids]


class CocoMetric(DataSetMetric, MMDetCocoMetric):
    """MMDetection's ``CocoMetric`` on the annotations of the data set; see :class:`DataSetMetric`."""


@lru_cache(maxsize=None)
def checked(kind: type) -> type:
    """The class that scores what the data set gives; ``kind`` itself if it scores in a way of its own."""
    if kind is MMDetCocoMetric:
        return CocoMetric
    own_way = (
        not issubclass(kind, MMDetCocoMetric)
        or issubclass(kind, DataSetMetric)
        or any(
            getattr(kind, name) is not getattr(MMDetCocoMetric, name)
            for name in ('process', 'results2json', 'compute_metrics', 'evaluate')
        )
    )
    return kind if own_way else type(kind.__name__, (DataSetMetric, kind), {})


class GroundTruth(COCO):
    """COCO's ground truth, which can also be compared with an empty list of detections."""

    @classmethod
    def of(cls, content: dict) -> 'GroundTruth':
        """From the content of a file."""
        self = cls()
        self.dataset = content
        with redirect_stdout(io.StringIO()):
            self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs
        return self

    def loadRes(self, results: list) -> COCO:
        """As in COCO's code; without any detection the AP is 0, not undefined."""
        if results:
            return super().loadRes(results)
        print_log('the model has found no object in any image', 'current', logging.WARNING)
        return GroundTruth.of({**self.dataset, 'annotations': []})


def _ids(dataset) -> list:
    """Ids of the images of a data set."""
    if isinstance(dataset, CheckedLoading):
        return dataset.img_ids
    return [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]


def _is_same_file(first: str, second: str) -> bool:
    return first == second or os.path.realpath(first) == os.path.realpath(second)


def _differs(ours: CheckedAnnotations, theirs: CheckedAnnotations, image, classes: Sequence[str]) -> bool:
    """True if two files disagree about an image; if ``ours`` has no annotations, only size and name count."""
    mine, other = ours.imgs[image], theirs.imgs[image]
    if (mine['height'], mine['width']) != (other['height'], other['width']):
        return True
    if os.path.basename(str(mine['file_name'])) != os.path.basename(str(other['file_name'])):
        return True
    if not ours.anns:
        return False
    return _boxes(ours, image, classes) != _boxes(theirs, image, classes)


def _boxes(annotations: CheckedAnnotations, image, classes: Sequence[str]) -> Counter:
    rows = ((annotations.cats[row['category_id']]['name'], row) for row in annotations.imgToAnns.get(image, ()))
    return Counter((name, *(round(value, 1) for value in row['bbox'])) for name, row in rows if name in classes)


def _check_masks(annotations: List[dict], images: dict) -> None:
    wrong: Dict[str, list] = {}
    for row in annotations:
        mistake = mistake_of_mask(row, images[row['image_id']], test_mode=True)
        if mistake:
            wrong.setdefault(mistake, []).append(row['id'])
    if wrong:
        raise UsageError(
            f"the metric 'segm' compares masks, and {sum(map(len, wrong.values()))} of {len(annotations)} annotations "
            f"have none that is right: {counted(wrong)}. Correct them, or take 'segm' out of the evaluator's metric"
        )


@contextmanager
def _absent_as_words():
    """Make COCO's summary and MMDetection's tables print n/a for what cannot be measured, instead of -1 and nan."""
    logger = MMLogger.get_current_instance()

    def rewrite(record) -> bool:
        record.msg = _without_minus_one(str(record.msg))
        return True

    logger.addFilter(rewrite)
    try:
        with redirect_stdout(_Rewriting(sys.stdout)):
            yield
    finally:
        logger.removeFilter(rewrite)


def _without_minus_one(text: str) -> str:
    return text.replace('-1.000', '   n/a').replace(' nan ', ' n/a ')


class _Rewriting(io.TextIOBase):
    """A text stream that rewrites text and passes it to another stream."""

    def __init__(self, out):
        self.out = out

    def write(self, text: str) -> int:
        return self.out.write(_without_minus_one(text))

    def flush(self) -> None:
        self.out.flush()
