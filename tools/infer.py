#!/usr/bin/env python
"""Run a trained model on images, and write and draw its results.

    tools/infer.py configs/mask_rcnn_xcit_s12_8_3x_coco.py CHECKPOINT photos clip.mp4 --out-dir results
    tools/infer.py xcit_s12_16_in1k published 'photos/**/*.jpg'
    tools/infer.py runs/mine/config.py runs/mine/best.pth 0    # the first camera, until Ctrl-C
    tools/infer.py mask_rcnn.onnx photos                       # an exported file, without a checkpoint

The model is a config file or a name of the model index; the checkpoint a file, an address, or the word published. A
file of tools/export.py takes the place of both: .onnx runs in ONNX Runtime, .xml (and its .bin) in OpenVINO. The exit
code is 1 if an image could not be read.
"""

import argparse
import json
import sys
from pathlib import Path

from xcit_mm.engine.screen import short_screen
from xcit_mm.engine.setup import OptionsAction
from xcit_mm.errors import UsageError, clear_errors

NAMED = 20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Run a trained model on images.')
    parser.add_argument('model', help='config file, name of a published model, or exported file (.onnx, .xml)')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help="file or address of the weights, or 'published' for those of the name; not for an exported file",
    )
    parser.add_argument(
        'images', nargs='+', help='images, videos, folders, globs, addresses, or the number of a camera'
    )
    parser.add_argument('--out-dir', default='results', help='folder for results and pictures (default: results)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out detections below this (default: 0.3)')
    parser.add_argument('--batch-size', type=int, default=1, help='images in a forward pass (default: 1)')
    parser.add_argument('--tiles', type=int, metavar='SIZE', help='cut large images into tiles of this many pixels')
    parser.add_argument('--overlap', type=float, default=0.25, help='overlap, as a share of the tile (default: 0.25)')
    parser.add_argument('--no-overlays', action='store_true', help='draw nothing')
    parser.add_argument('--device', help='such as cuda:0 or cpu (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help='settings of the config to change'
    )
    return parser.parse_intermixed_args()  # options may stand between the checkpoint and the images


def report(folder: Path) -> int:
    """Print the summary as a table, and return how many images could not be read."""
    summary = json.loads((folder / 'summary.json').read_text())
    results = json.loads((folder / 'results.json').read_text())
    seconds = {key: summary[f'seconds_{key}'] for key in ('per_image', 'reading_each', 'drawing_each')}
    print(
        f'\n{summary["images"]} images; for each {seconds["per_image"]:.2f} s to predict, '
        f'{seconds["reading_each"]:.2f} s to read, {seconds["drawing_each"]:.2f} s to draw and write'
    )
    for name, numbers in list(summary['classes'].items())[:NAMED]:
        shown = ', '.join(
            f'{k.replace("_", " ")} {v if isinstance(v, int) else round(v, 3)}' for k, v in numbers.items()
        )
        print(f'  {name:20} {shown}')
    if len(summary['classes']) > NAMED:
        print(f'  and {len(summary["classes"]) - NAMED} more classes')
    if summary['left_out']:
        listed = ', '.join(f'{number} {suffix}' for suffix, number in summary['left_out'].items())
        print(f'left out of the folders, no images: {listed}')
    for key, what in (('warning', 'perhaps wrong'), ('error', 'not read')):
        found = [result for result in results if key in result]
        for result in found[:NAMED]:
            frame = f', frame {result["frame"]}' if 'frame' in result else ''
            print(f'  {what}: {result["image"]}{frame}: {result[key]}')
        if len(found) > NAMED:
            print(f'  {what}: {len(found) - NAMED} more, in results.json')
    there = ('results.json', 'summary.json', 'overview.jpg', 'overlays/', 'maps/', 'geojson/')
    print(f'In {folder}: {", ".join(name for name in there if (folder / name).exists())}')
    return sum('error' in result for result in results)


def main() -> None:
    args = parse_args()
    with clear_errors(), short_screen():
        from xcit_mm.apis import Inferencer
        from xcit_mm.apis.exported import is_exported
        from xcit_mm.datasets.sources import find_images

        checkpoint, names = None, [name for name in (args.checkpoint, *args.images) if name]
        if not is_exported(args.model):
            checkpoint, *names = names
            if not names:
                raise UsageError(f'{args.model} needs a checkpoint before the images: MODEL CHECKPOINT IMAGES')
        images = find_images(names)
        checkpoint = None if checkpoint == 'published' else checkpoint
        inferencer = Inferencer(args.model, checkpoint, args.device, args.cfg_options, args.tiles, args.overlap)
        try:
            inferencer(images, args.out_dir, args.score_thr, args.batch_size, not args.no_overlays)
        except KeyboardInterrupt:
            report(Path(args.out_dir))
            print('Interrupted: these are the results so far.', file=sys.stderr)
            sys.exit(130)
        failed = report(Path(args.out_dir))
    if failed:
        print(f'\nerror: {failed} of the images could not be read', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
