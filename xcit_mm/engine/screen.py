"""Console output of a run: device, data, model, schedule, then losses. The log file has everything.

Before the first iteration, the libraries log hundreds of lines: environment, config, hooks, the initialisation of every
weight. Within :func:`short_screen` these go to the log file only, and so do warnings that users cannot act on.
"""

import logging
import os
import re
import sys
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, List, Optional

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop

from ..registry import HOOKS

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Output and warnings of the libraries that users cannot act on.
NOISE = re.compile(
    '|'.join(
        (
            'Could not import OneDL',
            'loading annotations into memory',
            r'D(one|ONE) \(t=',
            'creating index',
            'index created!',
            'Loading and preparing results',
            'Running per image evaluation',
            'Evaluate annotation type',
            'Accumulating evaluation results',
            '_mAP_copypaste',
            'Failed to search registry',
            '"FileClient" will be deprecated',
            '"HardDiskBackend" is the alias',
            'The prefix is not set in metric class',
            'Exp name: ',
            'Dataset .* has been already serialized',
            'The `sampler_seed`',
        )
    )
)
# Warnings of the libraries, by their words, that users cannot act on; those of deprecation go by their category.
NAMED = re.compile(
    '|'.join(
        (
            'faster_coco_eval is not installed',
            'The draw is False',
            "Only use 'alpha' for pillow backend",
            'Default ``avg_non_ignore`` is False',
            '`reduce_zero_label` will be deprecated',
            'instance named of .* has been created',
            'Setting (OMP|MKL)_NUM_THREADS environment variable',
            'Fail to import ``MultiScaleDeformableAttention',
            'Failed to add <class .*VisBackend',
            'mean is more than 2 std from',
            'torch.meshgrid: in an upcoming release',
            '`?pin_memory',
            'scheduler.step\\(\\)` before',  # a first update that fp16's loss scaling skipped
            'None of the inputs have requires_grad=True',  # the first block under gradient checkpointing
            'Grad strides do not match bucket view strides',
            'Plan failed with a cudnnException',
            'An output with one or more elements was resized',
            'Unnecessary conv bias before batch',  # XCiT's, in MMPretrain
            'Profiler clears events at the end',
        )
    )
)
OUTDATED = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
# Messages of the libraries before the first iteration that users want to see.
NEWS = re.compile('resumed epoch|Load checkpoint from|Loads checkpoint by')
COUNTED = 50_000  # count classes in at most so many images: about 3 s
SHOWN = 5  # list so many of the most and of the least frequent classes


class Screen(logging.Filter):
    """Logging filter: keeps off the console what belongs in the log file only.

    Attributes:
        started (bool): Whether iterations have begun.
        kept (list[str]): Messages from before the log file was opened.
    """

    def __init__(self):
        super().__init__()
        self.started = False
        self.kept: List[str] = []
        self.log: Optional[logging.Handler] = None

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        ours = os.path.abspath(record.pathname).startswith(PACKAGE)
        shown = ours or (
            not NOISE.search(text) and (self.started or record.levelno > logging.INFO or NEWS.search(text))
        )
        if not shown and self.log is None:
            self.kept.append(text)
        return bool(shown)

    def write_to_log(self, text: str) -> None:
        """Write a text to the log file, or keep it until there is one."""
        if self.log is None:
            self.kept.append(text)
        else:
            self.log.handle(logging.LogRecord('mmengine', logging.INFO, __file__, 0, text, None, None))

    def open_log(self, handler: logging.Handler) -> None:
        self.log = handler
        kept, self.kept = self.kept, []
        for text in kept:
            self.write_to_log(text)


class _Stream:
    """A text stream that drops lines matching :data:`NOISE`."""

    def __init__(self, stream, keep: Callable[[str], object]):
        self.stream, self.keep = stream, keep
        self.left_out = False  # the last text was dropped, and its newline is still to come

    def write(self, text: str) -> int:
        if NOISE.search(text):
            self.keep(text.rstrip())
            self.left_out = not text.endswith('\n')
            return len(text)
        if self.left_out and text == '\n':
            self.left_out = False
            return 1
        self.left_out = False
        return self.stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


_screen: Optional[Screen] = None


@contextmanager
def without_noise(keep: Callable[[str], object] = lambda text: None) -> Iterator[None]:
    """Within it, prints and warnings of the libraries that users cannot act on are kept off the console.

    Args:
        keep (callable): Takes each text that is kept off; by default it is dropped.
    """
    stdout, show = sys.stdout, warnings.showwarning

    def show_or_keep(message, category, filename, lineno, file=None, line=None) -> None:
        libraries = re.search(r'(site|dist)-packages', filename)
        if libraries and (issubclass(category, OUTDATED) or NAMED.search(str(message))):
            keep(warnings.formatwarning(message, category, filename, lineno, line).rstrip())
        else:
            show(message, category, filename, lineno, file, line)

    sys.stdout, warnings.showwarning = _Stream(stdout, keep), show_or_keep
    try:
        yield
    finally:
        sys.stdout, warnings.showwarning = stdout, show


