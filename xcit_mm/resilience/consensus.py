"""Decisions that all processes of a run take together."""

from functools import lru_cache

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size


@lru_cache(maxsize=1)
def _cpu_group(default):
    """A group for tensors on the CPU, so that no process waits for its accelerator."""
    return default if dist.get_backend(default) == 'gloo' else dist.new_group(backend='gloo')


def any_process(condition: bool) -> bool:
    """Whether the condition holds in any process of the run. All of them call it at the same time."""
    return smallest(0 if condition else 1) == 0


def smallest(number: int) -> int:
    """The smallest of the numbers that the processes give. All of them call it at the same time."""
    if get_world_size() == 1:
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, dist.ReduceOp.MIN, _cpu_group(dist.group.WORLD))
    return int(value)
