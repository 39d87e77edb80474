#!/usr/bin/env python
"""This backbone against timm's and MMPretrain's XCiT and well-known others: same outputs first, then time and memory.

    tools/benchmark.py --preset small            # a minute: does all of it work here?
    tools/benchmark.py --preset goals            # XCiT-S12/8 as detectors, classifiers and training use it
    tools/benchmark.py --grid                    # every arch and patch size at 160, 224 and 384 pixels
    tools/benchmark.py --scaling                 # time and memory up to 6000x4000 pixels, with pictures
    tools/benchmark.py --arch t12 --sizes 512 800x1216 --dtypes fp32 bf16 --compile --memory

On a machine that does nothing else. Tables are printed, and written to --out with all numbers as CSV.
"""

import argparse
import logging
import shlex
import sys
from itertools import product
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import torch
from mmengine.logging import MMLogger
from rich.console import Console

from xcit_mm.benchmark import machine
from xcit_mm.benchmark.contenders import CONTEXT, OURS, PEERS, installed
from xcit_mm.benchmark.memory import peak_memory
from xcit_mm.benchmark.plots import draw, slopes
from xcit_mm.benchmark.report import Report, console_table, ratio_table, verdict
from xcit_mm.benchmark.scaling import SIZES, scaling
from xcit_mm.benchmark.settings import DTYPES, Row, Setting, parse_size
from xcit_mm.benchmark.timing import measure
from xcit_mm.engine.screen import without_noise
from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.models.xcit import ARCHS

DETECTION = dict(height=800, width=1216)
# Arch, patch size, and the settings; the memory of training steps is measured too.
PRESETS = {
    'goals': (
        *('s12', 8),
        [
            DETECTION,
            dict(DETECTION, dtype='bf16'),
            dict(height=224, width=224, batch=8, features='cls'),
            dict(height=512, width=512, mode='training'),
            dict(DETECTION, compiled=True),
            dict(DETECTION, dtype='bf16', compiled=True),
        ],
    ),
    'small': (
        *('n12', 8),
        [
            dict(height=64, width=64),
            dict(height=96, width=128),
            dict(height=64, width=64, dtype='bf16', features='cls'),
            dict(height=64, width=64, mode='training'),
        ],
    ),
}
# Notes about limits of the machine.
HARMLESS = ('left out', 'not compared', 'memory not measured', 'out of memory')
# The options that a preset sets.
DECIDED = ('sizes', 'batch', 'dtypes', 'modes', 'compile', 'features')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--preset', choices=PRESETS, help='a fixed choice of settings')
    what.add_argument('--grid', action='store_true', help='every arch and patch size')
    what.add_argument('--scaling', action='store_true', help='growing images, memory too, pictures and slopes')
    parser.add_argument('--arch', choices=ARCHS, help='(default: s12)')
    parser.add_argument('--patch', type=int, choices=[8, 16], help='(default: 8)')
    parser.add_argument('--sizes', nargs='+', metavar='HxW', help='pixels (default: 224 512 800x1216)')
    parser.add_argument('--batch', type=int, help='(default: 1)')
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, help='(default: fp32)')
    parser.add_argument('--autocast', action='store_true', help='half precision by autocast, with weights in fp32')
    parser.add_argument('--modes', nargs='+', choices=['inference', 'training'], help='(default: inference)')
    parser.add_argument('--compile', action='store_true', help='torch.compile as well')
    parser.add_argument(
        '--features',
        choices=['map', 'cls'],
        help='the map before class attention, or the class token (default: map above 384 pixels and for --scaling)',
    )
    parser.add_argument(
        '--peers',
        nargs='+',
        choices=[*PEERS, 'context', 'none'],
        help=f'context is {", ".join(CONTEXT)} (default: timm mmpretrain, and context for --scaling)',
    )
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--rounds', type=int, help='number of timings of each (default: 5, 3 for --scaling)')
    parser.add_argument('--memory', action='store_true', help='peak memory too, a fresh process per row')
    parser.add_argument('--memory-limit', type=float, metavar='GB', help='for --scaling (default: 80 %% of the free)')
    parser.add_argument(
        '--time-limit', type=float, metavar='S', default=120, help='for a pass of --scaling (default: 120)'
    )
    parser.add_argument('--out-dir', '--out', dest='out', type=Path, metavar='DIR', default=Path('work_dirs/benchmark'))
    args = parser.parse_args()
    if args.preset and any(getattr(args, name) for name in DECIDED):
        parser.error(f'--preset sets {", ".join(f"--{name}" for name in DECIDED)}; leave them out')
    if (args.batch or 1) < 1 or (args.rounds or 1) < 1:
        parser.error('--batch and --rounds are at least 1')
    try:
        args.sizes = [parse_size(size) for size in args.sizes or ()]
    except ValueError as error:
        parser.error(str(error))
    return args


