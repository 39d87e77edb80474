#!/usr/bin/env python
"""Test exported files beside PyTorch: the config's own data and metrics, size, and time from pixels to the answer.

    tools/export.py CONFIG CHECKPOINT model.onnx --from-pixels
    tools/test_exported.py CONFIG CHECKPOINT model.onnx --runtime onnxruntime openvino

Files are those written with --from-pixels. All run on the CPU, in turn for each image, with as many threads as PyTorch.
"""

import argparse
from typing import Optional, Sequence

from xcit_mm.engine.screen import short_screen
from xcit_mm.errors import clear_errors


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test exported files beside PyTorch.')
    parser.add_argument('model', help='config file, or name of a published model')
    parser.add_argument('checkpoint', help="file or address of the weights, or 'published' for those of the name")
    parser.add_argument('files', nargs='+', help='written by tools/export.py with --from-pixels')
    parser.add_argument(
        '--runtime',
        nargs='+',
        choices=['onnxruntime', 'openvino'],
        default=['onnxruntime'],
        help='default: onnxruntime',
    )
    parser.add_argument('--limit', type=int, help='the first images alone')
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    with clear_errors(), short_screen():
        import torch

        from xcit_mm.apis.deployed import compare_on_data

        checkpoint = None if args.checkpoint == 'published' else args.checkpoint
        rows = compare_on_data(args.model, checkpoint, args.files, args.runtime, args.limit)
    print(f'{torch.get_num_threads()} thread(s), PyTorch {torch.__version__}')
    for row in rows:
        metrics = ', '.join(f'{name.split("/")[-1]} {value:.3f}' for name, value in row.metrics.items())
        print(f'{row.name:40} {row.megabytes:7.1f} MB {row.milliseconds:8.1f} ms  {metrics}')


if __name__ == '__main__':
    main()
