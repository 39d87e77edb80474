"""From a config file and command-line options to a checked config, and from there to a runner.

Mistakes that can be found early are found here, before data is read, a model is trained or a file is written.
"""

import argparse
import copy
import datetime
import difflib
import importlib.util
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional

import mmengine
import torch
from mmengine.config import Config, DictAction
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner

from ..checkpoint import CheckpointError, is_address, load_checkpoint_file, match_state_dict
from ..checkpoint.fit import fit_state_dict
from ..checkpoint.stem import fit_stem
from ..checks.config import apply_options, check_config
from ..checks.detection import leave_out_masks
from ..checks.pyramid import check_pyramid
from ..checks.settings import agree_workers
from ..checks.variables import check_files
from ..compat import change_lr_scaling, is_resuming, missing_methods
from ..datasets.config import find_loaders, innermost_datasets
from ..errors import UsageError
from ..package import mim_dir, model_index, warn_of_mixed_packages
from ..resilience.bad_images import BadImagesHook, guard_loading
from ..resilience.data_order import DataPositionHook, IterationSeedHook
from ..resilience.interruption import InterruptionHook
from ..resilience.non_finite import NonFiniteHook
from ..resilience.resuming import ResumeHook
from .classification import FolderLabelsHook
from .detection import DetectionDataHook
from .hooks import CheckpointFitHook, RunLengthHook
from .running import FlexibleToolRunner, ToolRunner, by_update
from .screen import SummaryHook, shorten

# Hooks of every run of the tools, whether its config lists them or not.
HOOKS_OF_ALL = (
    DetectionDataHook,
    CheckpointFitHook,
    FolderLabelsHook,
    BadImagesHook,
    IterationSeedHook,
    DataPositionHook,
    ResumeHook,
    NonFiniteHook,
    InterruptionHook,
    RunLengthHook,
    SummaryHook,
)


class OptionsAction(DictAction):
    """MMEngine's, with a message for what it cannot read: a dict sends it into an endless recursion."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Add the options KEY=VALUE to those given before."""
        for text in values:
            try:
                super().__call__(parser, namespace, [text], option_string)
            except (RecursionError, AssertionError, ValueError):
                parser.error(
                    f'{option_string} {text}: expected KEY=VALUE, the value a number, a word or a list "[a,b]". For a '
                    f'dict, name its settings one by one (model.backbone.arch.depth=2), or write a config with '
                    f"_base_ = './that_config.py' and what differs"
                )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of training and testing, under the names OpenMMLab users know."""
    parser.add_argument('config', help='config file, or name of a published model')
    parser.add_argument(
        '--out-dir',
        '--work-dir',
        dest='work_dir',
        metavar='FOLDER',
        help='folder for logs, checkpoints and results (default: work_dirs/<config name>)',
    )
    parser.add_argument('--data-root', help='folder of the data set, if not where the config expects it')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        metavar='KEY=VALUE',
        help='override settings, for example model.backbone.with_cp=True; lists as key="[a,b]"',
    )
    parser.add_argument(
        '--bad-images',
        choices=['skip', 'refuse'],
        default='skip',
        help='what to do about images that cannot be read: skip them with a warning and count them (skip), or read '
        'all images first, and stop if there are any (refuse)',
    )
    parser.add_argument(
        '--verbose', action='store_true', help='show everything on the console that goes to the log file'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes it; torchrun sets the environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the shared options to it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    warn_of_mixed_packages()
    path = find_config(args.config)
    cfg = read_config(path)
    check_files(str(path))
    apply_options(cfg, args.cfg_options)
    if args.data_root:
        _move_data_root(cfg, args.data_root)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = os.path.join('work_dirs', path.stem)
    for note in check_config(cfg):
        if int(os.environ.get('RANK', 0)) == 0:
            print(f'Note: {note}', flush=True)
    leave_out_masks(cfg)
    return cfg


def find_config(name: str) -> Path:
    """The config file at a path, or this package's config of that name."""
    path = Path(name)
    if path.is_file() or len(path.parts) > 1:
        return path
    entry = model_index().get(name.lower())
    ours = mim_dir() / (entry['Config'] if entry else Path('configs', name).with_suffix('.py'))
    return ours if ours.is_file() else path


def find_weights(config: str, checkpoint: str) -> str:
    """The checkpoint; for 'published', the address of the published weights of the model ``config``."""
    if checkpoint != 'published' or os.path.isfile(checkpoint):
        return checkpoint
    entry = model_index().get(config.lower())
    if entry is None:
        raise UsageError(f"'published' are the weights of a published model, and {config!r} is not the name of one")
    return entry['Weights']


def read_config(path: Path) -> Config:
    """Read a config file."""
    if not path.is_file():
        raise UsageError(_no_config(path))
    try:
        return Config.fromfile(path)
    except Exception as error:
        raise UsageError(f'the config {path} cannot be read: {type(error).__name__}: {error}') from error


