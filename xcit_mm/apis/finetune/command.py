"""``xcit-mm finetune DATA``."""

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Optional

DESCRIPTION = """Train a model on a folder of labelled images, and report on it.

DATA is COCO JSON, Pascal VOC, YOLO, LabelMe, images with label maps, a folder for each class, or a CSV of file and
label. Before training, the command shows what it found, with labelled images. Ambiguous data are refused, with the
option that decides. The run's folder gets an ordinary config, the best and the last checkpoint, a live curve and a
report."""
EXAMPLES = """examples:
  xcit-mm finetune my_images
  xcit-mm finetune my_images --model xcit_t12_16 --epochs 30 --dry-run
  xcit-mm finetune masks --classes background,crack --model upernet_xcit_s12_16
  xcit-mm finetune my_images --out-dir runs/my_images --resume"""


def parse_args(arguments: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='xcit-mm finetune',
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('data', metavar='DATA', help='folder of labelled images, or the .json, data.yaml or .csv that describes them')
    add('--out-dir', metavar='FOLDER', help='folder of the run (default: runs/NAME, with a number if it exists)')
    add('--resume', action='store_true', help='continue the run of --out-dir from its last checkpoint')
    add('--dry-run', action='store_true', help='check the data and write the config, without training')
    group = parser.add_argument_group('model and schedule, by default chosen for the data')
    add = group.add_argument
    add('--model', default='xcit_s12_16', help='such as xcit_t12_8 or upernet_xcit_s12_16 (default: %(default)s)')
    add('--weights', help="file or address to start from, or 'none' (default: the published weights)")
    add('--size', type=int, help='pixels of the short side, or of the crop')
    add('--batch', type=int, help='images for each GPU')
    add('--epochs', type=int, help='at most; it ends early if nothing improves')
    add('--lr', type=float, help='learning rate of the head')
    add('--gpus', type=int, default=1, help='default: 1')
    add('--no-flip', action='store_true', help='do not mirror images: digits, text, left and right hands')
    group = parser.add_argument_group('data, where the files leave it open')
    add = group.add_argument
    add('--task', help='classification, detection, instance-segmentation or semantic-segmentation')
    add('--format', help='coco, voc, yolo, labelme, maps, folders or csv')
    add('--classes', type=_names, metavar='A,B,...', help='names in the order of the labels')
    add('--legend', metavar='FILE', help='lines "name r g b" or "name number" for label maps')
    add('--annotations', metavar='GLOB', help='which COCO files, if there are several')
    add('--label-column', metavar='NAME', help='of a CSV')
    add('--group-by', metavar='REGEX', help='images whose names have the same match stay in one split')
    add(
        '--val-share',
        type=float,
        default=0.2,
        help='share of images to validate on, if the data name none (default: %(default)s)',
    )
    add('--seed', type=int, default=0, help='of the random split (default: 0)')
    return parser.parse_args(arguments)


def _names(text: str) -> List[str]:
    return [name.strip() for name in text.split(',') if name.strip()]


def main(arguments: Optional[List[str]] = None) -> None:
    """The command."""
    args = parse_args(arguments)
    from ...engine.screen import short_screen
    from ...errors import clear_errors

    with clear_errors(), short_screen():
        run(args)


def run(args: argparse.Namespace) -> Path:
    """Read the data, write the config, train, test and report.

    Returns:
        Path: The folder of the run.

    Raises:
        UsageError: If something is wrong or ambiguous; if before training, nothing is left behind.
    """
    from . import formats, recipe, show, split

    folder = _folder(args)
    options = _options(args, folder)
    data = formats.read(args.data, options)
    split.divide(data, options)
    counts = show.counts_by_split(data)
    chosen = None
    if not args.resume:
        chosen = recipe.choose(
            data, args.model, args.weights, args.size, args.batch, args.epochs, args.lr, args.gpus, not args.no_flip
        )
    show.print_found(data, counts)
    if not args.resume:
        _prepare(data, chosen, folder, options)
    config = folder / 'config.py'
    if args.dry_run:
        print(f'Nothing is trained (--dry-run). Look at {folder / "found.jpg"} and {config}, then:\n  {_train(folder)}')
        return folder
    begun = time.time()
    _run_training(config, folder, args)
    report(data, folder, time.time() - begun)
    return folder


def _folder(args: argparse.Namespace) -> Path:
    """The folder of the run, not created yet.

    Raises:
        UsageError: If it cannot be created, holds another run, or holds none to resume.
    """
    from ...errors import UsageError

    name = Path(args.data).resolve().stem or 'data'
    folder = Path(args.out_dir) if args.out_dir else Path('runs') / name
    if args.resume:
        if not (folder / 'config.py').is_file():
            raise UsageError(f'there is no run to continue in {folder} (no config.py); name its folder with --out-dir')
        return folder
    if not args.out_dir:
        number = 1
        while folder.exists():
            number += 1
            folder = Path('runs') / f'{name}_{number}'
    elif folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f'{folder} is not empty; choose another --out-dir, or continue its run with --resume')
    there = next(parent for parent in [folder, *folder.resolve().parents] if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(
            f'the folder {folder} cannot be created: {there} cannot be written to; choose another --out-dir'
        )
    return folder


def _options(args: argparse.Namespace, folder: Path):
    """The user's options about the data; those of the first call for a resumed run."""
    from .data import Options

    kept = folder / 'data' / 'options.json'
    if args.resume and kept.is_file():
        return Options(**json.loads(kept.read_text()))
    names = ('format', 'task', 'classes', 'legend', 'annotations', 'label_column', 'group_by', 'val_share', 'seed')
    options = Options(**{name: getattr(args, name) for name in names})
    options.legend = options.legend and os.path.abspath(options.legend)
    return options


def _prepare(data, chosen, folder: Path, options) -> None:
    """Write contact sheet, annotations and config; remove them all on an error."""
    from . import show
    from .config import config_text
    from .write import write

    is_new = not folder.exists()
    try:
        _create(folder)
        show.draw_sheet(data, folder / 'found.jpg')
        annotations = write(data, folder / 'data')
        (folder / 'data' / 'options.json').write_text(json.dumps(vars(options), indent=1))
        (folder / 'config.py').write_text(config_text(data, chosen, annotations, folder), encoding='utf-8')
        _check_space(folder, chosen)
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    print()
    print('\n'.join(chosen.lines()))
    print(f'run       {folder}: found.jpg shows labelled images, train/curve.png how the training goes', flush=True)


def _create(folder: Path) -> None:
    """Make the folder of the run.

    Raises:
        UsageError: If the file system refuses.
    """
    from ...errors import UsageError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f'the folder {folder} cannot be created: {error.strerror}; choose another --out-dir') from None


