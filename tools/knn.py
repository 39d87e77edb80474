#!/usr/bin/env python
"""Test a backbone's features by the votes of the nearest training images, as DINO does.

    tools/knn.py configs/knn_xcit_s12_16_in1k.py CHECKPOINT
    PORT=29501 torchrun --nproc_per_node 8 tools/knn.py ... --launcher pytorch   # on several GPUs or processes

The checkpoint is a file or an address of any layout; of a DINO run, its teacher is tested.
"""

import argparse
import copy
import json
import os
from typing import Callable, Dict

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import Tensor

from xcit_mm.checks.data import check_data
from xcit_mm.datasets.config import innermost_datasets
from xcit_mm.engine.classification import is_imagenet, read_as_released
from xcit_mm.engine.screen import short_screen
from xcit_mm.engine.setup import (
    adapt_to_device,
    add_common_arguments,
    build_runner,
    check_model,
    check_work_dir,
    load_config,
)
from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.resilience.bad_images import check_images, use_checked_dataset
from xcit_mm.resilience.interruption import end_processes
from xcit_mm.selfsup.knn import extract_features, gather_in_order, knn_accuracy


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Test a backbone's features by k nearest neighbours.")
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument('--k', type=int, nargs='+', help='numbers of neighbours (default: 10 20 100 200)')
    parser.add_argument('--temperature', type=float, help='of the votes (default: 0.07)')
    parser.add_argument(
        '--baselines',
        action='store_true',
        help='also test the pixels of the same crops, and a network with random weights',
    )
    parser.add_argument('--out', metavar='FILE', help='write the accuracies to this .json file')
    args = parser.parse_args()
    if args.k and min(args.k) < 1:
        parser.error(f'--k takes numbers from 1 up, got {min(args.k)}')
    if args.temperature is not None and args.temperature <= 0:
        parser.error(f'--temperature must be above 0, got {args.temperature}')
    return args


def find_settings(cfg: Config, args: argparse.Namespace) -> dict:
    if 'knn' not in cfg:
        raise UsageError(
            f'{args.config} has no knn=dict(ks=..., temperature=...); use one of configs/knn_xcit_*.py, or a config '
            f'that inherits from one'
        )
    settings = dict(cfg.knn)
    settings.update({key: value for key, value in (('ks', args.k), ('temperature', args.temperature)) if value})
    return settings


def feature_sources(model, baselines: bool) -> Dict[str, Callable[[Tensor], Tensor]]:
    """What is compared, by name: from images (B, 3, H, W) to features (B, ...)."""
    sources = {'checkpoint': lambda images: model.backbone(images)[-1]}
    if baselines:
        untrained = copy.deepcopy(model.backbone)
        for module in untrained.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        untrained._reset_parameters()
        sources['random weights'] = lambda images: untrained(images)[-1]
        sources['pixels'] = lambda images: images
    return sources


def evaluate(runner: Runner, settings: dict, baselines: bool) -> Dict[str, dict]:
    """Accuracies by source and k; every image is passed through each source once."""
    model = runner.model.module if hasattr(runner.model, 'module') else runner.model
    model.eval()
    loaders = {split: runner.build_dataloader(runner.cfg[f'{split}_dataloader']) for split in ('train', 'test')}
    results = {}
    for name, features_of in feature_sources(model, baselines).items():
        found = {
            split: extract_features(loader, model.data_preprocessor, features_of, f'{name}, {split} images')
            for split, loader in loaders.items()
        }
        total = len(loaders['test'].dataset)
        test = [gather_in_order(share, total) for share in found['test']]
        results[name] = knn_accuracy(*without_padding(loaders['train'], *found['train']), *test, **settings)
    return results


def without_padding(loader, features: Tensor, labels: Tensor):
    """Label -1 for the images that the sampler repeats to give every process as many."""
    sampler = loader.sampler
    own = torch.arange(len(labels), device=labels.device) * sampler.world_size + sampler.rank
    return features, torch.where(own < len(loader.dataset), labels, -1)


def report(results: Dict[str, dict], args: argparse.Namespace) -> None:
    rows = [(name, k, accuracy) for name, accuracies in results.items() for k, accuracy in accuracies.items()]
    tops = ('top1', 'top5')[: len(rows[0][-1])]  # of five classes or fewer there is no top-5
    table = Table(title='k-NN accuracy (%)')
    for column in ('features', 'k', *(top.replace('top', 'top-') for top in tops)):
        table.add_column(column, justify='left' if column == 'features' else 'right')
    for name, k, accuracy in rows:
        table.add_row(name, str(k), *(f'{value:.2f}' for value in accuracy))
    Console().print(table)
    if args.out:
        with open(args.out, 'w') as file:
            json.dump(
                {name: {k: dict(zip(tops, a)) for k, a in found.items()} for name, found in results.items()}, file
            )
        print(f'The accuracies are in {args.out}')


def main() -> None:
    args = parse_args()
    with clear_errors(), short_screen(args.verbose):
        cfg = load_config(args)
        settings = find_settings(cfg, args)
        cfg.load_from = args.checkpoint
        check_data(cfg, ('train', 'test'))
        check_model(cfg, args.checkpoint, 'test')
        check_work_dir(cfg)
        if args.out and not os.path.isdir(os.path.dirname(args.out) or '.'):
            raise UsageError(f'there is no folder {os.path.dirname(args.out)} for --out; make it, or choose another')
        if args.bad_images == 'refuse':
            check_images(cfg, ('train', 'test'))
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            if is_imagenet(loader):
                read_as_released(loader)
        adapt_to_device(cfg)
        # Testing needs no loops; the settings of training are only read.
        for split in ('val', 'test', 'train'):
            cfg.pop(f'{split}_cfg', None)
        loaders = {split: cfg.pop(f'{split}_dataloader', None) for split in ('train', 'val', 'test')}
        for key in ('val_evaluator', 'test_evaluator', 'optim_wrapper', 'param_scheduler'):
            cfg.pop(key, None)
        cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks', []) if not str(hook['type']).endswith('EMAHook')]
        runner = build_runner(cfg)
        runner.load_or_resume()
        for split, loader in loaders.items():
            for dataset in innermost_datasets(loader['dataset']):
                use_checked_dataset(dataset, cfg.get('default_scope') or 'mmengine')
            runner.cfg[f'{split}_dataloader'] = dict(loader, collate_fn=dict(type='default_collate'))
        runner.model.to(get_device())
        results = evaluate(runner, settings, args.baselines)
        if is_main_process():
            report(results, args)
        end_processes()


if __name__ == '__main__':
    main()