def plan(args: argparse.Namespace) -> List[Setting]:
    """The settings in their order; with --scaling, one for each family of sizes."""
    shared = dict(device=args.device, autocast=args.autocast)
    if args.preset:
        arch, patch_size, settings = PRESETS[args.preset]
        return [Setting(args.arch or arch, args.patch or patch_size, **shared, **setting) for setting in settings]
    models = list(product(ARCHS, (8, 16))) if args.grid else [('s12', 8)]
    models = dict.fromkeys((args.arch or arch, args.patch or patch_size) for arch, patch_size in models)
    sizes = args.sizes or ([(160, 160), (224, 224), (384, 384)] if args.grid else [(224, 224), (512, 512), (800, 1216)])
    if args.scaling:
        sizes = [(0, 0)]  # replaced
    executions = [False, True] if args.compile else [False]
    return [
        Setting(
            *(arch, patch_size, *size, args.batch or 1, dtype, mode, compiled),
            features=args.features or ('map' if args.scaling or max(size) > 384 else 'cls'),
            **shared,
        )
        for (arch, patch_size), compiled, mode, dtype, size in product(
            models, executions, args.modes or ['inference'], args.dtypes or ['fp32'], sizes
        )
    ]


def contenders(args: argparse.Namespace) -> Tuple[List[str], List[str]]:
    """Names of the contenders, and notes about those left out."""
    peers = args.peers or [*PEERS, *(['context'] if args.scaling else [])]
    names = [name for name in (*PEERS, *CONTEXT) if name in peers or name in CONTEXT and 'context' in peers]
    found, notes = installed(names)
    return [OURS, *found], notes


def run(args: argparse.Namespace, names: List[str], tell: Callable[[str], None]) -> Iterator[List[Row]]:
    """The rows of one setting after the other."""
    settings = plan(args)
    rounds = args.rounds or (3 if args.scaling else 5)
    for i, setting in enumerate(settings, start=1):

        def say(text, where=f'{i} of {len(settings)}, {setting.family}'):
            tell(f'{where}: {text}')

        if args.scaling:
            free = machine.available_memory(args.device)
            limit = int(args.memory_limit * 1e9) if args.memory_limit else free and int(0.8 * free)
            yield from scaling(setting, args.sizes or SIZES, names, rounds, limit, args.time_limit, say)
            continue
        rows = measure(setting, names, rounds, say)
        for row in rows:
            if row.seconds and (args.memory or args.preset and setting.training):
                say(f'memory of {row.name}')
                row.peak_memory, why = peak_memory(row.name, setting)
                row.note = '; '.join(filter(None, (row.note, why)))
        yield rows


def check(args: argparse.Namespace) -> None:
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UsageError('PyTorch finds no CUDA device here; use --device cpu')
    if args.device == 'cpu' and 'fp16' in (args.dtypes or ()):
        raise UsageError('fp16 is for --device cuda; on the CPU use bf16')


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine').setLevel(logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with clear_errors(), without_noise():
        check(args)
        names, notes = contenders(args)
        about = machine.describe(args.device)
        report = Report(args.out, about, shlex.join(['tools/benchmark.py', *sys.argv[1:]]))
        console.print(about, *notes, sep='\n', markup=False)
        try:
            with console.status('') as status:
                for rows in run(args, names, status.update):
                    report.add(rows)
                    console.print(f'\n[bold]{rows[0].setting}[/]', console_table(rows), verdict(rows), sep='\n')
        except KeyboardInterrupt:
            raise UsageError(f'interrupted; the rows measured so far are in {args.out}') from None
        finally:
            pictures = draw(report.rows, args.out)
            console.print(*ratio_table(report.settings), *slopes(report.rows), sep='\n', markup=False)
            names = ['benchmark.csv', 'benchmark.md', *(path.name for path in pictures)]
            console.print(f'written to {args.out}: {", ".join(names)}')
        ours = [row for row in report.rows if row.name == OURS and not row.note.startswith(HARMLESS)]
        if any(row.note for row in ours):
            wrong = '\n'.join(f'  {row.setting}: {row.note}' for row in ours if row.note)
            raise UsageError(f'this backbone failed or deviates:\n{wrong}')


if __name__ == '__main__':
    main()
