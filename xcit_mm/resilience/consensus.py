"""Decisions that all processes of a run take together (small all-reduces over gloo)."""

from functools import lru_cache

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size


@lru_cache(maxsize=1)
def _cpu_group(default):
    """A gloo process group for CPU tensors, so that no process has to synchronise its GPU."""
    return default if dist.get_backend(default) == 'gloo' else dist.new_group(backend='gloo')


def any_process(condition: bool) -> bool:
    """True if the condition holds in at least one process. A collective: every process calls it."""
    return smallest(0 if condition else 1) == 0


def smallest(number: int) -> int:
    """The minimum over all processes. A collective: every process calls it."""
    if get_world_size() == 1:
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, dist.ReduceOp.MIN, _cpu_group(dist.group.WORLD))
    return int(value)
