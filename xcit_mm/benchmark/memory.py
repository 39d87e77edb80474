"""Peak memory of one piece of work, in a fresh process: ``python -m xcit_mm.benchmark.memory JSON``."""

import contextlib
import ctypes
import gc
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Optional, Tuple

import torch

from .contenders import Step, as_input, build, make_image, random_weights
from .machine import STATUS, memory_limit, process_memory, reason
from .settings import Setting

MEASURED = (
    'Peak memory: the rise of a fresh process during one piece of work, above what it holds once the model and the '
    'input exist and the model has run on 64x64 pixels. It counts activations, workspaces, the output and in training '
    'the gradients; not the weights, the input and the libraries. On the CPU it is the high-water mark of the resident '
    "set that the Linux kernel keeps, on CUDA that of PyTorch's allocator."
)
WARM_UP_PIXELS = 64


def peak_memory(
    name: str, setting: Setting, limit: Optional[int] = None, timeout: Optional[float] = None
) -> Tuple[Optional[int], str]:
    """Measure in a fresh process.

    Args:
        name (str): Contender.
        setting (Setting): The work.
        limit (int, optional): Bytes that may be taken above the weights; the work is stopped if it needs more.
        timeout (float, optional): Seconds.

    Returns:
        tuple[int or None, str]: Bytes; or None and the reason why they were not measured.
    """
    request = {'name': name, 'setting': asdict(setting), 'limit': limit}
    return ask_process('xcit_mm.benchmark.memory', request, timeout)


def ask_process(module: str, request: dict, timeout: Optional[float] = None) -> Tuple[Optional[int], str]:
    """Run a module that calls :func:`answer` in a fresh process.

    Args:
        module (str): Its name.
        request (dict): What to do, given to it as JSON; with 'limit', in bytes or None.
        timeout (float, optional): Seconds.

    Returns:
        tuple[int or None, str]: See :func:`peak_memory`.
    """
    command = [sys.executable, '-m', module, json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None, f'memory not measured: not done in {timeout:.0f} s'
    if done.returncode == -9:
        return None, 'out of memory: the system killed the process'
    if request.get('limit') and done.returncode in (-signal.SIGSEGV, -signal.SIGABRT):
        # Native code that does not check its allocations.
        return None, _out_of_memory(request['limit'])
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return found['peak'], found['reason']
    except (IndexError, KeyError, ValueError):
        last = (done.stderr.strip().splitlines() or ['no message'])[-1]
        return None, f'memory not measured: the process ended with code {done.returncode}, {last[:150]}'


def answer(measure: Callable[[dict], int]) -> None:
    """In the fresh process: print the bytes measured for the request, or why there are none."""
    request = json.loads(sys.argv[1])
    limit = request['limit']
    peak, why = None, ''
    try:
        peak = measure(request)
    except Exception as error:
        why = reason(error)
        # Out of memory, oneDNN only says that it could not create a primitive.
        if why == 'out of memory' or limit and 'could not create' in why:
            why = _out_of_memory(limit)
        else:
            why = f'memory not measured: {why}'
    print('\n' + json.dumps({'peak': peak, 'reason': why}))


def _out_of_memory(limit: Optional[int]) -> str:
    return 'out of memory' + (f': needs more than {limit / 1e9:.3g} GB' if limit else '')


def rise(work: Callable[[], object], device: str, limit: Optional[int] = None) -> int:
    """Peak memory of one piece of work, in bytes above what this process holds at its start.

    Raises:
        RuntimeError: If the system does not report it, or if more than ``limit`` is needed.
    """
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with memory_limit(limit, 'cuda'):
            work()
            torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not STATUS.exists():
        raise RuntimeError('on the CPU it needs Linux')
    return_free_memory()  # else the work would reuse what the warm-up freed, uncounted
    Path('/proc/self/clear_refs').write_text('5')  # resets the high-water mark
    before = process_memory('VmRSS')
    with memory_limit(limit, 'cpu'):
        work()
    return process_memory('VmHWM') - before


def return_free_memory() -> None:
    """Return the freed memory that glibc keeps to the system; a no-op with other C libraries."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)


def _measure(request: dict) -> int:
    setting = Setting(**request['setting'])
    step = Step(build(request['name'], setting, random_weights(setting.arch, setting.patch_size)), setting)
    image = as_input(make_image(setting), setting)
    # torch.compile specialises on the size, and compiling takes memory of its own.
    step(image if setting.compiled else image[..., :WARM_UP_PIXELS, :WARM_UP_PIXELS])
    step.forget()
    return rise(lambda: step(image), setting.device, request['limit'])


if __name__ == '__main__':
    answer(_measure)
