#!/usr/bin/env python
"""Test a classifier at a range of sizes and plot its accuracy (figure 3 of the paper).

    tools/resolution_study.py configs/xcit_s12_16_in1k.py CHECKPOINT
    tools/resolution_study.py configs/xcit_s12_16_in1k.py CHECKPOINT --sizes 160 224 320 \\
        --peer mmpretrain::deit/deit-small_4xb256_in1k.py DEIT --peer mmpretrain::resnet/resnet50_8xb32_in1k.py RESNET

At every size the short side is resized to it and the centre cropped. Results are kept in the work folder, and
--resume continues where an earlier call stopped.
"""

import argparse
import copy
import csv
from pathlib import Path
from typing import Dict, List, Tuple

from mmengine.config import Config
from mmengine.dist import get_dist_info, is_main_process

from xcit_mm.checkpoint import CheckpointError
from xcit_mm.checks.data import check_data
from xcit_mm.engine.classification import use_protocol
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
from xcit_mm.resilience.bad_images import check_images
from xcit_mm.resilience.interruption import end_processes
from xcit_mm.visualization.style import line_style, plots

SIZES = (128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
FIELDS = ('model', 'checkpoint', 'size', 'top1')
Results = Dict[Tuple[str, str, int], float]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a classifier at a range of sizes.')
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument('--sizes', type=int, nargs='+', default=SIZES, help=f'default: {" ".join(map(str, SIZES))}')
    parser.add_argument(
        '--peer',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='another classifier to compare with, such as DeiT or ResNet; may be repeated. CONFIG is a file, or '
        'mmpretrain::NAME for one of MMPretrain',
    )
    parser.add_argument('--resume', action='store_true', help='keep the results that results.csv has already')
    args = parser.parse_args()
    if min(args.sizes) < 1:
        parser.error(f'--sizes must be above 0, got {min(args.sizes)}')
    return args


def load_peer(args: argparse.Namespace, config: str, work_dir: str) -> Config:
    """A peer's config, with the options and the data of the first."""
    if '::' not in config:
        return load_config(argparse.Namespace(**{**vars(args), 'config': config, 'work_dir': work_dir}))
    from mmengine.hub import get_config

    try:
        cfg = get_config(config)
    except Exception as error:  # of the hub, about packages, names and files
        raise UsageError(f'--peer {config} cannot be read: {type(error).__name__}: {error}') from None
    cfg.launcher, cfg.work_dir = args.launcher, work_dir
    return cfg


def at_size(cfg: Config, size: int, work_dir: str) -> Config:
    """The config with the full crop at that size; the batch shrinks as the images grow."""
    cfg = copy.deepcopy(cfg)
    pipeline = cfg.test_dataloader.dataset.pipeline
    crops = [step for step in pipeline if step['type'] == 'CenterCrop']
    trained = crops[0]['crop_size'] if crops else size
    for crop in crops:
        crop['crop_size'] = size
    use_protocol(cfg, 'full-crop')
    cfg.test_dataloader.batch_size = max(1, int(cfg.test_dataloader.batch_size * min(1, (trained / size) ** 2)))
    cfg.work_dir = work_dir
    return cfg


def read_results(path: Path) -> Results:
    if not path.exists():
        return {}
    with open(path, newline='') as file:
        return {(r['model'], r['checkpoint'], int(r['size'])): float(r['top1']) for r in csv.DictReader(file)}


def write_results(path: Path, results: Results) -> None:
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows([*key, top1] for key, top1 in results.items())


def draw(path: Path, results: Results) -> None:
    """Accuracy against size, a line for each model."""
    models = list(dict.fromkeys((name, checkpoint) for name, checkpoint, _ in results))
    with plots() as plt:
        figure, axis = plt.subplots(figsize=(7, 4.5))
        for place, model in enumerate(models):
            points = sorted((size, top1) for (*key, size), top1 in results.items() if tuple(key) == model)
            same = sum(name == model[0] for name, _ in models) > 1
            label = f'{model[0]} ({Path(model[1]).name})' if same else model[0]
            axis.plot(*zip(*points), label=label, **line_style(place, ours=place == 0))
        axis.set_xlabel('size of the test images (px)')
        axis.set_ylabel('top-1 (%)')
        axis.legend(loc='lower right')
        figure.savefig(path)
        plt.close(figure)


def main() -> None:
    args = parse_args()
    with clear_errors(), short_screen(args.verbose):
        first = load_config(args)
        folder = Path(args.work_dir or Path('work_dirs/resolution') / Path(args.config).stem)
        first.work_dir = str(folder)
        check_work_dir(first)
        models: List[Tuple[str, Config, str]] = [(Path(args.config).stem, first, args.checkpoint)]
        for config, checkpoint in args.peer:
            path = Path(config.split('::')[-1])
            taken = any(name == path.stem for name, *_ in models)
            name = f'{path.resolve().parent.name}_{path.stem}' if taken else path.stem
            models.append((name, load_peer(args, config, str(folder)), checkpoint))
        for _, cfg, checkpoint in models:
            if cfg is not first:  # the same images for all
                cfg.test_dataloader.dataset.data_root = first.test_dataloader.dataset.data_root
            check_data(cfg, ('test',))
            check_model(cfg, checkpoint, 'test')
            at_size(cfg, max(args.sizes), str(folder))
        if args.bad_images == 'refuse':
            check_images(first, ('test',))
        results = read_results(folder / 'results.csv') if args.resume else {}
        failed = []
        for name, cfg, checkpoint in models:
            for size in sorted(set(args.sizes)):
                if (name, checkpoint, size) in results:
                    print(
                        f'{name} at {size}: {results[name, checkpoint, size]:.2f} % (from an earlier call)', flush=True
                    )
                    continue
                run = at_size(cfg, size, str(folder / f'{name}_{size}'))
                run.load_from, run.experiment_name = checkpoint, f'{name}_{size}'
                adapt_to_device(run)
                try:
                    top1 = build_runner(run).test()['accuracy/top1']
                except (KeyError, RuntimeError, UsageError, CheckpointError) as error:
                    if get_dist_info()[1] > 1:  # the other processes would wait for this one
                        raise
                    reason = 'the test gives no' if isinstance(error, KeyError) else f'{type(error).__name__}:'
                    failed.append(f'{name} at {size}: {reason} {str(error).splitlines()[0]}')
                    continue
                results[name, checkpoint, size] = round(top1, 4)
                if is_main_process():
                    write_results(folder / 'results.csv', results)
                    print(f'{name} at {size}: top-1 {top1:.2f} %', flush=True)
        if is_main_process() and results:
            draw(folder / 'resolution.png', results)
            print(f'Results: {folder / "results.csv"}, {folder / "resolution.png"}')
        if failed:
            listed = ''.join(f'\n  {line}' for line in failed)
            raise UsageError(f'{len(failed)} of the tests failed; the others are in {folder}:{listed}')
        end_processes()


if __name__ == '__main__':
    main()
