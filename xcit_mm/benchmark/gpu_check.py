"""One check of an accelerator: is everything right on it, how fast is it beside the peers, and where does the time go?

The checks are ordered by what they tell. Each has an estimate of its seconds, and one that would outlast the budget is
left out by name, so that a short loan of a machine gives the most important figures. What is found is written after
each check.
"""

import copy
import json
import os
import subprocess
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Callable, Dict, Iterator, List, Optional, Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from ..models import SyncBN, XCiT
from ..models.xcit import ARCHS
from ..ops import use
from . import machine
from .contenders import OURS, Step, as_input, build, installed, make_image, random_weights
from .memory import rise
from .settings import DTYPES, Row, Setting
from .timing import measure
from .whole_model import Runs, Work

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = 'configs/mask_rcnn_xcit_s12_8_3x_coco.py'
DIGITS = 'configs/mask_rcnn_xcit_n12_8_digits.py'
# Largest difference over largest value, from the reference in fp32. Half precision has 11 and 8 significant bits.
LIMITS = {'fp32': 1e-5, 'fp16': 2e-2, 'bf16': 1e-1}
GRADIENT_LIMITS = {'fp32': 1e-4, 'fp16': 5e-2, 'bf16': 3e-1}
TOP = 20  # kernels of a profile
# Reads and writes of the residual stream by a block whose three branches are fused: XCA reads it for the Gram matrix
# and once more for the affine map that follows from it; LPI and the MLP read it once; all three write it.
STREAM_PASSES = 7
MARKS = '<!-- gpu_check -->', '<!-- /gpu_check -->'


@dataclass
class Plan:
    """What is done on a device: the sizes of the work, and how much of it.

    Attributes:
        device (str): 'cuda', or 'cpu' for a trial of the check itself, in sizes that mean nothing.
        arch (str): Of the XCiT whose outputs are compared and profiled.
        small, large (tuple[int, int]): Height and width of a classifier's and of a detector's image.
        batch (int): Of a classifier.
        dtypes (tuple[str, ...]): Half-precision types that are timed.
        modes (tuple[str, ...]): Of torch.compile.
        rounds (int): How often each contender is timed.
        peers (list[str]): Contenders that are installed.
    """

    device: str
    arch: str = 's12'
    small: tuple = (224, 224)
    large: tuple = (800, 1216)
    batch: int = 256
    dtypes: tuple = ('bf16', 'fp16')
    modes: tuple = ('default', 'reduce-overhead', 'max-autotune')
    rounds: int = 5
    peers: List[str] = field(default_factory=list)

    @classmethod
    def of(cls, device: str) -> 'Plan':
        """The plan for a device; on a CPU the smallest sizes."""
        peers, _ = installed(['timm', 'mmpretrain'])
        if device == 'cuda':
            return cls(device, peers=peers)
        return cls('cpu', 'n12', (64, 64), (96, 128), 2, ('bf16',), (), 2, peers)


@dataclass
class Check:
    """One part of the whole.

    Attributes:
        section (str): Heading that its records belong under.
        name (str): What it is about.
        seconds (float): Estimate for an H100; longer than what is left of the budget, and the check is left out.
        run (Callable): Gives records, dicts of plain values.
    """

    section: str
    name: str
    seconds: float
    run: Callable[[], Iterator[dict]]


