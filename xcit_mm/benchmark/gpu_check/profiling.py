"""Where does the time go, and what is its lower bound?"""

import time
from statistics import median
from typing import Callable, Iterator, List

import torch

from ...models import XCiT
from ...models.xcit import ARCHS
from ..contenders import OURS, Step, as_input, build, make_image, random_weights
from ..settings import DTYPES, Setting
from .plan import Plan

TOP = 20  # kernels of a profile
# Reads and writes of the residual stream by a block whose three branches are fused: XCA reads it for the Gram matrix
# and once more for the affine map that follows from it; LPI and the MLP read it once; all three write it.
STREAM_PASSES = 7


def floor(setting: Setting) -> dict:
    """Lower bound of bytes and FLOPs of the backbone, if each branch of a block is one fused kernel.

    Returns:
        dict: ``bytes`` of inference: :data:`STREAM_PASSES` passes over the residual stream of each block, the weights,
        and the maps of the patch embedding, written and read; ``flops`` of the matmuls and convolutions with
        XCA in its covariance form. A training step takes at least three times both.
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


def profile(plan: Plan, size: tuple, batch: int, mode: str) -> Iterator[dict]:
    """The slowest kernels, and the whole beside its lower bound."""
    from torch.profiler import ProfilerActivity, profile

    setting = Setting(
        plan.arch, 8, size[0], size[1], batch, plan.dtypes[0], mode, device=plan.device, autocast=mode == 'training'
    )
    step = Step(build(OURS, setting, random_weights(setting.arch, 8)), setting)
    image = as_input(make_image(setting), setting)
    for _ in range(3):
        step(image)
    synchronise(plan.device)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (plan.device == 'cuda')
    with profile(activities=kinds) as profiler:
        step(image)
        synchronise(plan.device)
    kernels = kernel_times(profiler.key_averages(), plan.device)
    total = sum(kernel['seconds'] for kernel in kernels)
    per_second, flops = bandwidth(plan.device), matmul_flops(plan)
    least = floor(setting)
    factor = 3 if mode == 'training' else 1
    bound = max(factor * least['bytes'] / per_second, factor * least['flops'] / flops)
    yield dict(
        work=f'{mode}, {setting}',
        seconds=total,
        launches=sum(kernel['calls'] for kernel in kernels),
        bandwidth=per_second,
        matmul_flops=flops,
        floor_bytes=factor * least['bytes'],
        floor_flops=factor * least['flops'],
        floor_seconds=bound,
        over_floor=total / bound,
    )
    for kernel in kernels[:TOP]:
        # Bytes that a purely memory-bound kernel would move in this time: an upper bound for all others.
        yield dict(kernel, share=kernel['seconds'] / total, bytes_at_most=kernel['seconds'] * per_second)


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


def bandwidth(device: str) -> float:
    """Bytes per second of a copy larger than any cache, reads and writes together."""
    source = torch.empty((2**30 if device == 'cuda' else 2**26) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds_of(lambda: target.copy_(source), device)


def matmul_flops(plan: Plan) -> float:
    n = 8192 if plan.device == 'cuda' else 512
    a = torch.randn(n, n, device=plan.device).to(DTYPES[plan.dtypes[0]])
    return 2 * n**3 / seconds_of(lambda: a @ a, plan.device)


def seconds_of(work: Callable[[], object], device: str, rounds: int = 10) -> float:
    times = []
    for _ in range(rounds + 2):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return median(times[2:])


def synchronise(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()
