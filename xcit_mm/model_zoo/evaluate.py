"""Test the published models on the user's data, each in a process of its own; resumable."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..checks.data import check_data
from ..engine.classification import PUBLISHED_PROTOCOLS, find_imagenet_v2
from ..engine.setup import add_common_arguments, load_config
from ..errors import UsageError
from ..published import TOP1, TOP1_MMPRETRAIN, TOP1_V2, TOP5_MMPRETRAIN, Model

# Where each task's data lies in the folder `data` that the configs name.
SUBFOLDERS = {
    'classification': Path('imagenet'),
    'detection': Path('coco'),
    'segmentation': Path('ade/ADEChallengeData2016'),
}
# Published accuracy -> its name in MMEngine's results and the factor to per cent.
COCO = {
    f'{what} AP{level}': (f'coco/{key}_mAP{"_" if level else ""}{level}', 100)
    for what, key in (('box', 'bbox'), ('mask', 'segm'))
    for level in ('', 50, 75)
}
METRICS = {
    'full-crop': {TOP1: ('accuracy/top1', 1)},
    'mmpretrain': {TOP1_MMPRETRAIN: ('accuracy/top1', 1), TOP5_MMPRETRAIN: ('accuracy/top5', 1)},
    'detection': COCO,
    'segmentation': {'mIoU': ('mIoU', 1)},
}


class Run(NamedTuple):
    """One test of one model.

    Attributes:
        model (Model): What is tested.
        protocol (str, optional): 'full-crop' or 'mmpretrain', for classifiers.
        arguments (list[str]): Those of ``tools/test.py``, without the work folder.
        metrics (dict): As in ``METRICS``.
        missing (str, optional): Why it cannot be run.
        identity (str): Digest of all that decides the result: config, options, data folder, protocol and weights.
    """

    model: Model
    protocol: Optional[str]
    arguments: List[str]
    metrics: dict
    missing: Optional[str]
    identity: str

    @property
    def name(self) -> str:
        return '_'.join([self.model.name, *([self.protocol] if self.protocol else [])])


def plan(
    models: Sequence[Model],
    root: Path,
    data: Path,
    weights_dir: Optional[Path] = None,
    protocols: Sequence[str] = PUBLISHED_PROTOCOLS,
    cfg_options: Sequence[str] = (),
) -> List[Run]:
    """Plan the tests, and check all that can be checked without running one.

    Args:
        models (Sequence[Model]): Models to test.
        root (Path): The repository.
        data (Path): The test data of the models' task, or a folder with ``imagenet``, ``coco`` and
            ``ade/ADEChallengeData2016``.
        weights_dir (Path, optional): Folder with the files of the original release, instead of their addresses.
        protocols (Sequence[str]): For classifiers, 'full-crop' and 'mmpretrain'.
        cfg_options (Sequence[str]): Settings ``KEY=VALUE`` for all configs.

    Raises:
        UsageError: If the data or the folder of the weights does not exist.
    """
    if not data.is_dir():
        raise UsageError(f'there is no folder {data}; --evaluate takes the folder that holds the test data')
    if weights_dir and not weights_dir.is_dir():
        raise UsageError(f'there is no folder {weights_dir}; --weights-dir takes the folder that holds the .pth files')
    # The same results whatever folder the command is given in.
    data, weights_dir = data.absolute(), weights_dir and weights_dir.absolute()
    runs, checked = [], set()
    for model in models:
        inside = data / SUBFOLDERS[model.task]
        weights = str(weights_dir / model.weights.rsplit('/', 1)[1]) if weights_dir else model.weights
        arguments = [str(root / model.config), weights, '--data-root', str(inside if inside.is_dir() else data)]
        if cfg_options:
            arguments += ['--cfg-options', *cfg_options]
        cfg = load_config(_parse(arguments))
        imagenet_v2 = find_imagenet_v2(cfg)
        if model.task not in checked:
            try:
                check_data(cfg, ('test',))
            except UsageError as error:
                raise UsageError(
                    f'--evaluate {data} has no test data for {model.task}, in it or in its {SUBFOLDERS[model.task]}/; '
                    f'--task leaves a task out. In the words of tools/test.py: {error}'
                ) from None
            checked.add(model.task)
        missing = None
        if weights_dir and not os.path.isfile(weights):
            missing = f'there is no file {weights}'
        kinds = protocols if model.task == 'classification' else (None,)
        # No other accuracy on ImageNet-V2 is published than that of the full crop.
        for kind in ('full-crop',) if imagenet_v2 else kinds:
            metrics = {TOP1_V2: ('accuracy/top1', 1)} if imagenet_v2 else METRICS[kind or model.task]
            identity = json.dumps([cfg.to_dict(), kind, _version(weights)], sort_keys=True, default=str)
            runs.append(
                Run(
                    model=model,
                    protocol=kind,
                    arguments=[*arguments, '--protocol', kind] if kind else arguments,
                    metrics=metrics,
                    missing=missing,
                    identity=hashlib.sha256(identity.encode()).hexdigest()[:16],
                )
            )
    return runs


def _parse(arguments: List[str]) -> argparse.Namespace:
    """Read arguments as ``tools/test.py`` does."""
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    parser.add_argument('checkpoint')
    return parser.parse_args(arguments)


def _version(weights: str) -> list:
    """What identifies weights: size and time too for a local file; an address stands for its content."""
    if '://' in weights or not os.path.isfile(weights):
        return [weights]
    stat = os.stat(weights)
    return [weights, stat.st_size, stat.st_mtime_ns]


class Results:
    """Results in a file with one JSON object for each finished test; a later line replaces an earlier one.

    Args:
        work_dir (Path): Folder of ``results.jsonl``.
    """

    def __init__(self, work_dir: Path):
        self.path = work_dir / 'results.jsonl'
        self._records: Dict[str, dict] = {}
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text(encoding='utf-8').splitlines() if self.path.exists() else []
            # A line cut off by a crash must not swallow the next one.
            if lines and not self.path.read_text(encoding='utf-8').endswith('\n'):
                self._append('\n')
        except OSError as error:
            raise UsageError(f'{self.path} cannot be used ({error.strerror}); choose another --out-dir') from error
        for line in lines:
            try:
                record = json.loads(line)
                self._records[record['identity']] = record
            except (ValueError, KeyError, TypeError):
                continue

    def _append(self, text: str) -> None:
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def get(self, run: Run) -> Optional[dict]:
        """The record of a run, or None if it never finished."""
        return self._records.get(run.identity)

    def add(self, run: Run, metrics: Optional[dict], reason: Optional[str], seconds: float) -> dict:
        """Save the outcome of a run: its metrics, or the reason why there are none."""
        record = {
            'identity': run.identity,
            'name': run.model.name,
            'protocol': run.protocol,
            'arguments': run.arguments,
            'metrics': metrics,
            'error': reason,
            'seconds': round(seconds, 1),
            'finished': time.strftime('%Y-%m-%d %H:%M:%S'),
        }
        self._append(json.dumps(record) + '\n')
        self._records[run.identity] = record
        return record


def evaluate(
    runs: Sequence[Run], root: Path, work_dir: Path, retry_failed: bool = False, log=print
) -> Tuple[Dict[str, Dict[str, float]], Dict[str, str]]:
    """Run what has no result yet.

    Args:
        runs (Sequence[Run]): From :func:`plan`.
        root (Path): The repository.
        work_dir (Path): For the results, and a folder with the log of each test.
        retry_failed (bool): Run those again that failed.
        log (callable): Takes a line of progress.

    Returns:
        tuple: Measured accuracies by name of model, then by name of metric; and why tests failed, by their names.
    """
    results = Results(work_dir)
    measured: Dict[str, dict] = {}
    failed: Dict[str, str] = {}
    for number, run in enumerate(runs, start=1):
        record, origin = results.get(run), 'from an earlier call'
        if record is None or (retry_failed and record['error']):
            log(f'[{number}/{len(runs)}] {run.name} ...')
            start = time.time()
            metrics, reason = (None, run.missing) if run.missing else _test(run, root, work_dir / run.name)
            record = results.add(run, metrics, reason, time.time() - start)
            origin = f'{record["seconds"]:.0f} s'
        if record['error']:
            failed[run.name] = record['error']
            outcome = f'failed: {record["error"]}'
        else:
            values = {name: round(record['metrics'][key] * scale, 4) for name, (key, scale) in run.metrics.items()}
            measured.setdefault(run.model.name, {}).update(values)
            outcome = ', '.join(_compare(run.model, *item) for item in values.items())
        log(f'[{number}/{len(runs)}] {run.name}: {outcome} ({origin})')
    return measured, failed


def _compare(model: Model, name: str, value: float) -> str:
    published = model.metrics.get(name)
    return f'{name} {value:.2f}' + ('' if published is None else f' (published {published})')


def _test(run: Run, root: Path, folder: Path):
    """Run ``tools/test.py``; its metrics, or why there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob('*/*.json'))
    command = [sys.executable, str(root / 'tools' / 'test.py'), *run.arguments, '--work-dir', str(folder)]
    log_file = folder / 'test.log'
    with open(log_file, 'w', encoding='utf-8') as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if code:
        return None, f'{_reason(log_file, code)} (log: {log_file})'
    # MMEngine names both the folder and the file of a test by its time.
    written = [path for path in set(folder.glob('*/*.json')) - before if path.stem == path.parent.name]
    if not written:
        return None, f'tools/test.py left no metrics in {folder} (log: {log_file})'
    metrics = json.loads(max(written).read_text(encoding='utf-8'))
    absent = [key for key, _ in run.metrics.values() if key not in metrics]
    if absent:
        return None, f'the results have no {", ".join(absent)}, as when a detector finds nothing (log: {log_file})'
    return metrics, None


def _reason(log_file: Path, code: int) -> str:
    """The message of ``tools/test.py``, or the last line of a traceback."""
    if code < 0:
        return f'ended by signal {-code}' + (', as when memory runs out' if code == -9 else '')
    text = log_file.read_text(encoding='utf-8', errors='replace')
    if '\nerror: ' in text:
        return ' '.join(text.rsplit('\nerror: ', 1)[1].split())[:600]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:600] if lines else f'exit code {code}'
