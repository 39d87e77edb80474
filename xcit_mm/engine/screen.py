"""What the screen shows of a run: the device, the data, the model, the schedule, then losses. The log file has it all.

Before the first iteration, the libraries log hundreds of lines: the environment, the config, the hooks, the start of
every weight. With :func:`short_screen` these go to the log file alone, and so do warnings that users cannot act on.
"""

import logging
import os
import re
import sys
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from typing import Iterator, List, Optional

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop

from ..registry import HOOKS

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What the libraries print, or warn of, and no user can do anything about.
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
# What they say before the first iteration that users want to see.
NEWS = re.compile('resumed epoch|Load checkpoint from|Loads checkpoint by')
COUNTED = 50_000  # images at most whose classes are counted: about three seconds
SHOWN = 5  # classes with most and with least objects


class Screen(logging.Filter):
    """Keeps from the screen what belongs in the log file alone.

    Attributes:
        started (bool): Whether iterations have begun.
        kept (list[str]): What came before there was a log file.
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
        """Keep a text for the log file, or write it there if there is one."""
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
    """A stream that lines of :data:`NOISE` do not pass."""

    def __init__(self, stream, screen: Screen):
        self.stream, self.screen = stream, screen
        self.left_out = False  # the text before, whose end of line is still to come

    def write(self, text: str) -> int:
        if NOISE.search(text):
            self.screen.write_to_log(text.rstrip())
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
def short_screen(verbose: bool = False) -> Iterator[None]:
    """Within it, runs show on the screen what users act on; ``verbose`` changes nothing."""
    global _screen
    if verbose:
        yield
        return
    _screen = screen = Screen()
    stdout, show = sys.stdout, warnings.showwarning
    early = MMLogger.get_current_instance()
    handlers = [handler for handler in early.handlers if type(handler) is logging.StreamHandler]
    for handler in handlers:
        handler.addFilter(screen)

    def to_log(message, category, filename, lineno, file=None, line=None) -> None:
        if re.search(r'(site|dist)-packages', filename):
            screen.write_to_log(warnings.formatwarning(message, category, filename, lineno, line).rstrip())
        else:
            show(message, category, filename, lineno, file, line)

    sys.stdout, warnings.showwarning = _Stream(stdout, screen), to_log
    try:
        yield
    finally:
        sys.stdout, warnings.showwarning, _screen = stdout, show, None
        for handler in handlers:
            handler.removeFilter(screen)


def shorten(logger: MMLogger) -> None:
    """Let a run's logger write to the screen what belongs there; outside of :func:`short_screen` it stays as it is."""
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
    """Log what a run is about before its first iteration: device, data, model, schedule, and where the log is."""

    priority = 'VERY_LOW'  # after the changes that other hooks make, and before a validation that was missed

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
                with suppress(Exception):  # of loops and optimizers that are not MMEngine's
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
    """The number of images of a data set, and of objects by class where it tells them cheaply."""
    text = f'{len(dataset)} images'
    with suppress(Exception):  # data sets of users may tell nothing
        counts = count_classes(dataset)
        if counts is not None:
            names = dataset.metainfo['classes']
            objects = sum(counts.values())
            text += f', {objects} objects' if objects != len(dataset) else ''
            text += f': {_list_counts({name: counts[label] for label, name in enumerate(names)})}'
    return text


def count_classes(dataset) -> Optional[Counter]:
    """How often each label occurs, by the data set's own records; None if it does not tell, or is large."""
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
