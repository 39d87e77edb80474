#!/usr/bin/env python
"""Export a model, or its backbone, and compare it with PyTorch.

    tools/export.py configs/mask_rcnn_xcit_s12_8_3x_coco.py CHECKPOINT mask_rcnn.onnx --from-pixels --size 800 1216
    tools/export.py configs/sem_fpn_xcit_s12_8_80k_ade20k.py CHECKPOINT sem_fpn.onnx --size 512 512
    tools/export.py configs/mask_rcnn_xcit_s12_8_3x_coco.py CHECKPOINT pyramid.onnx --part backbone --size 800 1216
    tools/export.py CONFIG CHECKPOINT small.onnx --from-pixels --precision int8 --images data/train/*.jpg
    tools/export.py xcit_s12_16_in1k published xcit.pt2 --format torch
    tools/export.py xcit_s12_16_in1k published xcit.xml --format openvino    # and xcit.bin

The exported model takes any image size and, but for detectors and with --from-pixels, any batch.
"""

import argparse
import os
import sys
from typing import Optional, Sequence

from xcit_mm.engine.screen import short_screen
from xcit_mm.errors import clear_errors


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Export a model to ONNX, OpenVINO or torch.export.')
    parser.add_argument('model', help='config file, or name of a published model')
    parser.add_argument('checkpoint', help="file or address of the weights, or 'published' for those of the name")
    parser.add_argument('target', help='file to write')
    parser.add_argument('--format', choices=['onnx', 'openvino', 'torch'], default='onnx', help='default: onnx')
    parser.add_argument('--part', choices=['model', 'backbone'], default='model', help='default: model')
    parser.add_argument(
        '--size', nargs=2, type=int, default=(224, 224), metavar=('HEIGHT', 'WIDTH'), help='typical size of the images'
    )
    parser.add_argument(
        '--from-pixels', action='store_true', help='take uint8 pixels (H, W, channels): resize and normalise inside'
    )
    parser.add_argument(
        '--images',
        nargs='+',
        default=(),
        metavar='FILE',
        help='compare on these instead of generated images; int8 is calibrated on them too, a hundred or so',
    )
    parser.add_argument(
        '--precision', choices=['fp32', 'fp16', 'int8'], default='fp32', help='fp16 for GPUs, int8 for CPUs'
    )
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    with clear_errors(), short_screen():
        from xcit_mm.apis import export_model

        checkpoint = None if args.checkpoint == 'published' else args.checkpoint
        deviations = export_model(
            args.model,
            checkpoint,
            args.target,
            args.format,
            args.part,
            tuple(args.size),
            from_pixels=args.from_pixels,
            images=args.images,
            precision=args.precision,
        )
    counts = [deviation.detections for deviation in deviations]
    print(f'{"input":20} largest relative deviation from PyTorch')
    for shape, relative, detections, unmatched in deviations:
        found = '' if detections is None else f', of {detections} detections {unmatched:.0%} unmatched'
        print(f'{"x".join(map(str, shape)):20} {relative:.1e}{found}')
    if None not in counts and not any(counts):
        print('Nothing was detected in the generated images: compare on yours with --images.', file=sys.stderr)
    channels = deviations[0].shape[-1 if args.from_pixels else 1]
    print(f'It takes {channels} channel{"s" * (channels > 1)}; order, mean and deviation are in its metadata.')
    files = [args.target, *([f'{args.target[:-4]}.bin'] if args.format == 'openvino' else [])]
    print(f'{" and ".join(files)}: {sum(map(os.path.getsize, files)) / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
