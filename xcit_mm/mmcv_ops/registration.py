"""What all operators have in common: how they are registered, and in which precision they run."""

import contextlib
import functools
from typing import Any, Callable, ContextManager, Dict, Iterator

import torch
from torch import Tensor

# Operator -> the library that computes it, 'torchvision' or 'PyTorch'.
OPERATORS: Dict[str, str] = {}


def operator(source: str) -> Callable:
    """Register a function as mmcv's operator of the same name.

    It runs as compiled code would: no gradients are recorded, and autocast does not change its dtypes. Where
    deterministic algorithms are required and it has none, PyTorch warns instead of raising an error.

    Args:
        source (str): 'torchvision' or 'PyTorch'.
    """

    def register(function: Callable) -> Callable:
        OPERATORS[function.__name__] = source

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            device = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).device.type
            with torch.no_grad(), _no_autocast(device), _deterministic_warns():
                return function(*args, **kwargs)

        return call

    return register


def wide(*tensors: Tensor) -> tuple:
    """Cast tensors to double if the first is double, else to float32; half precision is computed in float32."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return tuple(tensor.to(dtype) for tensor in tensors)


def _no_autocast(device: str) -> ContextManager:
    return torch.autocast(device, enabled=False) if device in ('cpu', 'cuda') else contextlib.nullcontext()


@contextlib.contextmanager
def _deterministic_warns() -> Iterator[None]:
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if strict:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        if strict:
            torch.use_deterministic_algorithms(True)