def _check_space(folder: Path, chosen) -> None:
    """Refuse a disk without room for the checkpoints.

    Raises:
        UsageError: If too little space is free.
    """
    import torch
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    from ...errors import UsageError

    cfg = Config.fromfile(folder / 'config.py')
    model = copy.deepcopy(cfg.model)
    model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        parameters = sum(one.numel() for one in MODELS.build(model).parameters())
    # Weights, their average and the two moments of AdamW, in fp32; the best, the last, and the one being written.
    needed = 4 * 4 * parameters * 3
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f'the disk of {folder} has {free / 1e9:.1f} GB free, and the checkpoints of this run need '
            f'{needed / 1e9:.1f} GB; choose another --out-dir or a smaller --model than {chosen.arch}'
        )


def _train(folder: Path, resume: bool = False) -> str:
    return f'xcit-mm train {folder / "config.py"} --out-dir {folder / "train"}' + ' --resume' * resume


def _run_training(config: Path, folder: Path, args: argparse.Namespace) -> None:
    """Train as ``xcit-mm train`` does: in this process, or in one for each GPU."""
    from ...errors import UsageError

    if args.gpus > 1:
        words = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(args.gpus)]
        words += ['-m', 'xcit_mm', 'train', str(config), '--out-dir', str(folder / 'train'), '--launcher', 'pytorch']
        code = subprocess.call([sys.executable, *words, *(['--resume'] if args.resume else [])])
        if code:
            raise UsageError(
                f'training ended with code {code}; see the messages above. {_train(folder, True)} continues it'
            )
        return
    from ...resilience.checkpointing import has_checkpoint
    from ..training import train

    cfg = _load(config, folder / 'train')
    if args.resume:
        cfg.resume = has_checkpoint(cfg.work_dir)
        if cfg.resume:
            cfg.load_from = None
    train(cfg)


