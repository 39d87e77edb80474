"""A plot of a run in progress: loss, learning rate and validation metrics."""

import json
import os
import time
from numbers import Real
from pathlib import Path
from typing import Dict, List, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..registry import HOOKS

SECONDS = 30  # between two plots, which take about half a second each
POINTS = 500  # of the loss curve, each the mean of its interval


@HOOKS.register_module()
class CurveHook(Hook):
    """Draw ``curve.png`` into the work folder after every validation and every half a minute.

    The values are kept in ``curve.json``, so a resumed run continues the curve.

    Args:
        monitor (str): Validation metric that chooses the best checkpoint; its best value is marked.
    """

    priority = 'VERY_LOW'

    def __init__(self, monitor: Optional[str] = None):
        self.monitor = monitor
        self.train: List[list] = []  # iteration, loss, learning rate
        self.val: List[list] = []  # iteration, numbers
        self.drawn = 0.0

    def before_train(self, runner) -> None:
        path = Path(runner.work_dir) / 'curve.json'
        if runner.iter and path.is_file():
            kept = json.loads(path.read_text())
            self.train = [row for row in kept['train'] if row[0] <= runner.iter]
            self.val = [row for row in kept['val'] if row[0] <= runner.iter]

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        if not is_main_process():
            return
        scalars = runner.message_hub.log_scalars
        loss = scalars['train/loss'].current() if 'train/loss' in scalars else None
        if loss is not None:
            rate = scalars['train/lr'].current() if 'train/lr' in scalars else None
            self.train.append([runner.iter + 1, float(loss), None if rate is None else float(rate)])
        if time.monotonic() - self.drawn > SECONDS:
            self._draw(runner)

    def after_val_epoch(self, runner, metrics: Optional[Dict[str, float]] = None) -> None:
        if not is_main_process() or not metrics:
            return
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, Real)}
        self.val.append([runner.iter, numbers])
        self._draw(runner)

    def after_train(self, runner) -> None:
        if is_main_process() and self.train:
            self._draw(runner)

    def _draw(self, runner) -> None:
        self.drawn = time.monotonic()
        folder = Path(runner.work_dir)
        text = json.dumps(dict(monitor=self.monitor, train=self.train, val=self.val))
        draft = folder / 'curve.json.new'
        draft.write_text(text)
        os.replace(draft, folder / 'curve.json')
        draw_curve(self.train, self.val, self.monitor, folder / 'curve.png', getattr(runner, 'max_iters', None))


def draw_curve(
    train: List[list], val: List[list], monitor: Optional[str], path: Path, end: Optional[int] = None
) -> None:
    """Plot loss and learning rate above, validation metrics below.

    Args:
        train (list): Iteration, loss and learning rate of each point.
        val (list): Iteration and metrics by name, of each validation.
        monitor (str, optional): The metric whose best value is marked.
        path (Path): File of the picture.
        end (int, optional): The last iteration of the run.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout='constrained')
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    if train:
        step = max(1, len(train) // POINTS)
        whole = len(train) // step * step
        at, loss = (np.array([row[i] for row in train[:whole]], float).reshape(-1, step).mean(1) for i in (0, 1))
        upper.plot(at, loss, color='tab:blue', linewidth=1)
        upper.set_ylabel('training loss')
        if (loss > 0).all() and loss.max() > 20 * loss.min():
            upper.set_yscale('log')
        rates = [(row[0], row[2]) for row in train if row[2] is not None]
        if rates:
            right = upper.twinx()
            right.plot(*zip(*rates), color='tab:gray', linewidth=0.8, alpha=0.7)
            right.set_ylabel('learning rate', color='tab:gray')
    names = list(dict.fromkeys(key for _, numbers in val for key in numbers))
    shown = [name for name in names if name == monitor] or names[:1]
    shown += [name for name in names if name not in shown][:4]
    for name in shown:
        points = [(at, numbers[name]) for at, numbers in val if name in numbers]
        chief = name == monitor
        lower.plot(*zip(*points), marker='o', markersize=3, linewidth=2 if chief else 0.9, label=name)
        if chief:
            best = max(points, key=lambda point: point[1])
            lower.annotate(f'{best[1]:.4g}', best, textcoords='offset points', xytext=(0, 6), ha='center')
    if shown:
        lower.legend(loc='lower right', fontsize=8)
    lower.set_ylabel('validation')
    lower.set_xlabel('iteration')
    if end:
        lower.set_xlim(0, end)
    figure.savefig(path, dpi=110)


def read_curve(folder: Path) -> dict:
    """'train', 'val' and 'monitor' of a run; empty lists if there are none."""
    path = Path(folder) / 'curve.json'
    return json.loads(path.read_text()) if path.is_file() else dict(train=[], val=[], monitor=None)


__all__ = ['CurveHook', 'draw_curve', 'read_curve']