def checks(plan: Plan) -> List[Check]:
    """All checks, the most telling ones first."""
    b, small, large = plan.batch, plan.small, plan.large
    half = plan.dtypes[0]
    s16 = dict(patch_size=16)

    def speed(name, seconds, size, batch, modes=(), dtype=half, **changes):
        setting = Setting(plan.arch, 8, *size, batch, dtype, device=plan.device)
        return Check('Speed', name, seconds, lambda: _speed(plan, name, replace(setting, **changes), modes))

    def correct(name, function, *arguments, seconds=8):
        return Check('Correctness', name, seconds, lambda: function(plan, *arguments))

    training = dict(mode='training', autocast=True)
    of_image = dict(features='cls')
    eager_first = [
        *(correct(f'outputs and gradients, {dtype}', _outputs, dtype) for dtype in ('fp32', *plan.dtypes)),
        correct('training step under autocast with GradScaler', _training_step),
        correct('SyncBN alone', _sync_bn, seconds=2),
        correct('pyramid into RoIAlign', _roi_align, seconds=5),
        speed('inference, one large image', 15, large, 1, ['eager']),
        speed('training step, large images', 25, large, 2, ['eager'], **training),
        speed('inference, small images', 25, small, b, ['eager'], **of_image),
        Check('Profile', 'training step, large images', 15, lambda: _profile(plan, large, 2, 'training')),
        Check('Profile', 'inference, one large image', 10, lambda: _profile(plan, large, 1, 'inference')),
        speed('training step, small images', 30, small, b, ['eager'], **of_image, **training),
        Check('Detector', 'training iteration, Mask R-CNN', 30, lambda: _detector(plan)),
    ]
    compiled = [
        correct('CUDA graph', _cuda_graph, seconds=10),
        correct('torch.compile', _compiled, seconds=40),
        speed('inference, one large image', 90, large, 1, plan.modes[:2]),
        Check('Detector', 'training on the digits', 150, lambda: _digits(plan)),
        speed('training step, large images', 100, large, 2, plan.modes[:1], **training),
        speed('inference, small images', 60, small, b, plan.modes[:1], **of_image),
        speed('inference, large images', 20, large, 8, ['eager']),
        speed('inference, small images, patches of 16', 20, small, b, ['eager'], **of_image, **s16),
        Check('Curve', 'growing images', 90, lambda: _curve(plan)),
        speed('training step, small images', 100, small, b, plan.modes[:1], **of_image, **training),
        speed('inference, large images', 60, large, 8, plan.modes[:1]),
        *(speed('inference, one large image', 15, large, 1, ['eager'], dtype) for dtype in plan.dtypes[1:]),
        speed('inference, small images, patches of 16', 60, small, b, plan.modes[:1], **of_image, **s16),
        speed('inference, one large image', 200, large, 1, plan.modes[2:]),
        speed('inference, small images', 200, small, b, plan.modes[2:], **of_image),
    ]
    found = [*eager_first, *compiled]
    if plan.device == 'cpu':  # nothing here is a figure of anything
        found = [check for check in found if not check.name.startswith(('CUDA', 'growing')) and check.seconds < 90]
    return found


# Correctness.


def _record(name: str, value: float, limit: float) -> dict:
    return dict(name=name, value=value, limit=limit, passed=bool(value <= limit))  # a NaN does not pass


def _difference(out: Tensor, reference: Tensor) -> float:
    reference = reference.float()
    return ((out.float() - reference).abs().max() / reference.abs().max()).item()