def _no_config(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path('configs')
    names = {p.name: p for p in sorted(folder.glob('*.py'))}
    close = difflib.get_close_matches(path.with_suffix('.py').name, names, n=3, cutoff=0.4)
    close = [str(names[name]) for name in close] or difflib.get_close_matches(path.name.lower(), model_index(), n=3)
    hint = f'did you mean {" or ".join(close)}?' if close else f'see the files in {folder}/, or xcit_mm.list_models()'
    return f'there is no config file {path}; {hint}'


def _move_data_root(cfg: Config, root: str) -> None:
    root = os.path.join(root, '')
    for split, loader in find_loaders(cfg).items():
        old = ''
        for dataset in innermost_datasets(loader['dataset']):
            old, dataset['data_root'] = dataset.get('data_root') or '', root
        evaluators = cfg.get(f'{split}_evaluator') or ()
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            if old and str(evaluator.get('ann_file', '')).startswith(old):
                evaluator['ann_file'] = root + evaluator['ann_file'][len(old) :]


def use_average(cfg: Config) -> None:
    """Validate, test and save the average of the weights (EMA) instead of the weights.

    Raises:
        UsageError: If the config keeps none.
    """
    hooks = [hook for hook in cfg.get('custom_hooks') or () if hook['type'] == 'xcit_mm.EMAHook']
    if not hooks:
        raise UsageError(
            '--average: the config keeps no average of the weights; '
            "add dict(type='xcit_mm.EMAHook', momentum=..., update_buffers=True) to custom_hooks"
        )
    for hook in hooks:
        hook['evaluate'] = True


def check_model(cfg: Config, checkpoint: Optional[str] = None, purpose: str = 'train') -> None:
    """Build the model on the meta device, and compare it with the local checkpoints that it will load.

    Args:
        cfg (Config): The config; models without an XCiT backbone are left to the runner.
        checkpoint (str, optional): File that the whole model will be loaded from.
        purpose (str): 'train', 'resume' or 'test'; see :func:`~xcit_mm.checkpoint.fit.fit_state_dict`.

    Raises:
        UsageError: If the backbone's arguments are wrong, or a file does not exist.
        CheckpointError: If a file cannot be read or belongs to another model.
    """
    if checkpoint and not is_address(checkpoint) and not os.path.isfile(checkpoint):
        raise UsageError(f'there is no checkpoint file {checkpoint}')
    check_pyramid(cfg, training=purpose != 'test')
    backbone_cfg = cfg.model.get('backbone') or {}
    if backbone_cfg.get('type') != 'xcit_mm.XCiT':
        return
    scope = cfg.get('default_scope', 'mmengine')
    try:
        with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
            backbone = MODELS.build(dict(backbone_cfg, init_cfg=None))
    except (ValueError, TypeError) as error:
        raise UsageError(f'model.backbone: {error}') from error
    # A checkpoint of the whole model replaces the backbone's init_cfg.
    starts = backbone_cfg.get('init_cfg') or []
    starts = [] if checkpoint else [starts] if isinstance(starts, dict) else starts
    for path, prefix in [(checkpoint, 'backbone.'), *((start.get('checkpoint'), '') for start in starts)]:
        if not path or is_address(path):
            continue
        if not os.path.isfile(path):
            raise UsageError(f'there is no checkpoint file {path} (model.backbone.init_cfg)')
        state = load_checkpoint_file(path)
        state = state.get('state_dict', state)
        model = None
        if path == checkpoint:
            try:
                with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
                    model = MODELS.build(copy.deepcopy(cfg.model))
            except Exception:  # a head that cannot be built on the meta device is compared later, by CheckpointFitHook
                pass
        try:
            if model is None:
                tensors, metadata = dict(state), state._metadata.get(prefix[:-1])
                fit_stem(backbone, tensors, prefix, metadata, starts=not prefix)
                match_state_dict(backbone, tensors, prefix, metadata)
            else:
                fit_state_dict(model, state, purpose)  # which asks the backbone too
        except CheckpointError as error:
            raise error.naming(path) from None


def check_work_dir(cfg: Config) -> None:
    """Create the work folder, and check that it is writable."""
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.work_dir):
            pass
    except OSError as error:
        raise UsageError(
            f'the work folder {cfg.work_dir} cannot be written to ({error.strerror}); choose another with '
            f'--out-dir (--work-dir)'
        ) from error


