"""Peak memory of one piece of work, in a fresh process: ``python -m xcit_mm.benchmark.memory JSON``."""

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Optional, Tuple

import torch

from .contenders import Step, as_input, build, make_image, random_weights
from .machine import STATUS, memory_limit, process_memory, reason
from .settings import Setting

MEASURED = (
    'Peak memory: how far a fresh process rises, in one piece of work, above what it has when the model and the input '
    'exist and the model has run once on 64x64 pixels. So activations, workspaces, the output and in training the '
    'gradients; not the weights, the input and the libraries. On the CPU the high-water mark of the resident set as '
    "the Linux kernel keeps it, on CUDA that of PyTorch's allocator."
)
WARM_UP_PIXELS = 64


def peak_memory(
    name: str, setting: Setting, limit: Optional[int] = None, timeout: Optional[float] = None
) -> Tuple[Optional[int], str]:
    """Start the process and read its answer.

    Args:
        name (str): Contender.
        setting (Setting): The work.
        limit (int, optional): Bytes that may be taken above the weights; the work is stopped if it needs more.
        timeout (float, optional): Seconds.

    Returns:
        tuple[int or None, str]: Bytes; or None and the reason why there is no number.
    """
    request = json.dumps({'name': name, 'setting': asdict(setting), 'limit': limit})
    command = [sys.executable, '-m', 'xcit_mm.benchmark.memory', request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None, f'memory not measured: not done in {timeout:.0f} s'
    if done.returncode == -9:
        return None, 'out of memory: the system ended the process'
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        return answer['peak'], answer['reason']
    except (IndexError, KeyError, ValueError):
        last = (done.stderr.strip().splitlines() or ['no message'])[-1]
        return None, f'memory not measured: the process ended with code {done.returncode}, {last[:150]}'


def _measure(name: str, setting: Setting, limit: Optional[int]) -> int:
    step = Step(build(name, setting, random_weights(setting.arch, setting.patch_size)), setting)
    image = as_input(make_image(setting), setting)
    # Compiled code is made for one size, and making it takes memory that is not the work's.
    step(image if setting.compiled else image[..., :WARM_UP_PIXELS, :WARM_UP_PIXELS])
    step.forget()
    gc.collect()
    if setting.device == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with memory_limit(limit, 'cuda'):
            step(image)
            torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        # It keeps what the warm-up freed, and the work would take that again unseen.
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # sets the high-water mark to the present
    before = process_memory('VmRSS')
    with memory_limit(limit, 'cpu'):
        step(image)
    return process_memory('VmHWM') - before


def main() -> None:
    warnings.filterwarnings('ignore')
    request = json.loads(sys.argv[1])
    setting, limit = Setting(**request['setting']), request['limit']
    peak, why = None, ''
    if setting.device == 'cpu' and not STATUS.exists():
        why = 'memory not measured: on the CPU only on Linux'
    else:
        try:
            peak = _measure(request['name'], setting, limit)
        except Exception as error:
            why = reason(error)
            # Without memory, oneDNN says no more than that it could not create a primitive.
            if why == 'out of memory' or limit and 'could not create' in why:
                why = 'out of memory' + (f': needs more than {limit / 1e9:.3g} GB' if limit else '')
            else:
                why = f'memory not measured: {why}'
    print('\n' + json.dumps({'peak': peak, 'reason': why}))


if __name__ == '__main__':
    main()
