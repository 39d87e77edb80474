#!/usr/bin/env python
"""Make a small real-image data set in COCO, ADE20K and ImageNet layout, without a download.

python tools/make_digits.py data/digits
"""

import argparse
import sys
import time
from pathlib import Path

try:
    from xcit_mm.datasets.digits import make_digits
except ImportError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from xcit_mm.datasets.digits import make_digits


def main():
    parser = argparse.ArgumentParser(
        description='Handwritten digits on photographs, in COCO, ADE20K and ImageNet layout.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('out', help='folder to make')
    parser.add_argument('--train', type=int, default=2000, help='number of training scenes')
    parser.add_argument('--val', type=int, default=100, help='number of validation scenes')
    parser.add_argument('--size', type=int, default=160, help='side of a scene in pixels')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same bytes')
    parser.add_argument('--force', action='store_true', help='replace a data set this tool made with other options')
    options = vars(parser.parse_args())
    start = time.perf_counter()
    try:
        counts, made = make_digits(**options)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'make_digits: {error}')
    except KeyboardInterrupt:
        print('make_digits: interrupted; nothing was left behind', file=sys.stderr)
        sys.exit(130)
    out = Path(options['out'])
    seconds = time.perf_counter() - start
    print(f'made in {seconds:.1f} s' if made else 'already there')
    for split in ('train', 'val'):
        print(
            f'{split:>5}: {counts[split]} scenes with {counts[split + "_objects"]} objects, '
            f'{counts[split + "_crops"]} single digits'
        )
    for name in ('coco', 'ade', 'imagenet', 'README.md', 'preview.png'):
        print(f'       {out / name}')


if __name__ == '__main__':
    main()
