#!/usr/bin/env python
"""Export a classifier, a segmentor or the backbone of any model, and compare it with PyTorch before it counts as done.

    tools/export.py configs/sem_fpn_xcit_s12_8_80k_ade20k.py CHECKPOINT sem_fpn.onnx --size 512 512
    tools/export.py configs/mask_rcnn_xcit_s12_8_3x_coco.py CHECKPOINT pyramid.onnx --part backbone --size 800 1216
    tools/export.py xcit_s12_16_in1k published xcit.pt2 --format torch

The exported model takes any batch and image size.
"""

import argparse
import os

from xcit_mm.errors import clear_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Export a model to ONNX or torch.export.')
    parser.add_argument('model', help='config file, or name of a published model')
    parser.add_argument('checkpoint', help="file or address of the weights, or 'published' for those of the name")
    parser.add_argument('target', help='file to write')
    parser.add_argument('--format', choices=['onnx', 'torch'], default='onnx', help='default: onnx')
    parser.add_argument('--part', choices=['model', 'backbone'], default='model', help='default: model')
    parser.add_argument(
        '--size', nargs=2, type=int, default=(224, 224), metavar=('HEIGHT', 'WIDTH'), help='typical size of the images'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with clear_errors():
        from xcit_mm.apis import export_model

        checkpoint = None if args.checkpoint == 'published' else args.checkpoint
        deviations = export_model(args.model, checkpoint, args.target, args.format, args.part, tuple(args.size))
    print('images (B, channels, H, W)  largest relative deviation from PyTorch')
    for shape, relative in deviations:
        print(f'{"x".join(map(str, shape)):27} {relative:.1e}')
    takes = deviations[0].shape[1]
    print(f'It takes {takes} channel{"s" * (takes > 1)}; order, mean and deviation are in its metadata.')
    print(f'{args.target}: {os.path.getsize(args.target) / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
