#!/usr/bin/env python
"""The paper's tables 2 to 6 with the rows of the other systems, and pictures of accuracy against cost.

    tools/paper_tables.py                                    # all tables, in Markdown
    tools/paper_tables.py --table 5 --format csv
    tools/paper_tables.py --plots work_dirs/paper            # the pictures too

Nothing is measured here: tools/model_zoo.py holds the models of this project against these numbers.
"""

import argparse
from pathlib import Path

from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.model_zoo.paper import TABLES, as_csv, as_markdown, draw


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Print and draw the paper's tables.")
    numbers = [table.number for table in TABLES]
    parser.add_argument('--table', type=int, nargs='+', choices=numbers, default=numbers, help='default: all')
    parser.add_argument('--format', choices=['markdown', 'csv'], default='markdown')
    parser.add_argument('--plots', metavar='DIR', type=Path, help='write the pictures into this folder')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    tables = [table for table in TABLES if table.number in args.table]
    write = {'markdown': as_markdown, 'csv': as_csv}[args.format]
    with clear_errors():
        print('\n'.join(write(table) for table in tables), end='')
        if args.plots:
            try:
                paths = draw(tables, args.plots)
            except OSError as error:
                raise UsageError(f'the pictures cannot be written to {args.plots}: {error.strerror}') from None
            except ImportError as error:
                raise UsageError(f'the pictures need matplotlib ({error}); pip install matplotlib') from None
            print('\nPictures: ' + (', '.join(map(str, paths)) or 'these tables have none'))


if __name__ == '__main__':
    main()
