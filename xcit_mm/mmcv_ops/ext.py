"""What mmcv imports as ``mmcv._ext``: the operators of this package, and an error for each of the others."""

from typing import Any, Callable

import torch
import torchvision

from .attention import *  # noqa: F403
from .deform import *  # noqa: F403
from .focal import *  # noqa: F403
from .nms import *  # noqa: F403
from .polygons import *  # noqa: F403
from .registration import OPERATORS
from .resampling import *  # noqa: F403
from .roi import *  # noqa: F403
from .rotated import *  # noqa: F403
from .rotated_features import *  # noqa: F403

__all__ = [*OPERATORS, 'get_compiler_version', 'get_compiling_cuda_version']

COMPILE = (
    'python -m xcit_mm.mmcv_ops uninstall, then compile mmcv: MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps '
    '--no-cache-dir --no-build-isolation onedl-mmcv (or mmcv), with the version you have'
)


def get_compiler_version() -> str:
    """For :func:`mmcv.ops.get_compiler_version`, which reports of environments print."""
    return f'none: operators of torchvision {torchvision.__version__} and PyTorch, by xcit_mm.mmcv_ops'


def get_compiling_cuda_version() -> str:
    """The CUDA version of PyTorch and torchvision, as the compiled operators would give theirs."""
    return torch.version.cuda or 'not available'


def __getattr__(name: str) -> Callable:
    """An operator that is missing here. mmcv looks all of them up on import, so the error comes with the call."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*_: Any, **__: Any) -> None:
        from ..errors import UsageError

        raise UsageError(f"mmcv's operator {name} is compiled code, which is not installed here. For it: {COMPILE}")

    missing.__name__ = name
    return missing
