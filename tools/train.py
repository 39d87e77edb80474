#!/usr/bin/env python
"""Train a model of MMDetection, MMSegmentation or MMPretrain from its config.

    tools/train.py configs/mask_rcnn_xcit_s12_8_3x_coco.py
    tools/train.py mask_rcnn_xcit_s12_8_3x_coco --out-dir runs/s12_8

The config is a file, or the name of a published model.
"""

import argparse

from mmengine.config import Config

from xcit_mm.apis.training import train
from xcit_mm.engine.screen import short_screen
from xcit_mm.engine.setup import add_common_arguments, load_config, use_average
from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.resilience.checkpointing import has_checkpoint
from xcit_mm.resilience.interruption import end_processes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model from its config.')
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help="continue from a checkpoint; 'auto', or nothing, takes the newest intact one of the work folder; "
        'if there is none, the run starts from the beginning',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the actual batch size')
    parser.add_argument(
        '--average',
        action='store_true',
        help='classifiers: validate, select and save the average of the weights instead of the weights',
    )
    parser.add_argument('--tensorboard', action='store_true', help='write TensorBoard scalars to the work folder too')
    return parser.parse_args()


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    if args.amp and cfg.optim_wrapper.get('type') != 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UsageError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config')
        cfg.auto_scale_lr.enable = True
    if args.average:
        use_average(cfg)
    if args.resume == 'auto':
        cfg.resume = has_checkpoint(cfg.work_dir)
        if cfg.resume:
            cfg.load_from = None
        else:
            print(
                f'There is no checkpoint in {cfg.work_dir} to continue from: the run starts from the beginning.',
                flush=True,
            )
    elif args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    if args.tensorboard:
        visualizer = cfg.setdefault('visualizer', dict(type='Visualizer'))
        visualizer['vis_backends'] = [*(visualizer.get('vis_backends') or []), dict(type='TensorboardVisBackend')]


def main() -> None:
    args = parse_args()
    with clear_errors(), short_screen(args.verbose):
        cfg = load_config(args)
        apply_options(cfg, args)
        train(cfg, args.bad_images)
        end_processes()


if __name__ == '__main__':
    main()
