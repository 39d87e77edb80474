"""Predictions of detectors written to a file."""

from typing import Sequence

from mmdet.evaluation import DumpDetResults as MMDetDumpDetResults


class DumpDetResults(MMDetDumpDetResults):
    """MMDetection's ``DumpDetResults`` that also takes masks encoded as RLE."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """See :meth:`mmengine.evaluator.BaseMetric.process`."""
        found = [sample.get('pred_instances', {}) for sample in data_samples]
        encoded = [instances['masks'] if isinstance(instances.get('masks'), list) else None for instances in found]
        for instances, masks in zip(found, encoded):
            if masks is not None:
                del instances['masks']
        super().process(data_batch, data_samples)
        for written, instances, masks in zip(self.results[-len(found) :], found, encoded):
            if masks is not None:
                written['pred_instances']['masks'] = instances['masks'] = masks
