"""Run the checks in order of importance, as many as fit the budget."""

import subprocess
import time
import traceback
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch

from ...errors import UsageError
from .. import machine
from ..settings import Setting
from . import correctness, detector, kernels, profiling
from . import speed as speeds
from .plan import Check, Plan
from .report import write


def checks(plan: Plan) -> List[Check]:
    """All checks, the most important first."""
    b, small, large = plan.batch, plan.small, plan.large
    half = plan.dtypes[0]
    s16 = dict(patch_size=16)

    def speed(name, seconds, size, batch, modes=(), dtype=half, **changes):
        setting = Setting(plan.arch, 8, size[0], size[1], batch, dtype, device=plan.device)
        return Check('Speed', name, seconds, lambda: speeds.speed(plan, name, replace(setting, **changes), modes))

    def correct(name, function, *arguments, seconds=8):
        return Check('Correctness', name, seconds, lambda: function(plan, *arguments))

    training = dict(mode='training', autocast=True)
    of_image = dict(features='cls')
    eager_first = [
        *(correct(f'outputs and gradients, {dtype}', correctness.outputs, dtype) for dtype in ('fp32', *plan.dtypes)),
        correct('training step under autocast with GradScaler', correctness.training_step),
        correct('SyncBN alone', correctness.sync_bn, seconds=2),
        correct('pyramid into RoIAlign', correctness.roi_align, seconds=5),
        speed('inference, one large image', 15, large, 1, ['eager']),
        speed('training step, large images', 25, large, 2, ['eager'], **training),
        speed('inference, small images', 25, small, b, ['eager'], **of_image),
        Check('Profile', 'training step, large images', 15, lambda: profiling.profile(plan, large, 2, 'training')),
        Check('Profile', 'inference, one large image', 10, lambda: profiling.profile(plan, large, 1, 'inference')),
        Check('Kernels', 'beside plain PyTorch', 60, lambda: kernels.differences(plan)),
        speed('training step, small images', 30, small, b, ['eager'], **of_image, **training),
        Check('Detector', 'training iteration, Mask R-CNN', 30, lambda: detector.iterations(plan)),
    ]
    compiled = [
        Check('Kernels', 'times', 90, lambda: kernels.times(plan)),
        correct('CUDA graph', correctness.cuda_graph, seconds=10),
        correct('torch.compile', correctness.compiled, seconds=40),
        speed('inference, one large image', 90, large, 1, plan.modes[:2]),
        Check('Detector', 'training on the digits', 150, lambda: detector.digits(plan)),
        speed('training step, large images', 100, large, 2, plan.modes[:1], **training),
        speed('inference, small images', 60, small, b, plan.modes[:1], **of_image),
        speed('inference, large images', 20, large, 8, ['eager']),
        speed('inference, small images, patches of 16', 20, small, b, ['eager'], **of_image, **s16),
        Check('Curve', 'growing images', 90, lambda: speeds.curve(plan)),
        speed('training step, small images', 100, small, b, plan.modes[:1], **of_image, **training),
        speed('inference, large images', 60, large, 8, plan.modes[:1]),
        *(speed('inference, one large image', 15, large, 1, ['eager'], dtype) for dtype in plan.dtypes[1:]),
        speed('inference, small images, patches of 16', 60, small, b, plan.modes[:1], **of_image, **s16),
        speed('inference, one large image', 200, large, 1, plan.modes[2:]),
        speed('inference, small images', 200, small, b, plan.modes[2:], **of_image),
    ]
    found = [*eager_first, *compiled]
    if plan.device == 'cpu':  # no figure of this run means anything
        found = [check for check in found if check.section not in ('Kernels', 'Curve') and check.name != 'CUDA graph']
        found = [check for check in found if check.seconds < 90]
    return found


def run(plan: Plan, budget: float, folder: Path, tell: Callable[[str], None] = print) -> dict:
    """Run the checks that fit the budget.

    Args:
        plan (Plan): What is done.
        budget (float): Seconds.
        folder (Path): Where ``gpu_check.json`` and ``gpu_check.md`` are written, anew after each check.
        tell (Callable): Takes a line of progress.

    Returns:
        dict: All results; 'failed' counts the wrong and the failed ones, 'left_out' names the checks beyond the budget.

    Raises:
        UsageError: If the folder cannot be written to, or there is no such device.
    """
    if plan.device == 'cuda' and not torch.cuda.is_available():
        raise UsageError(
            'PyTorch finds no CUDA device here; --device cpu tries the check itself, in sizes without meaning'
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f'{folder} cannot be written to ({error.strerror}); choose another --out-dir') from error
    start = time.monotonic()
    with no_tf32():
        found: Dict[str, Any] = dict(machine=describe(plan.device), plan=asdict(plan), budget=budget)
        found.update(records=[], left_out=[], failed=0)
        for check in checks(plan):
            left = budget - (time.monotonic() - start)
            title = f'{check.section}: {check.name}'
            if check.seconds > left and plan.device == 'cuda' or left <= 0:
                found['left_out'].append(f'{title} (about {check.seconds:.0f} s)')
                continue
            begin = time.monotonic()
            records, failure = [], None
            try:
                for record in check.run():
                    records.append(record)
            except Exception as exception:
                failure = machine.reason(exception)
                tell(traceback.format_exc())
            if plan.device == 'cuda':
                torch.cuda.empty_cache()
            for record in records:
                found['records'].append(dict(record, section=check.section, check=check.name))
            if failure:
                found['records'].append(dict(section=check.section, check=check.name, error=failure))
            found['failed'] = sum(not record.get('passed', True) or 'error' in record for record in found['records'])
            found['seconds'] = time.monotonic() - start
            write(found, folder)
            seconds = time.monotonic() - begin
            tell(f'[{found["seconds"]:5.0f} s] {title}: {_outcome(records, failure)} ({seconds:.0f} s)')
    write(found, folder)
    return found


def describe(device: str) -> dict:
    """Describe the machine: its device, driver and versions."""
    about: Dict[str, Any] = dict(about=machine.describe(device), date=datetime.now(timezone.utc).date().isoformat())
    if device == 'cuda':
        properties = torch.cuda.get_device_properties(0)
        about.update(
            capability=list(torch.cuda.get_device_capability()),
            memory=properties.total_memory,
            multiprocessors=properties.multi_processor_count,
            cuda=torch.version.cuda,
            driver=_driver(),
        )
    for package in ('triton', 'timm', 'mmcv', 'mmdet', 'mmpretrain', 'torchvision', 'xcit_mm'):
        try:
            about[package] = __import__(package).__version__
        except (ImportError, AssertionError, AttributeError):
            about[package] = None
    return about


def _driver() -> Optional[str]:
    try:
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


class no_tf32(nullcontext):
    """Turn TF32 off inside, and restore the setting afterwards."""

    def __enter__(self):
        self.before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_):
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.before


def _outcome(records: Sequence[dict], error: Optional[str]) -> str:
    if error:
        return f'failed, {error}'
    wrong = [record for record in records if not record.get('passed', True)]
    if wrong:
        return 'wrong: ' + ', '.join(f'{r["name"]} {r["value"]:.1e} (limit {r["limit"]:.0e})' for r in wrong)
    times = [
        f'{r["contender"]} {1e3 * r["seconds"]:.2f} ms' for r in records if r.get('contender') and r.get('seconds')
    ]
    return ', '.join(times) or 'right'
