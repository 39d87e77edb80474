"""Mask R-CNN: a whole training iteration beside the same detector with a peer's backbone, and the run on the digits."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Dict, Iterator, List, Sequence

from ..contenders import OURS
from ..memory import rise
from ..whole_model import Runs, Work
from .plan import ROOT, Plan
from .profiling import synchronise

DETECTOR = 'configs/mask_rcnn_xcit_s12_8_3x_coco.py'
DIGITS = 'configs/mask_rcnn_xcit_n12_8_digits.py'


def iterations(plan: Plan) -> Iterator[dict]:
    """Time a whole training iteration with our backbone and with a peer's, eager, interleaved."""
    height, width = plan.large
    # mmcv's operators take no bf16.
    dtype = 'fp16' if plan.device == 'cuda' else 'fp32'
    work = Work(str(ROOT / (DETECTOR if plan.device == 'cuda' else DIGITS)), height, width, 2, True, dtype, plan.device)
    runs = {name: Runs(replace(work, backbone=name), watched=False) for name in [OURS, *plan.peers]}
    seconds: Dict[str, List[float]] = {name: [] for name in runs}
    memory = {}
    for i in range(plan.rounds + 2):
        for name, run in runs.items():
            data = run.data(height, width)
            if plan.device == 'cuda' and i == 1:
                memory[name] = rise(partial(run, data), 'cuda')
                continue
            synchronise(plan.device)
            start = time.perf_counter()
            run(data)
            synchronise(plan.device)
            if i > 1:
                seconds[name].append(time.perf_counter() - start)
    for name in runs:
        ratio = median(theirs / ours for theirs, ours in zip(seconds[name], seconds[OURS]))
        yield dict(
            contender=name,
            seconds=median(seconds[name]),
            ratio=ratio,
            peak_memory=memory.get(name),
            setting=asdict(work),
        )


def digits(plan: Plan) -> Iterator[dict]:
    """The README's demo: seconds per iteration over the first hundred, and AP after the short schedule."""
    work_dir = Path('work_dirs/gpu_check_digits')
    data = ROOT / 'data/digits'
    if not data.exists():
        _run_tool('tools/make_digits.py', str(data))
    _run_tool('tools/train.py', DIGITS, '--work-dir', str(work_dir), '--amp')
    scalars = max(work_dir.glob('*/vis_data/scalars.json'), key=os.path.getmtime)
    yield from digits_records([json.loads(line) for line in scalars.read_text().splitlines()])


def digits_records(lines: Sequence[dict]) -> List[dict]:
    """Records from the scalars that MMEngine wrote in the run."""
    times = [line['time'] for line in lines if 'time' in line and 'loss' in line and line.get('step', 0) <= 100]
    scores = {key: line[key] for line in lines for key in ('coco/bbox_mAP', 'coco/segm_mAP') if key in line}
    names = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP'}
    found = [dict(name='seconds per iteration, the first hundred', value=median(times), limit=None, passed=True)]
    # The published run on a CPU has 0.65 and 0.63; a seed moves them by some points.
    for key, least in (('coco/bbox_mAP', 0.60), ('coco/segm_mAP', 0.58)):
        value = scores.get(key, float('nan'))
        found.append(dict(name=names[key], value=value, limit=least, passed=bool(value >= least)))
    return found


def _run_tool(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=str(ROOT), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RuntimeError(f'{command[0]} ended with code {done.returncode}: {" ".join(last)[:300]}')
