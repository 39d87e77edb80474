"""Detection runs: connect data sets and metrics, and check that there is something to learn and to score."""

import sys
from typing import Iterator, List

from mmengine.dataset import BaseDataset
from mmengine.hooks import CheckpointHook, Hook

from ..compat import built_loop
from ..errors import UsageError
from ..registry import HOOKS


@HOOKS.register_module()
class DetectionDataHook(Hook):
    """Give metrics their data sets when both are built, before anything is trained or tested.

    Raises:
        UsageError: If they do not match, or if there is no object to train on or to score.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        if 'xcit_mm.datasets.coco' not in sys.modules:  # no data of MMDetection
            return
        self._check_training(runner)
        for split in ('val', 'test'):
            loop = built_loop(runner, split)
            if getattr(loop, 'evaluator', None) is not None:
                self._join(loop, split)
        self._check_best(runner)

    @staticmethod
    def _check_training(runner) -> None:
        from ..datasets.coco import CheckedLoading, some, warn

        loop = built_loop(runner, 'train')
        datasets = list(innermost(loop.dataloader.dataset)) if loop else []
        if not datasets or not all(isinstance(dataset, CheckedLoading) for dataset in datasets):
            return
        there = {label for dataset in datasets for label in dataset.objects}
        if not there:
            why = '; '.join(dataset.why_nothing for dataset in datasets)
            raise UsageError(f'there is no object to train on: {why}')
        classes = datasets[0].metainfo['classes']
        absent = [str(name) for label, name in enumerate(classes) if label not in there]
        if absent:
            warn(f'{len(absent)} of {len(classes)} classes have no object to train on ({some(absent, 5)})')

    @staticmethod
    def _join(loop, split: str) -> None:
        from ..evaluation.coco import DataSetMetric, follow

        datasets = list(innermost(loop.dataloader.dataset))
        metrics = loop.evaluator.metrics
        # MultiDatasetsEvaluator has one metric for each part of a ConcatDataset.
        apart = hasattr(loop.evaluator, 'dataset_prefixes') and len(metrics) == len(datasets)
        for number, metric in enumerate(metrics):
            tested = datasets[number : number + 1] if apart else datasets
            if isinstance(metric, DataSetMetric):
                metric.use(tested, split)
            else:
                follow(metric, tested)
        for dataset in datasets:
            dataset.annotations = None  # the metrics have what they need

    @staticmethod
    def _check_best(runner) -> None:
        """Check that the metric of ``save_best`` can be measured."""
        loop = built_loop(runner, 'val')
        metrics = loop.evaluator.metrics if loop else []
        for hook in runner.hooks:
            keys = (getattr(hook, 'save_best', None) if isinstance(hook, CheckpointHook) else None) or []
            for key in [keys] if isinstance(keys, str) else keys:
                for metric in metrics:
                    prefix, _, item = key.rpartition('/')
                    size = item.rpartition('_mAP_')[2]
                    if (
                        prefix == metric.prefix
                        and size in ('s', 'm', 'l')
                        and size not in getattr(metric, 'sizes', size)
                    ):
                        raise UsageError(
                            f'default_hooks.checkpoint.save_best={key!r} cannot be measured: the data for val have no '
                            f'object of that size'
                        )


def innermost(dataset) -> Iterator[BaseDataset]:
    """The data sets inside of wrappers such as RepeatDataset and ConcatDataset, built."""
    inner: List = list(getattr(dataset, 'datasets', None) or ())
    if not inner and hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    if not inner:
        yield dataset
    for child in inner:
        yield from innermost(child)
