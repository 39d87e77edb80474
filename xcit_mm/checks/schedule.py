"""Settings that do not fit the length of a run: those of ImageNet's 500,000 iterations rarely fit 240 images.

======================================================  =============================================================
what is found                                           what is done
======================================================  =============================================================
no batch: more images to a batch than there are         refused (``drop_last``)
an average of weights that hardly leaves the start      its momentum is raised
a log interval longer than the run                      lowered
a warm-up, a decay or milestones beyond the end         named: the learning rate never gets where it should
a decay that ends long before the run does              named
a schedule in epochs for a loop of iterations           named: it would never step; milestones in iterations too
no validation, no checkpoint or no picture in the run   named
======================================================  =============================================================
"""

from typing import Iterator, List, NamedTuple, Optional

import torch
from mmengine.hooks import CheckpointHook, EMAHook, LoggerHook
from mmengine.optim import scheduler as schedulers
from mmengine.runner import IterBasedTrainLoop

from ..errors import UsageError

KEPT = 0.5  # an EMA with more than this share of the initial weights shows nothing of the training
KEPT_AFTER = 0.01  # share of the initial weights after its momentum is raised
LATE, EARLY = 1.05, 0.8  # share of the run by which a decay may end early
LINES = 10  # log lines in a short run


class Run(NamedTuple):
    """The length of a training run.

    Attributes:
        iterations (int): All of them.
        epochs (int, optional): None in a loop that counts iterations.
    """

    iterations: int
    epochs: Optional[int]

    def unit(self, by_epoch: bool) -> str:
        return 'epoch' if by_epoch else 'iteration'

    def length(self, by_epoch: bool) -> Optional[int]:
        return self.epochs if by_epoch else self.iterations


def length_of(loop) -> Run:
    return Run(loop.max_iters, None if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs)


def check_batches(loader, processes: int) -> None:
    """Check that the data make at least one batch.

    Raises:
        UsageError: If not.
    """
    try:
        batches, images = len(loader), len(loader.dataset)
    except TypeError:  # of unknown length
        return
    if batches == 0 and images > 0:
        share = f' ({images // processes} for each of {processes} processes)' if processes > 1 else ''
        raise UsageError(
            f'train_dataloader: {images} images{share} make no batch of {loader.batch_size}, and drop_last leaves out '
            f'what is no whole one. Set train_dataloader.batch_size to {max(1, images // processes)} or less, or '
            f'train_dataloader.drop_last=False'
        )


