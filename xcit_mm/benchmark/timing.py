"""Compare the outputs, then time all contenders of a setting in one process, interleaved."""

import math
import time
from statistics import median
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..ops import use
from ..ops.matmul import linear
from .contenders import OURS, PEERS, Step, as_input, build, make_image, multiply_adds, random_weights, upstream
from .machine import available_memory, memory_limit, reason
from .settings import DTYPES, Row, Setting

# Bounds of the deviation of the whole backbone from the reference in fp32.
FP32_TOLERANCE = 1e-5
# Of the gradient of the image.
GRADIENT_TOLERANCE = 1e-4
# In half precision the deviation is rounding error, which differs by chance between implementations.
HALF_MARGIN = 1.25
# A shorter piece of work is repeated within its turn until it takes this long.
SHORTEST_TURN = 0.2
PEAK = 'matmul'


def measure(
    setting: Setting,
    names: Sequence[str],
    rounds: int = 5,
    tell: Callable[[str], None] = lambda text: None,
    shortest_turn: float = SHORTEST_TURN,
) -> List[Row]:
    """Compare the outputs of contenders and time them.

    Every contender is built with the same weights, runs once and is compared. Then every round times each contender
    once, in rotating order. A large matmul takes part, as the machine's peak in the same rounds.

    Args:
        setting (Setting): The work.
        names (Sequence[str]): Contenders, out of :data:`~xcit_mm.benchmark.contenders.NAMES`.
        rounds (int): How often each is timed.
        tell (Callable): Takes a line of progress.
        shortest_turn (float): Seconds, see :data:`SHORTEST_TURN`.

    Returns:
        list[Row]: In the order of ``names``. One that fails says so in its ``note`` and stops none of the others.
    """
    if setting.device == 'cuda':
        torch.backends.cudnn.allow_tf32 = False  # PyTorch's default for convolutions is TF32, not fp32
    if setting.compiled:
        torch._dynamo.reset()  # else the second size would be compiled with dynamic shapes
    rows = {name: Row(name, setting) for name in names}
    with memory_limit(available_memory(setting.device), setting.device):
        work = _first_runs(setting, rows, tell)
        peak_multiply_adds, work[PEAK] = _large_matmul(setting)
        seconds, failed = _in_turns(work, rounds, shortest_turn, tell, setting.device)
    for name, row in rows.items():
        if name in failed:
            row.note = failed[name]
        elif name in work:
            row.seconds, row.fastest = median(seconds[name]), min(seconds[name])
            if OURS in work and OURS not in failed:
                row.ratio = _in_same_rounds(seconds[name], seconds[OURS])
            if row.multiply_adds:
                row.of_peak = row.multiply_adds / peak_multiply_adds * _in_same_rounds(seconds[PEAK], seconds[name])
    _check(rows)
    return list(rows.values())


def _first_runs(setting: Setting, rows: Dict[str, Row], tell: Callable[[str], None]) -> Dict[str, Callable[[], None]]:
    """Build every contender and compare its output; return the work of those that succeed."""
    weights = random_weights(setting.arch, setting.patch_size)
    image = make_image(setting)
    tell('the reference')
    reference, not_compared = None, ''
    try:
        reference = _reference_outputs(setting, weights, image)
    except RuntimeError as error:  # it takes more memory than any contender
        not_compared = f'not compared, the reference failed: {reason(error)}'
    image = as_input(image, setting)
    work = {}
    for name, row in rows.items():
        tell(f'first run of {name}')
        is_xcit = name in (OURS, *PEERS)
        try:
            step = Step(build(name, setting, weights), setting)
            work[name] = _first_run(step, image, reference if is_xcit else None, row)
            if is_xcit and not setting.training:
                row.multiply_adds = multiply_adds(name, setting)
            row.note = not_compared if is_xcit else ''
        except Exception as error:
            work.pop(name, None)
            row.note = reason(error)
    return work


