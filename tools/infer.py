#!/usr/bin/env python
"""Let a trained model look at images, and write down and draw what it finds.

    tools/infer.py configs/mask_rcnn_xcit_s12_8_3x_coco.py CHECKPOINT photos --out-dir results
    tools/infer.py xcit_s12_16_in1k published 'photos/**/*.jpg'

The model is a config file or a name of the model index; the checkpoint a file, an address, or the word published.
"""

import argparse
import json
from pathlib import Path

from mmengine import DictAction

from xcit_mm.errors import clear_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Let a trained model look at images.')
    parser.add_argument('model', help='config file, or name of a published model')
    parser.add_argument('checkpoint', help="file or address of the weights, or 'published' for those of the name")
    parser.add_argument('images', nargs='+', help='images, folders or globs')
    parser.add_argument('--out-dir', default='results', help='folder for results and pictures (default: results)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out detections below this (default: 0.3)')
    parser.add_argument('--batch-size', type=int, default=1, help='images that are computed together (default: 1)')
    parser.add_argument('--device', help='such as cuda:0 or cpu (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='settings of the config to change'
    )
    return parser.parse_args()


def report(folder: Path) -> None:
    """Print the summary as a table."""
    summary = json.loads((folder / 'summary.json').read_text())
    print(f'\n{summary["images"]} images, {summary["seconds_per_image"]:.2f} s each')
    for name, numbers in list(summary['classes'].items())[:20]:
        shown = ', '.join(
            f'{k.replace("_", " ")} {v if isinstance(v, int) else round(v, 3)}' for k, v in numbers.items()
        )
        print(f'  {name:20} {shown}')
    if len(summary['classes']) > 20:
        print(f'  and {len(summary["classes"]) - 20} classes more')
    for path in summary['unreadable']:
        print(f'  not read: {path}')
    print(f'results.json, summary.json, overview.jpg and overlays/ are in {folder}')


def main() -> None:
    args = parse_args()
    with clear_errors():
        from xcit_mm.apis import Inferencer

        checkpoint = None if args.checkpoint == 'published' else args.checkpoint
        inferencer = Inferencer(args.model, checkpoint, args.device, args.cfg_options)
        inferencer(args.images, args.out_dir, args.score_thr, args.batch_size)
        report(Path(args.out_dir))


if __name__ == '__main__':
    main()
