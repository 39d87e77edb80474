"""Images that cannot be read: skipped during the run, or refused before it starts."""

import copy
import os
from collections import Counter
from importlib import import_module
from multiprocessing.pool import ThreadPool
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import mmcv
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, METRICS, TRANSFORMS, DefaultScope
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..checks.classification import BY_NAME
from ..compat import part_of, set_part
from ..datasets.config import find_loaders, find_type, innermost_datasets, transforms_of
from ..datasets.loading import BLANK, IGNORED, PIXELS_IGNORED, BadImage, BadImageReport, LoadImageFromFile, read_image
from ..errors import UsageError
from ..registry import HOOKS

# Transforms of the libraries, and their replacements.
GUARDED = {
    'mmcv.LoadImageFromFile': 'xcit_mm.LoadImageFromFile',
    'mmseg.LoadAnnotations': 'xcit_mm.LoadSegMap',
}
LISTED_IMAGES = 20
# Environment variables and defaults of rank, world size and processes per machine, by launcher.
PLACES = {
    'none': (('', 0), ('', 1), ('', 1)),
    'pytorch': (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_WORLD_SIZE', 1)),
    'slurm': (('SLURM_PROCID', 0), ('SLURM_NTASKS', 1), ('SLURM_NTASKS_PER_NODE', 1)),
    'mpi': (('OMPI_COMM_WORLD_RANK', 0), ('OMPI_COMM_WORLD_SIZE', 1), ('OMPI_COMM_WORLD_LOCAL_SIZE', 1)),
}


def guard_loading(runner, report: Optional[str] = None) -> List[str]:
    """Make every pipeline of a runner skip unreadable images, and check COCO's annotations.

    The config keeps the libraries' own types, which their inferencers look up by name; only what the runner is about to
    build is replaced.

    Args:
        runner (Runner): Before its data sets are built.
        report (str, optional): A file that lists what could not be read, as :class:`BadImagesHook` wants it.

    Returns:
        list[str]: What was replaced by what, and in which splits.
    """
    replaced: Dict[str, List[str]] = {}

    def note(old, new, split: str) -> None:
        text = f'{_type_name(new)} in place of {_type_name(old)}'
        if new != old and split not in replaced.setdefault(text, []):
            replaced[text].append(split)

    scope = runner.cfg.get('default_scope') or 'mmengine'
    for split in ('train', 'val', 'test'):
        loader = copy.deepcopy(part_of(runner, split, 'dataloader'))
        if not isinstance(loader, dict) or not isinstance(loader['dataset'], dict):
            continue
        for dataset in innermost_datasets(loader['dataset']):
            kind = dataset['type']
            use_checked_dataset(dataset, scope)
            note(kind, dataset['type'], split)
            for transform in transforms_of(dataset.get('pipeline') or ()):
                kind = _full_name(transform, scope)
                if kind in GUARDED and 'file_client_args' not in transform:
                    transform.pop('ignore_empty', None)
                    transform['type'] = GUARDED[kind]
                    note(kind, GUARDED[kind], split)
                    kind = GUARDED[kind]
                if kind == GUARDED['mmseg.LoadAnnotations']:
                    classes = _classes(dataset, scope)
                    if len(classes) > 1:
                        transform.setdefault('num_classes', len(classes))
                    transform.setdefault('ignore_index', dataset.get('ignore_index', IGNORED))
                if kind in GUARDED.values():
                    # Testing draws no other image instead: that would change what is measured.
                    transform.setdefault('bad_image', 'resample' if split == 'train' else 'blank')
                    transform.setdefault('report', report)
        set_part(runner, split, 'dataloader', loader)
        evaluator = copy.deepcopy(part_of(runner, split, 'evaluator'))
        if isinstance(evaluator, (dict, list, tuple)):
            for old, new in _use_checked_metrics(evaluator, scope):
                note(old, new, split)
            set_part(runner, split, 'evaluator', evaluator)
    return [f'{text} ({", ".join(splits)})' for text, splits in replaced.items() if splits]


def _type_name(kind) -> str:
    return kind if isinstance(kind, str) else f'{kind.__module__.split(".")[0]}.{kind.__name__}'


def use_checked_dataset(dataset: dict, scope: str) -> None:
    """Replace a library's data set class by this project's, whose labels follow the classes of the config.

    Args:
        dataset (dict): Config of a data set without wrappers; its type is replaced in place.
        scope (str): Where types without a scope are looked up.
    """
    kind = find_type(DATASETS, dataset['type'], scope)
    if kind is None:
        return
    if kind.__module__.startswith('mmpretrain.') and kind.__name__ in BY_NAME:
        dataset['type'] = getattr(import_module('xcit_mm.datasets.folders'), kind.__name__)
    elif _is_of(kind, 'mmdet'):
        dataset['type'] = import_module('xcit_mm.datasets.coco').checked(kind)


def _use_checked_metrics(evaluator, scope: str) -> Iterator[tuple]:
    """Replace metrics: COCO's by one that scores what the data set gives, IoU by one that names its classes.

    Yields:
        tuple: The type of a metric, and its replacement (the same where it stays).
    """
    if isinstance(evaluator, (list, tuple)):
        for one in evaluator:
            yield from _use_checked_metrics(one, scope)
    elif isinstance(evaluator, dict):
        yield from _use_checked_metrics(evaluator.get('metrics'), scope)
        old = evaluator.get('type')
        kind = find_type(METRICS, evaluator['type'], scope) if 'type' in evaluator else None
        if kind is not None and _is_of(kind, 'mmdet'):
            evaluator['type'] = import_module('xcit_mm.evaluation.coco').checked(kind)
        elif kind is not None and kind.__module__.startswith('mmseg.') and kind.__name__ == 'IoUMetric':
            evaluator['type'] = import_module('xcit_mm.evaluation.segmentation').IoUMetric
        if old is not None:
            yield old, evaluator['type']


def _is_of(kind: type, library: str) -> bool:
    return any(base.__module__.split('.')[0] == library for base in getattr(kind, '__mro__', ()))


def guard_built(dataset, report: str) -> None:
    """As :func:`guard_loading`, for a training data set that a library's own tool has built.

    Args:
        dataset: Of any library, also a wrapper of others.
        report (str): As for :func:`guard_loading`.
    """
    parts = vars(dataset)  # tools that only look at a schedule have a mock in its place, with any attribute
    for inner in [parts.get('dataset'), *parts.get('datasets', ())]:
        if inner is not None:
            guard_built(inner, report)
    transforms = getattr(parts.get('pipeline'), 'transforms', [])
    for i, old in enumerate(transforms):
        if type(old) is mmcv.transforms.LoadImageFromFile and old.file_client_args is None:
            names = ('to_float32', 'color_type', 'imdecode_backend', 'backend_args')
            transforms[i] = LoadImageFromFile('resample', report, **{name: getattr(old, name) for name in names})


def _classes(dataset: dict, scope: str) -> Sequence:
    """The classes in a data set's config, else those of its type; () if neither lists them."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        classes = getattr(find_type(DATASETS, dataset['type'], scope), 'METAINFO', {}).get('classes')
    return classes if isinstance(classes, (list, tuple)) else ()


def _full_name(transform: dict, scope: str) -> Optional[str]:
    """Library and name of the class behind a transform of a config."""
    kind = find_type(TRANSFORMS, transform['type'], scope)
    return None if kind is None else f'{kind.__module__.split(".")[0]}.{kind.__name__}'


def check_images(cfg: Config, splits: Sequence[str]) -> None:
    """Read and decode every image and label map of the splits; each process of a distributed run reads its share.

    Raises:
        UsageError: If some cannot be read. The message names up to 20; a file in the work folder lists all.
    """
    rank, world, neighbours = (int(os.environ.get(name, default)) for name, default in PLACES[cfg.launcher])
    files = _files(cfg, splits)[rank::world]
    columns = [TextColumn('checking images'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    # Reading and decoding release the GIL, so threads use all cores.
    threads = max(1, (os.cpu_count() or 1) // neighbours)
    bad = []
    with ThreadPool(threads) as pool, Progress(*columns, disable=rank > 0) as progress:
        task = progress.add_task('', total=len(files))
        for path, reason in pool.imap_unordered(_try_to_read, files, chunksize=16):
            progress.advance(task)
            if reason:
                bad.append(f'{path}: {reason}')
    if not bad:
        return
    bad.sort()
    listed = '\n  '.join(['', *bad[:LISTED_IMAGES]])
    if len(bad) > LISTED_IMAGES:
        path = os.path.join(cfg.work_dir, 'bad_images.txt' if world == 1 else f'bad_images_{rank}.txt')
        with open(path, 'w', errors='surrogateescape') as file:
            file.writelines(f'{line}\n' for line in bad)
        listed += f'\n  and {len(bad) - LISTED_IMAGES} more, all of them in {path}'
    share = f' among the share of process {rank} (the others may have found more)' if world > 1 else ''
    raise UsageError(
        f'{len(bad)} of {len(files)} images{share} cannot be read, and nothing was started:{listed}\n'
        f'Repair them, remove them from the data set, or skip them: --bad-images skip'
    )


def _files(cfg: Config, splits: Sequence[str]) -> List[Tuple[str, str, str, Optional[dict]]]:
    """The images and label maps of the splits, each once, as arguments of :func:`read_image`."""
    found = {}
    scope = cfg.get('default_scope') or 'mmengine'
    for split, loader in find_loaders(cfg).items():
        if split not in splits:
            continue
        for dataset in innermost_datasets(loader['dataset']):
            pipeline = list(transforms_of(dataset.get('pipeline') or ()))
            load = next((t for t in pipeline if str(_full_name(t, scope)).endswith('.LoadImageFromFile')), {})
            decode = load.get('color_type', 'color'), load.get('imdecode_backend', 'cv2'), load.get('backend_args')
            dataset = dict(dataset, pipeline=[])
            use_checked_dataset(dataset, scope)
            with DefaultScope.overwrite_default_scope(scope):
                built = DATASETS.build(dataset)
            for i in range(len(built)):
                info = built.get_data_info(i)
                if info.get('img_path'):
                    found[info['img_path']] = (info['img_path'], *decode)
                if info.get('seg_map_path') and 'reduce_zero_label' in info:  # MMSegmentation's
                    found[info['seg_map_path']] = (info['seg_map_path'], 'unchanged', 'pillow', decode[-1])
    return list(found.values())


def _try_to_read(arguments: tuple) -> Tuple[str, Optional[str]]:
    try:
        read_image(*arguments)
    except BadImage as error:
        return arguments[0], str(error)
    return arguments[0], None


@HOOKS.register_module()
class BadImagesHook(Hook):
    """Warn of each image that could not be read, once, and count them after every epoch.

    Of label maps with labels outside the classes, often all of them, one is named for each set of such labels.

    :class:`xcit_mm.datasets.loading.LoadImageFromFile` finds them, mostly in the workers, and lists them in
    ``bad_images.txt`` beside the log.
    """

    priority = 'VERY_LOW'

    def __init__(self):
        self.report: Any = None  # until the run begins
        self.counted = 0
        self.told: Set[str] = set()

    @staticmethod
    def path(runner) -> str:
        """Path of the list. Data sets need it when they are built, possibly before any hook is called."""
        return os.path.abspath(os.path.join(runner.log_dir, 'bad_images.txt'))

    def before_run(self, runner) -> None:
        if self.report is None:  # a runner can train and then test
            self.report = BadImageReport(self.path(runner))

    def before_train(self, runner) -> None:
        guard_built(runner.train_dataloader.dataset, self.path(runner))

    def _after_iter(self, runner, batch_idx: int, data_batch=None, outputs=None, mode: str = 'train') -> None:
        if not is_main_process():
            return
        for file in self.report.update():
            if file.consequence == PIXELS_IGNORED:
                if file.reason in self.told:
                    continue
                self.told.add(file.reason)
            runner.logger.warning(f'bad image {file.path}: {file.reason}; {file.consequence}')
        loader = getattr(runner, f'{mode}_dataloader') if mode != 'train' else None
        if loader and batch_idx + 1 == len(loader):
            blank = [file for file in self.report.files.values() if file.consequence == BLANK]
            if len(blank) >= len(loader.dataset):
                raise UsageError(
                    f'none of the {len(loader.dataset)} images for {mode} could be read, so that there is nothing to '
                    f'score; the first is {blank[0].path}: {blank[0].reason}'
                )

    def _after_epoch(self, runner, mode: str = 'train') -> None:
        self._after_iter(runner, 0)
        files = self.report.files.values()
        if not is_main_process() or len(files) == self.counted:
            return
        self.counted = len(files)
        counts = Counter(file.consequence for file in files)
        summary = ', '.join(f'{consequence}: {number}' for consequence, number in counts.items())
        runner.logger.warning(f'bad images so far: {len(files)} ({summary}). They are listed in {self.report.path}')