def _load(config: Path, folder: Path):
    from ...engine.setup import load_config

    options = dict(config=str(config), work_dir=str(folder), cfg_options=None, data_root=None, launcher='none')
    return load_config(argparse.Namespace(**options, local_rank=0))


def report(data, folder: Path, seconds: Optional[float] = None) -> Path:
    """Test the best checkpoint of a run, and write the report.

    Args:
        data (Data): The data that it was trained on, with splits.
        folder (Path): Folder of the run.
        seconds (float, optional): Duration of the training.

    Returns:
        Path: The page.
    """
    import torch

    from ...checks.data import check_data
    from ...engine.setup import adapt_to_device, build_runner
    from .analysis import analyse
    from .records import Records
    from .report import headline, write_report

    best = _link_checkpoints(folder)
    trained_with = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    cfg = _load(folder / 'config.py', folder / 'test')
    cfg.load_from, cfg.resume = str(best), False
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not hook['type'].endswith(('CurveHook', 'StoppingHook'))]
    if cfg.default_scope == 'mmdet':
        cfg.test_evaluator.classwise = True
    check_data(cfg, ('test',))
    adapt_to_device(cfg)
    runner = build_runner(cfg)
    records = Records(data.task, len(data.classes))
    runner.test_evaluator.metrics.append(records)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    metrics = runner.test()
    split = 'test' if data.of('test') else 'val'
    analysis = analyse(data.task, records.records, data.classes, metrics)
    facts = _facts(runner, best, seconds, trained_with, len(records.records))
    page = write_report(folder, data, split, records.records, analysis, metrics, facts, _next(folder))
    shown = ', '.join(f'{key} {value:.4g}' for key, value in headline(metrics).items())
    print(f'\n{split}: {shown}\nreport    {page}\nnext')
    print('\n'.join(f'  {line}' for line in _next(folder)), flush=True)
    return page


def _link_checkpoints(folder: Path) -> Path:
    """Link the checkpoints as ``best.pth`` and ``last.pth``; return the best."""
    from ...errors import UsageError

    newest = sorted((folder / 'train').glob('best_*.pth'), key=os.path.getmtime)
    marker = folder / 'train' / 'last_checkpoint'
    last = Path(marker.read_text().strip()) if marker.is_file() else None
    found = {'best': newest[-1] if newest else last, 'last': last}
    if found['best'] is None:
        raise UsageError(f'there is no checkpoint in {folder / "train"}: training ended before the first was saved')
    for name, path in found.items():
        if path and path.is_file():
            link = folder / f'{name}.pth'
            link.unlink() if link.exists() or link.is_symlink() else None
            try:
                os.link(path, link)
            except OSError:  # file systems without links
                shutil.copyfile(path, link)
    return folder / 'best.pth'


def _facts(runner, best: Path, seconds: Optional[float], trained_with: int, images: int) -> List[str]:
    """Lines about model, speed and memory."""
    import torch

    from ...engine.screen import describe_model, device

    facts = [f'model     {describe_model(runner.model)}', f'device    {device()}', f'checkpoint {best}']
    if seconds is not None:
        facts.append(
            f'training  {seconds / 60:.1f} minutes'
            + (f', {trained_with / 2**30:.1f} GiB of GPU memory at most' if trained_with else '')
        )
    each = runner.message_hub.log_scalars.get('test/time')
    if each is not None:
        batch = runner.test_dataloader.batch_size or 1
        memory = f', {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory' if trained_with else ''
        facts.append(
            f'testing   {each.mean() / batch:.3f} s for each image, {batch} at a time, loading included{memory}'
        )
    facts.append(f'tested on {images} images')
    return facts


def _next(folder: Path) -> List[str]:
    """Commands for what comes after."""
    config, best = folder / 'config.py', folder / 'best.pth'
    return [
        f'xcit-mm test {config} {best} --show-dir {folder / "pictures"}',
        f'xcit-mm infer {config} {best} IMAGES --out-dir {folder / "results"}',
        f'xcit-mm export {config} {best} {folder / "model.onnx"}',
        f'xcit-mm serve {config} {best}',
        _train(folder, resume=True),
    ]
