"""Mean IoU that reports absent classes."""

import logging
from typing import Dict

from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric as MMSegIoUMetric

from ..errors import UsageError


class IoUMetric(MMSegIoUMetric):
    """MMSegmentation's IoU metric, for test data in which classes may have no pixel.

    MMSegmentation drops such classes from the mean, so data with one class can score 100. Here the result counts the
    classes without a labelled pixel (``absent_classes``), and a warning names them.

    Args:
        As for :class:`mmseg.evaluation.IoUMetric`.

    Raises:
        UsageError: If no pixel of any class is labelled.
    """

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """-> per cent: 'aAcc', 'mIoU', 'mAcc', ...; and 'absent_classes' if there are any."""
        if self.format_only:
            return super().compute_metrics(results)
        labelled = sum(areas[3] for areas in results)
        classes = self.dataset_meta['classes']
        absent = [name for name, area in zip(classes, labelled) if area == 0]
        if len(absent) == len(classes):
            raise UsageError(
                f'there is nothing to score: no pixel of the {len(results)} label maps that were tested is of one of '
                f'the {len(classes)} classes ({", ".join(classes[:5])}). Pixels are scored whose number is a class, '
                f'from 0 to {len(classes) - 1}; 255 is ignored'
            )
        metrics = super().compute_metrics(results)
        if absent:
            metrics['absent_classes'] = len(absent)
            names = ', '.join(absent[:10]) + (f' and {len(absent) - 10} more' if len(absent) > 10 else '')
            print_log(
                f'{len(absent)} of {len(classes)} classes have no labelled pixel in the test data: {names}. The means '
                f'are those of the classes that were labelled or predicted',
                'current',
                logging.WARNING,
            )
        return metrics
