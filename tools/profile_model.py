#!/usr/bin/env python
"""Where the time of a whole detector or segmentor goes, part by part, and its peak memory.

    tools/profile_model.py configs/mask_rcnn_xcit_s12_8_3x_coco.py
    tools/profile_model.py configs/mask_rcnn_xcit_s12_8_3x_coco.py --size 4000x6000 --modes inference --rounds 1

Weights, images and objects are random; time and memory do not depend on them. On a machine that does nothing else.
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from xcit_mm.benchmark import machine
from xcit_mm.benchmark.memory import MEASURED
from xcit_mm.benchmark.settings import DTYPES, parse_size
from xcit_mm.benchmark.whole_model import Work, peak_memory, profile
from xcit_mm.engine.screen import without_noise
from xcit_mm.engine.setup import read_config
from xcit_mm.errors import UsageError, clear_errors

EXPLANATION = (
    'Medians of rounds after a warm-up. A part that works within another counts for itself alone; "other" is what lies '
    'between the parts: assignment of proposals, sums of losses. Inference gives as many objects as the config allows.'
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('config', help='config file of a detector or segmentor')
    parser.add_argument('--size', default='800x1216', metavar='HxW', help='pixels (default: 800x1216)')
    parser.add_argument('--batch', type=int, default=1, help='(default: 1)')
    parser.add_argument('--modes', nargs='+', choices=['inference', 'training'], default=['inference', 'training'])
    parser.add_argument('--dtype', choices=DTYPES, default='fp32', help='by autocast (default: fp32)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--rounds', type=int, default=5, help='(default: 5)')
    parser.add_argument('--memory-limit', type=float, metavar='GB', help='stop if more is needed above the weights')
    parser.add_argument('--out-dir', '--out', dest='out', type=Path, metavar='DIR', default=Path('work_dirs/profile'))
    args = parser.parse_args()
    if args.batch < 1 or args.rounds < 1:
        parser.error('--batch and --rounds are at least 1')
    try:
        args.size = parse_size(args.size)
    except ValueError as error:
        parser.error(str(error))
    return args


def table_of(seconds: dict) -> tuple:
    """Headings and lines of text: milliseconds of every part and of the whole."""
    total = sum(value for part in seconds.values() for value in part.values())
    directions = [d for d in ('forward', 'backward') if any(d in part for part in seconds.values())]
    lines = []
    for name, part in [*seconds.items(), ('all', None)]:
        values = [
            sum(p.get(d, 0.0) for p in seconds.values()) if part is None else part.get(d, 0.0) for d in directions
        ]
        cells = [f'{1e3 * value:.0f}' if value else '' for value in values]
        lines.append([name, *cells, f'{100 * sum(values) / total:.1f} %'])
    names = directions if len(directions) > 1 else ['']
    return ['part', *(f'{name}, ms'.lstrip(', ') for name in names), 'share'], lines


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine').setLevel(logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with clear_errors(), without_noise():
        if read_config(Path(args.config)).model.get('type', '').endswith('Classifier'):
            raise UsageError(f'{args.config} is a classifier, nearly all of it backbone: use tools/benchmark.py')
        args.out.mkdir(parents=True, exist_ok=True)
        about = machine.describe(args.device)
        console.print(about, markup=False)
        parts = [f'# {Path(args.config).stem}', f'`{shlex.join(["tools/profile_model.py", *sys.argv[1:]])}`', about]
        for mode in args.modes:
            work = Work(args.config, *args.size, args.batch, mode == 'training', args.dtype, args.device)
            with console.status('') as status:
                try:
                    seconds = profile(work, args.rounds, lambda text, mode=mode: status.update(f'{mode}: {text}'))
                except ValueError as error:
                    if 'more than 1 value per channel' not in str(error):
                        raise
                    raise UsageError(
                        'the model trains batch norms on maps pooled to one pixel, so it needs --batch 2 or more'
                    ) from error
                status.update(f'{mode}: memory')
                peak, why = peak_memory(work, args.memory_limit and int(args.memory_limit * 1e9))
            title = f'{mode}, {args.batch} x {args.size[0]}x{args.size[1]}, {args.dtype}'
            memory = f'Peak memory above the weights: {peak / 1e9:.2f} GB.' if peak else f'Peak memory: {why}.'
            headings, lines = table_of(seconds)
            table = Table(title=title)
            for heading in headings:
                table.add_column(heading, justify='left' if heading == 'part' else 'right')
            for line in lines:
                table.add_row(*line)
            console.print(table, memory)
            rows = [headings, ['---', *['---:'] * (len(headings) - 1)], *lines]
            parts += [f'## {title}', '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows), memory]
        path = args.out / f'{Path(args.config).stem}.md'
        path.write_text('\n\n'.join([*parts, EXPLANATION, MEASURED]) + '\n', encoding='utf-8')
        console.print(f'written to {path}')


if __name__ == '__main__':
    main()
