"""Sharded models (FSDP)."""

import os
from contextlib import suppress
from typing import Optional

import torch
from mmengine.device import get_device
from mmengine.dist import is_main_process
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..compat import FSDPStrategy as MMEngineFSDPStrategy
from ..errors import UsageError
from ..registry import STRATEGIES
from ..resilience.atomic_writing import UNFINISHED, give_name


@STRATEGIES.register_module()
class FSDPStrategy(MMEngineFSDPStrategy):
    """MMEngine's FSDP strategy that also resumes under PyTorch >= 2.1, trains on CPUs, and writes files atomically.

    Args:
        *args, **kwargs: As for :class:`mmengine._strategy.FSDPStrategy`.

    Raises:
        UsageError: Without an accelerator, if this PyTorch's FSDP needs one.
    """

    model_wrapper: Optional[dict]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if get_device() != 'cpu':
            return
        if not hasattr(torch.cpu, 'current_device'):
            raise UsageError(
                f'FSDP of PyTorch {torch.__version__} needs an accelerator, and none was found; newer versions train '
                f'on the CPU too. Without configs/_base_/strategies/fsdp.py each process holds the whole model'
            )
        # MMEngine names a CUDA device.
        self.model_wrapper = {'type': 'MMFullyShardedDataParallel', **(self.model_wrapper or {}), 'device_id': 'cpu'}
        # It moves weights to the CPU for a checkpoint; of those that are there, FSDP frees the memory it then reads.
        for settings in (self.state_dict_config, self.optim_state_dict_config):
            settings.offload_to_cpu = False

    def save_checkpoint(self, filename: str, **kwargs) -> None:
        """A single file is written to a temporary file and renamed."""
        if not self._is_full_state_dict():
            super().save_checkpoint(filename, **kwargs)
            return
        aside = f'{filename}{UNFINISHED}'
        try:
            super().save_checkpoint(aside, **kwargs)
            if is_main_process():
                give_name(aside, filename)
        except OSError:
            with suppress(OSError):
                os.remove(aside)
            raise

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load a full optimizer state, of which each process keeps its shard."""
        # MMEngine gives the arguments in PyTorch 2.0's order, which has changed.
        part = FullyShardedDataParallel.optim_state_dict_to_load(
            optim_state_dict=state_dict, model=self.model, optim=self.optim_wrapper.optimizer
        )
        self.optim_wrapper.load_state_dict(part)


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP wrapping policy: one unit per block of XCiT.

    XCA and the other parts of a block use weights of their layers without calling these, so smaller units do not work.

    Args:
        module (nn.Module): A part of the model.
        recurse (bool): Whether FSDP asks about the parts of the module or about the module.
        nonwrapped_numel (int): Parameters of the module that no smaller unit has.
    """
    from ..models.xcit import ClassAttentionBlock, XCABlock

    return recurse or isinstance(module, (XCABlock, ClassAttentionBlock))
