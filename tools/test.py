#!/usr/bin/env python
"""Test a checkpoint of a model of MMDetection, MMSegmentation or MMPretrain, and draw its results.

    tools/test.py configs/mask_rcnn_xcit_s12_8_3x_coco.py CHECKPOINT --show-dir pictures

The config is a file, or the name of a published model. The checkpoint is a file or an address, of this project or of
the original release, or the word published for the weights of the name.
"""

import argparse

from mmengine.config import Config
from mmengine.evaluator import DumpResults

from xcit_mm.checks.data import check_data
from xcit_mm.checks.settings import check_loops
from xcit_mm.engine.classification import (
    PROTOCOLS,
    find_imagenet_v2,
    is_imagenet,
    read_as_released,
    use_protocol,
    use_real_labels,
)
from xcit_mm.engine.large_images import use_large_images
from xcit_mm.engine.screen import short_screen
from xcit_mm.engine.setup import (
    adapt_to_device,
    add_common_arguments,
    build_runner,
    check_model,
    check_work_dir,
    find_weights,
    load_config,
    use_average,
)
from xcit_mm.engine.tiling import use_tiles
from xcit_mm.engine.tta import use_tta
from xcit_mm.errors import clear_errors
from xcit_mm.large_images.tiling import Tiles
from xcit_mm.resilience.bad_images import check_images
from xcit_mm.resilience.interruption import end_processes
from xcit_mm.visualization.results import draw_results


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a checkpoint.')
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help="checkpoint file or address, or 'published' for the weights of the name")
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show-dir', help='draw ground truth and predictions into this folder')
    parser.add_argument(
        '--protocol',
        choices=PROTOCOLS,
        help='classifiers: the full crop, as in the paper (default), the resize and crop of MMPretrain, or the crop of '
        '0.875; images are read as the release does, not turned by their EXIF note',
    )
    parser.add_argument(
        '--real-labels', metavar='FILE', help='classifiers: also score against the ReaL labels (real.json)'
    )
    parser.add_argument(
        '--average', action='store_true', help='test the average of the weights that the checkpoint keeps'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--tiles',
        type=int,
        metavar='SIZE',
        help='detectors and segmentors: cut large images into tiles of this many pixels, and merge the results',
    )
    parser.add_argument(
        '--overlap',
        type=float,
        default=0.25,
        help='overlap, as a share of the tile (default: 0.25)',
    )
    args = parser.parse_args()
    if args.tiles is not None and args.tta:
        parser.error('--tiles and --tta exclude each other')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must be a .pkl file, got {args.out}')
    return args


def dump_results(scope: str, path: str):
    """The metric that writes predictions instead of scoring them; MMDetection's encodes masks."""
    if scope == 'mmdet':
        from xcit_mm.evaluation.dump import DumpDetResults

        return DumpDetResults(out_file_path=path)
    return DumpResults(out_file_path=path)


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    if args.protocol:
        use_protocol(cfg, args.protocol)
    elif cfg.get('default_scope') == 'mmpretrain' and is_imagenet(cfg.get('test_dataloader')):
        read_as_released(cfg.test_dataloader)
    if args.average:
        use_average(cfg)
    if args.real_labels:
        use_real_labels(cfg, args.real_labels)
    folder = find_imagenet_v2(cfg)
    if folder:
        print(f'The folders of {folder} are named by class index: tested as ImageNet-V2.', flush=True)


def main() -> None:
    args = parse_args()
    with clear_errors(), short_screen(args.verbose):
        cfg = load_config(args)
        cfg.load_from = find_weights(args.config, args.checkpoint)
        apply_options(cfg, args)
        check_data(cfg, ('test',))
        check_model(cfg, cfg.load_from, 'test')
        check_loops(cfg, 'test')
        check_work_dir(cfg)
        if args.bad_images == 'refuse':
            check_images(cfg, ('test',))
        if args.show_dir:
            draw_results(cfg, args.show_dir)
        use_large_images(cfg)
        if args.tta:
            use_tta(cfg)
        if args.tiles is not None:
            use_tiles(cfg, Tiles(args.tiles, args.overlap))
        adapt_to_device(cfg)
        runner = build_runner(cfg)
        if args.out:
            runner.test_evaluator.metrics.append(dump_results(cfg.get('default_scope'), args.out))
        runner.test()
        if args.out:
            runner.logger.info(f'Predictions are in {args.out}')
        end_processes()


if __name__ == '__main__':
    main()