@contextmanager
def short_screen(verbose: bool = False) -> Iterator[None]:
    """Within it, the console shows what users act on; with ``verbose`` everything."""
    global _screen
    if verbose:
        yield
        return
    _screen = screen = Screen()
    early = MMLogger.get_current_instance()
    handlers = [handler for handler in early.handlers if type(handler) is logging.StreamHandler]
    for handler in handlers:
        handler.addFilter(screen)
    try:
        with without_noise(screen.write_to_log):
            yield
    finally:
        _screen = None
        for handler in handlers:
            handler.removeFilter(screen)


def shorten(logger: MMLogger) -> None:
    """Filter the console output of a run's logger; does nothing outside :func:`short_screen`."""
    if _screen is None:
        return
    _screen.started = False  # a program may have several runs
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            _screen.open_log(handler)
        else:
            handler.addFilter(_screen)


@HOOKS.register_module()
class SummaryHook(Hook):
    """Log a summary before the first iteration: device, data, model, schedule, path of the log."""

    priority = 'VERY_LOW'  # after hooks that change settings, before a validation that was skipped

    def before_train(self, runner) -> None:
        self._summarise(runner, train=runner.train_dataloader, val=runner.val_dataloader if runner.val_loop else None)

    def before_test(self, runner) -> None:
        self._summarise(runner, test=runner.test_dataloader)

    def _summarise(self, runner, **loaders) -> None:
        if is_main_process():
            lines = [f'device    {device()}']
            lines += [f'data      {split}: {describe(one.dataset)}' for split, one in loaders.items() if one]
            lines.append(f'model     {describe_model(runner.model)}')
            if 'train' in loaders:
                with suppress(Exception):  # custom loops and optimizers
                    lines.append(f'schedule  {describe_schedule(runner)}')
            lines.append(f'log       {runner.logger.log_file}')
            runner.logger.info('\n'.join(['the run', *lines]))
        if _screen is not None:
            _screen.started = True


def device() -> str:
    processes = get_world_size()
    of_all = f', {processes} processes' if processes > 1 else ''
    if torch.cuda.is_available():
        return f'{torch.cuda.get_device_name()}{of_all}'
    return f'CPU, {_times(torch.get_num_threads(), "thread")}{of_all}'


def describe(dataset) -> str:
    """The number of images, and of objects per class where they are cheap to count."""
    text = f'{len(dataset)} images'
    with suppress(Exception):  # custom data sets may not have these records
        counts = count_classes(dataset)
        if counts is not None:
            names = dataset.metainfo['classes']
            objects = sum(counts.values())
            text += f', {objects} objects' if objects != len(dataset) else ''
            text += f': {_list_counts({name: counts[label] for label, name in enumerate(names)})}'
    return text


def count_classes(dataset) -> Optional[Counter]:
    """Count the labels in a data set's records; None if it has none, or is large."""
    if len(dataset) > COUNTED:
        return None
    counts: Counter = Counter()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if 'instances' in info:
            counts.update(one['bbox_label'] for one in info['instances'] if not one.get('ignore_flag'))
        elif 'gt_label' in info:
            labels = info['gt_label']
            counts.update([int(labels)] if not hasattr(labels, '__len__') else map(int, labels))
        else:
            return None
    return counts


def _list_counts(counts: dict) -> str:
    shown = [f'{name} {count}' for name, count in sorted(counts.items(), key=lambda item: -item[1])]
    if len(shown) > 2 * SHOWN + 2:
        shown = [*shown[:SHOWN], f'... ({len(shown) - 2 * SHOWN} classes) ...', *shown[-SHOWN:]]
    return ', '.join(shown)


def describe_model(model) -> str:
    model = model.module if is_model_wrapper(model) else model
    parameters = sum(one.numel() for one in model.parameters())
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    parts = [type(part).__name__ for part in (model, getattr(model, 'backbone', None)) if part is not None]
    frozen = f', {trained / 1e6:.2f} M of them trained' if trained < parameters else ''
    return f'{" with ".join(parts)}, {parameters / 1e6:.2f} M parameters{frozen}'


def describe_schedule(runner) -> str:
    loop, loader = runner.train_loop, runner.train_dataloader
    by_iteration = isinstance(loop, IterBasedTrainLoop)
    length = _times(loop.max_iters, 'iteration')
    if not by_iteration:
        length = f'{_times(loop.max_epochs, "epoch")} of {_times(len(loader), "iteration")}'
    batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 'several')
    optimizer = runner.optim_wrapper.optimizer
    group = optimizer.param_groups[0]
    rate = group.get('initial_lr', group['lr'])
    names = ', '.join(type(one).__name__ for one in runner.param_schedulers or ())
    text = f'{length} of {_times(batch, "image")}; {type(optimizer).__name__}, lr {rate:g}'
    text += f' ({names})' if names else ', constant'
    if runner.val_loop is not None:
        once = loop.val_interval > (loop.max_iters if by_iteration else loop.max_epochs)
        every = f'every {_times(loop.val_interval, "iteration" if by_iteration else "epoch")}'
        text += f'; validation {"at the end" if once else every}'
    return text


def _times(number: int, what: str) -> str:
    return f'{number} {what}{"s" * (number != 1)}'