def _reference_outputs(setting: Setting, weights: Dict[str, Tensor], image: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
    """Output of the reference in fp32; in training also the gradient of the image."""
    contender = build(OURS, setting, weights).to(setting.device).requires_grad_(False)
    contender.train(setting.training)
    image = image.clone().requires_grad_(setting.training)
    with use('reference'):
        out = contender(image)
        if setting.training:
            out.backward(upstream(out))
    return out.detach(), image.grad


def _first_run(step: Step, image: Tensor, reference: Optional[tuple], row: Row) -> Callable[[], Any]:
    """Run a step once and record its deviation; return the step to be timed."""
    setting = step.setting
    start = time.perf_counter()
    out = step(image)
    _synchronise(setting.device)
    if setting.compiled:
        row.compile_seconds = time.perf_counter() - start
    if reference is not None:
        row.deviation, row.rms = _deviation(out, reference[0])
    if reference is not None and setting.training and not setting.compiled:
        # Not compiled: with the image's gradient the graph is another than the one that is timed.
        image = image.clone().requires_grad_()
        step(image)
        row.gradient = _deviation(image.grad, reference[1])[0]
        image = image.detach()
    return lambda: step(image)


def _deviation(out: Tensor, reference: Tensor) -> Tuple[float, float]:
    """Largest difference over largest value, and root mean square of one over the other."""
    if out.shape != reference.shape:
        raise ValueError(f'the output has the shape {tuple(out.shape)}, expected {tuple(reference.shape)}')
    difference = out.float() - reference
    largest = difference.abs().max() / reference.abs().max()
    return largest.item(), (torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(reference)).item()


def _large_matmul(setting: Setting) -> Tuple[int, Callable[[], Any]]:
    """MACs of a large square matmul, and the matmul, by the faster library."""
    n = 2048 if setting.device == 'cpu' else 8192
    a, b = (torch.randn(n, n, device=setting.device).to(DTYPES[setting.dtype]) for _ in range(2))
    return n**3, lambda: linear(a, b)


def _in_turns(
    work: Dict[str, Callable], rounds: int, shortest_turn: float, tell: Callable, device: str
) -> Tuple[Dict[str, List[float]], Dict[str, str]]:
    """Seconds of every piece of work in every round, and why some failed."""
    seconds: Dict[str, List[float]] = {name: [] for name in work}
    failed: Dict[str, str] = {}
    repeats = dict.fromkeys(work, 1)
    names = list(work)
    for i in range(-1, rounds):  # the first to warm up, and to see how often short work has to be repeated
        shift = max(i, 0) % len(names)
        for name in names[shift:] + names[:shift]:
            if name in failed:
                continue
            tell(f'round {i + 1} of {rounds}, {name}' if i >= 0 else f'warming up {name}')
            try:
                _synchronise(device)
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    work[name]()
                _synchronise(device)
                elapsed = (time.perf_counter() - start) / repeats[name]
            except Exception as error:
                failed[name] = reason(error)
                continue
            if i >= 0:
                seconds[name].append(elapsed)
            else:
                repeats[name] = max(1, round(shortest_turn / max(elapsed, 1e-6)))
    return seconds, failed


def _in_same_rounds(times: List[float], of_other: List[float]) -> float:
    """Median of the ratios within a round, which cancels slow spells of the machine."""
    return median(time / other for time, other in zip(times, of_other))


def _synchronise(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def _check(rows: Dict[str, Row]) -> None:
    """Note deviations beyond the tolerance."""
    ours = rows.get(OURS)
    for row in rows.values():
        # In this form NaN does not pass.
        if row.deviation is not None and row.setting.dtype == 'fp32' and not row.deviation < FP32_TOLERANCE:
            row.note = f'deviates by {row.deviation:.1e}, more than {FP32_TOLERANCE:.0e}'
        elif row.rms is not None and not math.isfinite(row.rms):
            row.note = 'its output has NaN or Inf'
    if ours and ours.gradient is not None and ours.setting.dtype == 'fp32' and not ours.gradient < GRADIENT_TOLERANCE:
        ours.note = f'its gradient deviates by {ours.gradient:.1e}, more than {GRADIENT_TOLERANCE:.0e}'
    if ours and ours.rms is not None and ours.setting.dtype != 'fp32':
        found = (rows[name].rms for name in PEERS if name in rows)
        peers = [rms for rms in found if rms is not None and math.isfinite(rms)]
        if not ours.rms < HALF_MARGIN * min(peers, default=float('inf')):
            ours.note = f'deviates by {ours.rms:.1e} (rms), more than the better peer with {min(peers, default=0):.1e}'