def _models(plan: Plan, dtype: str, features: str, training: bool = False) -> tuple:
    """Two equal backbones, one of them in ``dtype``, and an image."""
    size = plan.small if features == 'cls' else tuple(max(64, side // 3) for side in plan.large)
    mode = 'training' if training else 'inference'
    setting = Setting(plan.arch, 8, *size, 2, dtype, mode, features=features, device=plan.device)
    weights = random_weights(setting.arch, setting.patch_size)
    ours = build(OURS, setting, weights).to(plan.device).train(training)
    reference = copy.deepcopy(ours)
    return ours.to(DTYPES[dtype]), reference, make_image(setting)


def _outputs(plan: Plan, dtype: str) -> Iterator[dict]:
    """Class token and map against the reference in fp32 on this device, which is compared with the CPU's."""
    for features in ('cls', 'map'):
        ours, reference, image = _models(plan, dtype, features)
        with use('reference'):
            expected = reference(image).detach()
        with torch.no_grad():
            yield _record(f'{features}, {dtype}', _difference(ours(image.to(DTYPES[dtype])), expected), LIMITS[dtype])
        if dtype == 'fp32' and features == 'cls':
            with torch.no_grad():
                on_cpu = copy.deepcopy(reference).cpu()(image.cpu())
            yield _record('the reference, from the CPU', _difference(expected.cpu(), on_cpu), LIMITS['fp32'])
    ours, reference, image = _models(plan, dtype, 'map', training=True)
    images = image.clone().requires_grad_(), image.to(DTYPES[dtype]).requires_grad_()
    with use('reference'):
        reference(images[0]).square().mean().backward()
    ours(images[1]).float().square().mean().backward()
    yield _record(
        f'gradient of the image, {dtype}', _difference(images[1].grad, images[0].grad), GRADIENT_LIMITS[dtype]
    )


def _training_step(plan: Plan) -> Iterator[dict]:
    """One step of AdamW in mixed precision: the loss falls, and nothing is NaN or infinite."""
    dtype = torch.float16 if plan.device == 'cuda' else torch.bfloat16
    ours, _, image = _models(plan, 'fp32', 'map', training=True)
    optimizer = torch.optim.AdamW(ours.parameters(), 1e-4)
    scaler = torch.amp.GradScaler(plan.device, enabled=plan.device == 'cuda')
    losses = []
    for _ in range(5):
        with torch.autocast(plan.device, dtype):
            loss = ours(image).float().square().mean()
        losses.append(loss.item())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    finite = all(parameter.isfinite().all() for parameter in ours.parameters())
    yield _record('loss after five steps, over the first', losses[-1] / losses[0] if finite else float('nan'), 1.0)


def _sync_bn(plan: Plan) -> Iterator[dict]:
    """Without other processes it is batch norm."""
    image = torch.randn(4, 8, 16, 16, device=plan.device)
    norms = SyncBN(8).to(plan.device), torch.nn.BatchNorm2d(8).to(plan.device)
    outs = [norm(image) for norm in norms]
    yield _record('output', _difference(*outs), 1e-6)
    yield _record('running variance', _difference(norms[0].running_var, norms[1].running_var), 1e-6)


def _roi_align(plan: Plan) -> Iterator[dict]:
    """mmcv's operator on the pyramid of a channels-last model, and torchvision's on a contiguous copy of it."""
    from mmcv.ops import RoIAlign
    from torchvision.ops import roi_align

    model = XCiT(plan.arch, 8, 'pyramid').to(plan.device, memory_format=torch.channels_last).eval()
    image = torch.randn(2, 3, 128, 160, device=plan.device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        maps = model(image)
    boxes = torch.tensor([[0, 8.0, 8, 80, 96], [1, 20, 0, 159, 127]], device=plan.device)
    for stride, x in zip((4, 8, 16, 32), maps):
        expected = roi_align(x.contiguous(), boxes, 7, 1 / stride, 2, aligned=True)
        yield _record(f'stride {stride}', _difference(RoIAlign(7, 1 / stride, 2)(x, boxes), expected), 1e-5)


def _compiled(plan: Plan) -> Iterator[dict]:
    for dtype in ('fp32', plan.dtypes[0]):
        torch._dynamo.reset()
        ours, reference, image = _models(plan, dtype, 'map')
        with use('reference'):
            expected = reference(image).detach()
        with torch.no_grad():
            out = torch.compile(ours)(image.to(DTYPES[dtype]))
        yield _record(f'map, {dtype}', _difference(out, expected), LIMITS[dtype])


def _cuda_graph(plan: Plan) -> Iterator[dict]:
    """Captured once, replayed on another image."""
    ours, _, image = _models(plan, plan.dtypes[0], 'map')
    image = image.to(DTYPES[plan.dtypes[0]])
    other = image.flip(0).contiguous()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                ours(image)
        torch.cuda.current_stream().wait_stream(stream)
        expected, graph = ours(other).clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = ours(image)
        image.copy_(other)
        graph.replay()
    yield _record('replayed on another image', _difference(out, expected), 1e-3)


# Speed.


def _speed(plan: Plan, name: str, setting: Setting, modes: Sequence[str]) -> Iterator[dict]:
    """Rows of one piece of work in each mode, with the peak memory of eager training steps."""
    for mode in modes:
        if mode != 'eager':
            setting = replace(setting, compiled=True, compile_mode=mode)
        # Compilation takes most of the time; the best mode of timm is what a user would run instead.
        names = [OURS, *plan.peers] if mode == 'eager' else [OURS, *plan.peers[:1]]
        for row in measure(setting, names, plan.rounds):
            if plan.device == 'cuda' and row.seconds and not setting.compiled:
                row.peak_memory = _peak_memory(row.name, setting)
            yield _speed_record(name, row)
        torch._dynamo.reset()


def _speed_record(name: str, row: Row) -> dict:
    record = asdict(row)
    setting = record.pop('setting')
    return dict(record, work=name, contender=record.pop('name'), setting=setting, mode=row.setting.execution)


def _peak_memory(name: str, setting: Setting) -> int:
    """Bytes that the second of two runs takes above the weights and what the first one left."""
    step = Step(build(name, setting, random_weights(setting.arch, setting.patch_size)), setting)
    image = as_input(make_image(setting), setting)
    step(image)
    step.forget()
    return rise(lambda: step(image), setting.device)


def ratios(records: Sequence[dict]) -> List[dict]:
    """For each piece of work the best mode of ours beside the best mode of a peer.

    Args:
        records (Sequence[dict]): Of :func:`checks` with the section 'Speed'.

    Returns:
        list[dict]: ``work``, ``setting``, ``seconds``, ``mode`` and ``peak_memory`` of ours; ``peer``,
        ``peer_seconds`` and ``peer_mode``; and how many times as fast ours is.
    """
    found = []
    key = ('arch', 'patch_size', 'height', 'width', 'batch', 'dtype', 'mode', 'features')
    groups: Dict[tuple, List[dict]] = {}
    for record in records:
        if record.get('seconds'):
            groups.setdefault(tuple(record['setting'][k] for k in key), []).append(record)
    for group in groups.values():
        ours = [record for record in group if record['contender'] == OURS]
        peers = [record for record in group if record['contender'] != OURS]
        if not ours or not peers:
            continue
        best, peer = (min(side, key=lambda record: record['seconds']) for side in (ours, peers))
        memory = [[r['peak_memory'] for r in side if r['peak_memory']] for side in (ours, peers)]
        found.append(
            dict(
                work=best['work'],
                setting=str(Setting(**dict(best['setting'], compiled=False))),
                seconds=best['seconds'],
                mode=best['mode'],
                peer=peer['contender'],
                peer_seconds=peer['seconds'],
                peer_mode=peer['mode'],
                times_as_fast=peer['seconds'] / best['seconds'],
                memory_of_peer=min(memory[0]) / min(memory[1]) if all(memory) else None,
            )
        )
    return found


def _detector(plan: Plan) -> Iterator[dict]:
    """A whole training iteration with our backbone and with a peer's, eager, in turns."""
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
                memory[name] = rise(lambda run=run, data=data: run(data), 'cuda')
                continue
            _synchronise(plan.device)
            start = time.perf_counter()
            run(data)
            _synchronise(plan.device)
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


def _digits(plan: Plan) -> Iterator[dict]:
    """The README's demo: seconds an iteration over the first hundred, and AP after the short schedule."""
    work_dir = Path('work_dirs/gpu_check_digits')
    data = ROOT / 'data/digits'
    if not data.exists():
        _run_tool('tools/make_digits.py', str(data))
    _run_tool('tools/train.py', DIGITS, '--work-dir', str(work_dir), '--amp')
    scalars = max(work_dir.glob('*/vis_data/scalars.json'), key=os.path.getmtime)
    yield from digits_records([json.loads(line) for line in scalars.read_text().splitlines()])


def digits_records(lines: Sequence[dict]) -> List[dict]:
    """What MMEngine's scalars of the run say."""
    times = [line['time'] for line in lines if 'time' in line and 'loss' in line and line.get('step', 0) <= 100]
    scores = {key: line[key] for line in lines for key in ('coco/bbox_mAP', 'coco/segm_mAP') if key in line}
    names = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP'}
    found = [dict(name='seconds an iteration, the first hundred', value=median(times), limit=None, passed=True)]
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


def _curve(plan: Plan) -> Iterator[dict]:
    """Time and memory of one image from 224 to 4096 pixels, beside a ViT with flash attention."""
    for side in (224, 512, 1024, 2048, 4096):
        setting = Setting(plan.arch, 8, side, side, 1, plan.dtypes[0], device=plan.device)
        for row in measure(setting, [OURS, *plan.peers[:1], 'ViT-S/8'], 3):
            if row.seconds:
                row.peak_memory = _peak_memory(row.name, setting)
            yield _speed_record('growing images', row)


# Profile.


def floor(setting: Setting) -> dict:
    """Bytes and FLOPs that the backbone cannot do without, if each branch of a block is one fused kernel.

    Returns:
        dict: ``bytes`` of inference: :data:`STREAM_PASSES` passes over the residual stream of each block, the weights,
        and the maps of the patch embedding, written and read; ``flops`` of the matmuls and convolutions with
        XCA in its covariance form. A training step takes three times as many of both, at least.
    """
    arch = ARCHS[setting.arch]
    channels, depth = arch['embed_dims'], arch['depth']
    size = 4 if setting.dtype == 'fp32' else 2
    stream = setting.batch * setting.tokens * channels * size
    pixels = setting.batch * setting.height * setting.width
    steps = {8: 3, 16: 4}[setting.patch_size]
    # Channels are halved and the area quadrupled from the last map of the stem to its first.
    stem = sum(stream * 2**i for i in range(steps)) * 2 + pixels * 3 * size
    with torch.device('meta'):
        weights = sum(p.numel() for p in XCiT(setting.arch, setting.patch_size, 'featmap').parameters()) * size
    tokens = setting.batch * setting.tokens
    # The Gram matrix, of which half is computed; the affine map that follows from it; the two layers of the MLP.
    block = 2 * tokens * channels**2 * (0.5 + 1 + 8)
    convolutions = (
        2
        * 9
        * pixels
        * sum(
            (3 if i == steps - 1 else channels // 2 ** (i + 1)) * (channels // 2**i) // 4 ** (steps - i)
            for i in range(steps)
        )
    )
    return dict(bytes=STREAM_PASSES * depth * stream + stem + weights, flops=depth * block + convolutions)


def _profile(plan: Plan, size: tuple, batch: int, mode: str) -> Iterator[dict]:
    """The kernels that take longest, and the whole beside its floor."""
    from torch.profiler import ProfilerActivity, profile

    setting = Setting(plan.arch, 8, *size, batch, plan.dtypes[0], mode, device=plan.device, autocast=mode == 'training')
    step = Step(build(OURS, setting, random_weights(setting.arch, 8)), setting)
    image = as_input(make_image(setting), setting)
    for _ in range(3):
        step(image)
    _synchronise(plan.device)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (plan.device == 'cuda')
    with profile(activities=kinds) as profiler:
        step(image)
        _synchronise(plan.device)
    kernels = kernel_times(profiler.key_averages(), plan.device)
    total = sum(kernel['seconds'] for kernel in kernels)
    bandwidth, flops = _bandwidth(plan.device), _matmul_flops(plan)
    least = floor(setting)
    factor = 3 if mode == 'training' else 1
    bound = max(factor * least['bytes'] / bandwidth, factor * least['flops'] / flops)
    yield dict(
        work=f'{mode}, {setting}',
        seconds=total,
        launches=sum(kernel['calls'] for kernel in kernels),
        bandwidth=bandwidth,
        matmul_flops=flops,
        floor_bytes=factor * least['bytes'],
        floor_flops=factor * least['flops'],
        floor_seconds=bound,
        over_floor=total / bound,
    )
    for kernel in kernels[:TOP]:
        # What a kernel that waits for memory alone would have moved: an upper bound for all others.
        yield dict(kernel, share=kernel['seconds'] / total, bytes_at_most=kernel['seconds'] * bandwidth)


def kernel_times(averages, device: str) -> List[dict]:
    """Name, calls and seconds of every kernel (of every operator on a CPU), the slowest first."""
    found = []
    for event in averages:
        if device == 'cuda':
            if 'cuda' not in str(getattr(event, 'device_type', '')).lower():
                continue  # the operator that launched it
            micros = getattr(event, 'self_device_time_total', None) or getattr(event, 'self_cuda_time_total', 0)
        else:
            micros = event.self_cpu_time_total
        if micros > 0:
            found.append(dict(kernel=event.key[:120], calls=event.count, seconds=micros * 1e-6))
    return sorted(found, key=lambda kernel: -kernel['seconds'])


def _bandwidth(device: str) -> float:
    """Bytes per second of a copy that no cache holds, read and written."""
    source = torch.empty((2**30 if device == 'cuda' else 2**26) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _seconds(lambda: target.copy_(source), device)


def _matmul_flops(plan: Plan) -> float:
    n = 8192 if plan.device == 'cuda' else 512
    a = torch.randn(n, n, device=plan.device).to(DTYPES[plan.dtypes[0]])
    return 2 * n**3 / _seconds(lambda: a @ a, plan.device)


def _seconds(work: Callable[[], object], device: str, rounds: int = 10) -> float:
    times = []
    for _ in range(rounds + 2):
        _synchronise(device)
        start = time.perf_counter()
        work()
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return median(times[2:])


def _synchronise(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


# The whole.


def run(plan: Plan, budget: float, folder: Path, tell: Callable[[str], None] = print) -> dict:
    """Do what the budget is enough for.

    Args:
        plan (Plan): What is done.
        budget (float): Seconds.
        folder (Path): Where ``gpu_check.json`` and ``gpu_check.md`` are written, anew after each check.
        tell (Callable): Told what is done and found.

    Returns:
        dict: Everything that was found; 'failed' counts what is wrong, 'left_out' names what the budget was too small
        for.

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
        found = dict(machine=describe(plan.device), plan=asdict(plan), budget=budget, records=[], left_out=[], failed=0)
        for check in checks(plan):
            left = budget - (time.monotonic() - start)
            title = f'{check.section}: {check.name}'
            if check.seconds > left and plan.device == 'cuda' or left <= 0:
                found['left_out'].append(f'{title} (about {check.seconds:.0f} s)')
                continue
            begin = time.monotonic()
            records, error = [], None
            try:
                for record in check.run():
                    records.append(record)
            except Exception as exception:
                error = machine.reason(exception)
                tell(traceback.format_exc())
            if plan.device == 'cuda':
                torch.cuda.empty_cache()
            for record in records:
                found['records'].append(dict(record, section=check.section, check=check.name))
            if error:
                found['records'].append(dict(section=check.section, check=check.name, error=error))
            found['failed'] = sum(not record.get('passed', True) or 'error' in record for record in found['records'])
            found['seconds'] = time.monotonic() - start
            write(found, folder)
            tell(f'[{found["seconds"]:5.0f} s] {title}: {_outcome(records, error)} ({time.monotonic() - begin:.0f} s)')
    write(found, folder)
    return found


def describe(device: str) -> dict:
    """The machine in words and versions."""
    about = dict(about=machine.describe(device), date=datetime.now(timezone.utc).date().isoformat())
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
    """fp32 is fp32 inside, and as it was afterwards."""

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


def write(found: dict, folder: Path) -> None:
    """Both files, whole or not at all."""
    for name, text in (('gpu_check.json', json.dumps(found, indent=1)), ('gpu_check.md', markdown(found))):
        draft = folder / f'{name}.new'
        draft.write_text(text + '\n', encoding='utf-8')
        os.replace(draft, folder / name)


def markdown(found: dict) -> str:
    """The tables for the docs."""
    about = found['machine']
    of_section = {name: [r for r in found['records'] if r['section'] == name] for name in SECTIONS}
    versions = ', '.join(
        f'{name} {about[name]}' for name in ('cuda', 'driver', 'triton', 'timm', 'mmpretrain') if about.get(name)
    )
    parts = [f'{about["about"]}, {versions}; {about["date"]}, `tools/gpu_check.py`.']
    table = ratios(of_section['Speed'])
    if table:
        parts.append(
            _table(
                ['work', 'ours, ms', 'mode', 'best peer', 'ms', 'mode', 'times as fast', 'memory of the peer'],
                [
                    [
                        row['setting'],
                        f'{1e3 * row["seconds"]:.2f}',
                        row['mode'],
                        row['peer'],
                        f'{1e3 * row["peer_seconds"]:.2f}',
                        row['peer_mode'],
                        f'{row["times_as_fast"]:.2f}x',
                        f'{row["memory_of_peer"]:.2f}x' if row['memory_of_peer'] else '',
                    ]
                    for row in table
                ],
            )
        )
    iterations = [r for r in of_section['Detector'] if 'contender' in r]
    if iterations:
        rows = [[r['contender'], f'{1e3 * r["seconds"]:.1f}', f'{r["ratio"]:.2f}x'] for r in iterations]
        parts += ['A whole training iteration of Mask R-CNN, eager:', _table(['backbone', 'ms', 'over ours'], rows)]
    curve = [r for r in of_section['Curve'] if r.get('seconds')]
    if curve:
        rows = [
            [str(r['setting']['height']), r['contender'], f'{1e3 * r["seconds"]:.2f}', f'{r["peak_memory"] / 1e6:.0f}']
            for r in curve
        ]
        parts += ['One image of growing size:', _table(['pixels', 'backbone', 'ms', 'peak memory, MB'], rows)]
    for record in of_section['Profile']:
        if 'work' in record:
            parts.append(
                f'Kernels of {record["work"]}: {record["launches"]} launches, {1e3 * record["seconds"]:.2f} ms, '
                f'{record["over_floor"]:.1f} times the floor of {1e3 * record["floor_seconds"]:.2f} ms '
                f'({record["floor_bytes"] / 1e9:.2f} GB at {record["bandwidth"] / 1e12:.2f} TB/s, '
                f'{record["floor_flops"] / 1e9:.0f} GFLOP at {record["matmul_flops"] / 1e12:.0f} TFLOP/s).'
            )
            rows = [
                [f'`{r["kernel"][:70]}`', str(r['calls']), f'{1e3 * r["seconds"]:.3f}', f'{100 * r["share"]:.1f} %']
                for r in of_section['Profile']
                if 'kernel' in r and r['check'] == record['check']
            ]
            parts.append(_table(['kernel', 'calls', 'ms', 'share'], rows))
    rows = [
        [r['check'], r['name'], f'{r["value"]:.1e}', '' if r['limit'] is None else f'{r["limit"]:.0e}', _verdict(r)]
        for r in found['records']
        if 'value' in r
    ]
    if rows:
        parts += ['What was compared:', _table(['check', 'value of', 'found', 'limit', ''], rows)]
    errors = [f'- {r["check"]}: {r["error"]}' for r in found['records'] if 'error' in r]
    parts += ['Failed:\n\n' + '\n'.join(errors)] if errors else []
    parts += ['Not measured for want of time: ' + '; '.join(found['left_out']) + '.'] if found['left_out'] else []
    return '\n\n'.join(parts)


SECTIONS = ('Correctness', 'Speed', 'Profile', 'Detector', 'Curve')


def _verdict(record: dict) -> str:
    return 'right' if record['passed'] else '**wrong**'


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ['---'] * len(headings), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def update_docs(source: Path, page: Path) -> None:
    """Put the tables of a finished check between the marks of a page.

    Raises:
        UsageError: If the file is none of this check, was of a CPU, or the page has no marks.
    """
    try:
        found = json.loads(source.read_text(encoding='utf-8'))
        text = markdown(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{source} is no file of tools/gpu_check.py ({type(error).__name__}: {error})') from None
    if found['plan']['device'] == 'cpu':
        raise UsageError(f'{source} is of a CPU, whose figures mean nothing; run the check with --device cuda')
    old = page.read_text(encoding='utf-8')
    if any(old.count(mark) != 1 for mark in MARKS):
        raise UsageError(f'{page} has no place for the tables, a line {MARKS[0]} and a line {MARKS[1]}')
    before, rest = old.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f'{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}', encoding='utf-8')
