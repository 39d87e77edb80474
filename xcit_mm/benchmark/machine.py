"""The machine: its description, its free memory, and a limit on what a process allocates."""

import os
import platform
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import torch

STATUS = Path('/proc/self/status')


def describe(device: str) -> str:
    """Processor or GPU, threads and versions, in one line."""
    words = [_processor(), f'{os.cpu_count()} cores', f'{torch.get_num_threads()} threads']
    if device == 'cuda':
        words.insert(0, torch.cuda.get_device_name())
    return ', '.join([*words, f'PyTorch {torch.__version__}', f'Python {platform.python_version()}'])


def _processor() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def available_memory(device: str) -> Optional[int]:
    """Free memory in bytes; None if the system does not report it."""
    if device == 'cuda':
        return torch.cuda.mem_get_info()[0]
    meminfo = Path('/proc/meminfo')
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')), None)


def process_memory(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f'{field}:'))
    return int(line.split()[1]) * 1024


@contextmanager
def memory_limit(limit: Optional[int], device: str):
    """Raise inside once the process allocates more than ``limit`` bytes above the present, instead of being killed.

    Without effect if ``limit`` is None, and for the CPU of a system other than Linux.
    """
    if limit is None or device == 'cpu' and not STATUS.exists():
        yield
    elif device == 'cuda':
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min((torch.cuda.memory_reserved() + limit) / total, 1.0))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    else:
        import resource

        before = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (process_memory('VmData') + limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)


def reason(error: BaseException) -> str:
    """An error in one line; every kind of out-of-memory error in the same words."""
    words = str(error).lower()
    if isinstance(error, MemoryError) or any(w in words for w in ("can't allocate", 'out of memory', 'bad_alloc')):
        return 'out of memory'
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else "no message"}'[:200]