def adapt_to_device(cfg: Config) -> None:
    """On machines without an accelerator, use fp32 instead of mixed precision and gloo instead of NCCL."""
    if is_cuda_available() or is_npu_available() or is_mlu_available() or is_musa_available():
        return
    wrapper = cfg.get('optim_wrapper')
    if wrapper and wrapper.get('type') == 'AmpOptimWrapper':
        print('No accelerator was found: training on the CPU in fp32 instead of mixed precision.', flush=True)
        wrapper['type'] = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
    if cfg.launcher == 'none':
        return
    if cfg.launcher != 'pytorch':
        raise UsageError(f'--launcher {cfg.launcher} needs an accelerator; use torchrun and --launcher pytorch')
    # MMEngine would choose a CUDA device for each process. An existing process group is kept.
    if not torch.distributed.is_initialized():
        seconds = (cfg.get('env_cfg') or {}).get('dist_cfg', {}).get('timeout')
        options: Dict[str, Any] = (
            dict(timeout=datetime.timedelta(seconds=seconds)) if isinstance(seconds, (int, float)) else {}
        )
        torch.distributed.init_process_group('gloo', **options)
    wrapper = dict(
        type='MMDistributedDataParallel',
        device_ids=None,  # else the runner gives a CUDA device's
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {})}


def _prepare_deepspeed(cfg: Config) -> List[str]:
    """Check that DeepSpeed is installed, and move settings to where it reads them; returns what was moved."""
    wrapper, strategy = cfg.get('optim_wrapper') or {}, cfg.get('strategy') or {}
    if strategy.get('type') != 'DeepSpeedStrategy':
        return []
    if wrapper.get('type') != 'DeepSpeedOptimWrapper':
        raise UsageError(
            f"DeepSpeed wants optim_wrapper.type='DeepSpeedOptimWrapper', and the config has {wrapper.get('type')!r}"
        )
    if importlib.util.find_spec('deepspeed') is None:
        raise UsageError(
            "the config asks for DeepSpeed (strategy.type), which is not installed. pip install 'deepspeed<0.17'; or "
            'take configs/_base_/strategies/fsdp.py, which shards weights too and needs nothing else'
        )
    if importlib.util.find_spec('deepspeed.runtime.fp16.onebit') is None:
        raise UsageError("MMEngine does not know this version of DeepSpeed. pip install 'deepspeed<0.17'")
    clip, counts = wrapper.pop('clip_grad', None), wrapper.pop('accumulative_counts', None)
    moved = []
    if clip:
        strategy.setdefault('gradient_clipping', clip['max_norm'])
        moved.append('strategy.gradient_clipping in place of optim_wrapper.clip_grad')
    strategy.setdefault('gradient_accumulation_steps', counts or 1)
    if counts:
        moved.append('strategy.gradient_accumulation_steps in place of optim_wrapper.accumulative_counts')
    return moved


def build_runner(cfg: Config) -> Runner:
    """Build the runner (``runner_type``, by default MMEngine's) with all checks, whatever hooks the config lists.

    Log what is added to the config or changed in it, in one line each.
    """
    if missing_methods():
        raise UsageError(
            f'MMEngine {mmengine.__version__} has changed what this project builds on: it has no '
            f'{", ".join(missing_methods())}. Install a version that the requirements name'
        )
    changes = agree_workers(cfg)
    if cfg.get('default_scope') == 'mmpretrain':
        loaders = {split: one for split, one in find_loaders(cfg).items() if 'collate_fn' not in one}
        for loader in loaders.values():
            loader['collate_fn'] = dict(type='default_collate')
        changes += [f'{split}_dataloader: collate_fn=default_collate, as MMPretrain wants it' for split in loaders]
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    if checkpoint and checkpoint['type'] == 'CheckpointHook':
        checkpoint['type'] = 'xcit_mm.CheckpointHook'
        changes.append('default_hooks.checkpoint: xcit_mm.CheckpointHook in place of CheckpointHook')
    changes += _prepare_deepspeed(cfg)
    if cfg.get('env_cfg') is None:  # Runner's default, which FlexibleRunner forgets
        cfg.env_cfg = dict(dist_cfg=dict(backend='nccl'))
    if cfg.get('runner_type') == 'FlexibleRunner':
        runner = FlexibleToolRunner.from_cfg(cfg)
    else:
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else ToolRunner.from_cfg(cfg)
    added = [kind for kind in HOOKS_OF_ALL if not any(isinstance(hook, kind) for hook in runner.hooks)]
    for kind in added:
        runner.register_hook(kind())
    if added:
        changes.append(f'hooks added: {", ".join(kind.__name__ for kind in added)}')
    if not isinstance(runner, Runner):
        shorten(runner.logger)
        change_lr_scaling(runner.strategy, partial(by_update, runner))
        if is_resuming(runner):
            # FlexibleRunner resumes before it calls any hook.
            next(hook for hook in runner.hooks if isinstance(hook, ResumeHook)).choose(runner)
    for change in [*changes, *guard_loading(runner, BadImagesHook.path(runner))]:
        runner.logger.info(f'config: {change}')
    return runner