def adapt_hooks(hooks, run: Run) -> List[str]:
    """Adapt settings of hooks that make no sense in a run of this length.

    Args:
        hooks (list[Hook]): Those of the runner, after ``before_run``.
        run (Run): The length.

    Returns:
        list[str]: What was changed, in one line each.
    """
    notes = []
    for hook in hooks:
        if isinstance(hook, LoggerHook) and run.epochs is None and hook.interval > run.iterations:
            old, hook.interval = hook.interval, max(1, run.iterations // LINES)
            notes.append(
                f'default_hooks.logger.interval: {hook.interval} in place of {old}; the run has {run.iterations} '
                f'iterations'
            )
        elif isinstance(hook, EMAHook) and hasattr(hook, 'ema_model'):
            notes += _adapt_average(hook, run)
    return notes


def _adapt_average(hook: EMAHook, run: Run) -> List[str]:
    begin = hook.begin_epoch * run.iterations // run.epochs if run.epochs else 0
    updates = max(0, run.iterations - max(begin, hook.begin_iter)) // hook.ema_model.interval
    kept = _kept_share(hook.ema_model, updates)
    momentum = getattr(hook.ema_model, 'momentum', None)
    if updates < 1 or kept <= KEPT or momentum is None:
        return []
    hook.ema_model.momentum = new = float(f'{1 - KEPT_AFTER ** (1 / updates):.2g}')
    return [
        f'{type(hook).__name__}: momentum {new} in place of {momentum}, which would leave {kept:.1%} of the start in '
        f'the average of weights after {updates} updates'
    ]


def _kept_share(average, updates: int) -> float:
    """Share of the initial weights in the EMA after so many updates; counted until it is below ``KEPT``."""
    kept, others, steps = torch.ones(()), torch.zeros(()), average.steps.clone()
    try:
        for step in range(1, updates):
            average.steps.fill_(step)
            average.avg_func(kept, others, step)
            if kept < KEPT:
                break
    finally:
        average.steps.copy_(steps)
    return kept.item()


def find_misfits(runner, run: Run) -> Iterator[str]:
    """Settings that do not fit the length of a run and are left as they are, in one line each.

    Args:
        runner (Runner): With its loops, hooks and schedules built.
        run (Run): The length.
    """
    found = runner.param_schedulers
    for name, group in found.items() if isinstance(found, dict) else [('', found or [])]:
        for number, one in enumerate(group):
            place = '.'.join(part for part in ('param_scheduler', name, str(number)) if part)
            yield from _misfits_of_schedule(f'{place} ({type(one).__name__})', one, run, last=number == len(group) - 1)
    loop = runner.train_loop
    if runner.val_loop is not None and loop.val_begin > (run.epochs or run.iterations):
        yield f'train_cfg.val_begin is {loop.val_begin}, beyond the end: the run never validates'
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            yield from _misfits_of_checkpoints(hook, run)
            if hook.save_best and runner.val_loop is None:
                yield 'default_hooks.checkpoint.save_best: the run does not validate, so that no checkpoint is the best'
        draws = getattr(hook, 'draw', False) or getattr(hook, 'enable', False)
        if draws and runner.val_loop is not None and hasattr(hook, 'interval'):
            images = len(runner.val_dataloader.dataset)
            if hook.interval > images:
                yield f'default_hooks.visualization.interval is {hook.interval}, and there are {images} images to draw'


def _misfits_of_checkpoints(hook: CheckpointHook, run: Run) -> Iterator[str]:
    length = run.length(hook.by_epoch)
    if hook.interval < 0:
        return
    if length is None:
        yield (
            'default_hooks.checkpoint counts epochs and the loop iterations: one checkpoint, at the end. Set '
            'default_hooks.checkpoint.by_epoch=False'
        )
    elif not hook.save_last and max(hook.interval, hook.save_begin) > length:
        yield (
            f'default_hooks.checkpoint saves every {hook.interval} {run.unit(hook.by_epoch)}s and not at the end, and '
            f'the run has {length}: no checkpoint is saved'
        )


def _misfits_of_schedule(place: str, one, run: Run, last: bool) -> Iterator[str]:
    length, unit = run.length(one.by_epoch), run.unit(one.by_epoch)
    if length is None:
        if not getattr(one, 'need_val_args', False):
            yield f'{place} counts epochs, and the loop iterations: it never steps. Set by_epoch=False'
        return
    what = one.param_name.replace('lr', 'learning rate')
    if isinstance(one, schedulers.MultiStepParamScheduler):
        milestones = sorted(one.begin + milestone for milestone in one.milestones)
        beyond = [milestone for milestone in milestones if milestone >= length]
        if beyond:
            yield f'{place}: the run ends at {unit} {length}, before the milestones {", ".join(map(str, beyond))}'
        elif run.epochs and not one.by_epoch and run.iterations > run.epochs >= milestones[-1]:
            yield f'{place}: the milestones {", ".join(map(str, milestones))} are iterations. For epochs: by_epoch=True'
        return
    begin, end, rises = _range_of(one)
    if end is None:
        return
    if rises and end > length:
        yield f'{place} warms up until {unit} {end}, and the run ends at {length}: the {what} stays below its value'
    elif not rises and end > length * LATE:
        yield f'{place} goes on until {unit} {end}, and the run ends at {length}: the {what} does not get there'
    elif isinstance(one, schedulers.CosineAnnealingParamScheduler) and end < min(one.end, length) * EARLY:
        yield f'{place} turns round at {unit} {end} (T_max), and the run ends at {length}: the {what} goes back again'
    elif not rises and last and length > 2 and end < length * EARLY:
        yield f'{place} ends at {unit} {end}, and the run at {length}: the {what} stays what it is then'


def _range_of(one) -> tuple:
    """Begin, end and whether it is a warm-up, of the schedules that have an end of their own."""
    begin, end = one.begin, one.end
    if isinstance(one, schedulers.LinearParamScheduler):
        return begin, end, one.start_factor < one.end_factor
    if isinstance(one, schedulers.ConstantParamScheduler):
        return (begin, end, True) if one.factor < 1 else (begin, None, False)
    if isinstance(one, schedulers.CosineAnnealingParamScheduler):
        return begin, min(end, begin + one.T_max), False
    if isinstance(one, schedulers.PolyParamScheduler):
        return begin, end, False
    return begin, None, False
