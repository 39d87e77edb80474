#!/usr/bin/env python
"""Is everything right on this GPU, how fast is it beside timm and MMPretrain, and where does the time go?

    tools/gpu_check.py                                             # eight minutes of an H100
    tools/gpu_check.py --budget 120                                # the most important two minutes of it
    tools/gpu_check.py --write-docs work_dirs/gpu_check/gpu_check.json     # its tables into docs/performance.md

On a GPU that does nothing else. The most important checks come first; those that do not fit the budget are named.
"""

import argparse
import logging
from pathlib import Path

from mmengine.logging import MMLogger

from xcit_mm.benchmark.gpu_check import ROOT, Plan, run, update_docs
from xcit_mm.engine.screen import without_noise
from xcit_mm.errors import UsageError, clear_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda', help='cpu only tries the check itself')
    parser.add_argument('--budget', type=float, default=480, metavar='SECONDS', help='(default: 480)')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/gpu_check'), metavar='FOLDER')
    parser.add_argument('--write-docs', type=Path, metavar='JSON', help='only put the tables of a check into the docs')
    args = parser.parse_args()
    if args.budget <= 0:
        parser.error('--budget is a number of seconds above 0')
    return args


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine').setLevel(logging.WARNING)
    with clear_errors(), without_noise():
        if args.write_docs:
            update_docs(args.write_docs, ROOT / 'docs/performance.md')
            print(f'The tables of {args.write_docs} are in docs/performance.md')
            return
        found = run(Plan.of(args.device), args.budget, args.out_dir, lambda text: print(text, flush=True))
        print(f'\n{found["machine"]["about"]}\ngpu_check.json and gpu_check.md are in {args.out_dir}')
        if found['left_out']:
            print(f'Left out for lack of time: {len(found["left_out"])} checks, named there')
        if found['failed']:
            raise UsageError(f'{found["failed"]} checks are wrong or failed, see {args.out_dir / "gpu_check.md"}')


if __name__ == '__main__':
    main()
