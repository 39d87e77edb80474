"""Private names of PyTorch: every one that this package uses, probed once, each with something to fall back on.

``MISSING`` lists the names that the installed PyTorch lacks. A test fails when there are any, so that a release which
moves one is noticed; users of that release get the slower, public way.
"""

from functools import lru_cache
from typing import Callable, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MISSING: List[str] = []

try:  # the mode that torch.device is as a context
    from torch.utils._device import DeviceContext
except ImportError:
    DeviceContext = ()
    MISSING.append('torch.utils._device.DeviceContext')


def _find(path: str, default):
    """The object at ``torch.<path>``, or ``default``, noting that it is missing."""
    found = torch
    for name in path.split('.'):
        try:
            found = getattr(found, name)
        except AttributeError:
            MISSING.append(f'torch.{path}')
            return default
    return found


# Hooks. A module's own are in its dictionary; those for all modules are in these.
HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
_GLOBAL_HOOKS = [_find(f'nn.modules.module._global{name}', {}) for name in HOOKS]
_MODULE_CALL = nn.Module.__call__


def has_global_hooks() -> bool:
    """True if somebody hooked, or replaced, the call of all modules."""
    return nn.Module.__call__ is not _MODULE_CALL or any(_GLOBAL_HOOKS)


def is_hooked(module: nn.Module) -> bool:
    """True if a hook of any kind sees this module's inputs, outputs or gradients."""
    return any(module.__dict__.get(name) for name in HOOKS)


# Transformations. Each of these counts or returns what is active on this thread.
_functorch_level = _find('_C._functorch.peek_interpreter_stack', lambda: None)
_dispatch_modes = _find('_C._len_torch_dispatch_stack', lambda: 0)
_function_modes = _find('_C._len_torch_function_stack', lambda: 0)
_function_mode_at = _find('_C._get_function_stack_at', lambda index: None)
_forward_ad = _find('autograd.forward_ad', None)


def is_transformed() -> bool:
    """True inside torch.func, forward-mode AD, and modes that see each operator, such as FLOP counters.

    ``torch.device`` as a context is a mode too, but only looks at factory functions.
    """
    if _functorch_level() is not None or _dispatch_modes() or getattr(_forward_ad, '_current_level', -1) >= 0:
        return True
    return any(not isinstance(_function_mode_at(i), DeviceContext) for i in range(_function_modes()))


_is_legacy_batched = _find('_C._functorch.is_legacy_batchedtensor', lambda tensor: False)


def is_batched(gradient: Tensor) -> bool:
    """True in a backward pass for several gradients at once, by torch.func or by ``is_grads_batched=True``."""
    # The latter has an older vmap, of which the tensor alone tells.
    return _functorch_level() is not None or _is_legacy_batched(gradient)


# Compilers.
_is_compiling = _find('compiler.is_compiling', None) or torch._dynamo.is_compiling


def is_compiling() -> bool:
    """True while torch.compile, or torch.export, records the model."""
    return _is_compiling()


def is_exporting() -> bool:
    """True while torch.export or TorchScript records the model for another program."""
    # Not by torch.compiler.is_exporting(), which torch.compile takes to be true for itself.
    exporting = getattr(getattr(torch, 'compiler', None), '_is_exporting_flag', None)
    return (is_compiling() if exporting is None else exporting) or torch.jit.is_tracing()


# oneDNN, the library of CPUs.
ONEDNN = torch.backends.mkldnn.is_available() and 'CPU capability usage: AVX' in torch.__config__.show()
ONEDNN_BF16 = bool(ONEDNN and _find('ops.mkldnn._is_mkldnn_bf16_supported', bool)())
# AMX: tiles for matmuls in half precision, which want images that are not a single row.
AMX = ONEDNN_BF16 and bool(getattr(torch.cpu, '_is_amx_tile_supported', bool)())
_conv_pointwise = _find('ops.mkldnn._convolution_pointwise', None)
_reorder_weight = _find('ops.mkldnn._reorder_convolution_weight', None)


def conv_pointwise(image: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, gelu: bool) -> Tensor:
    """Convolution with GELU as its epilogue, by the operator that Inductor calls; see :func:`has_conv_pointwise`."""
    epilogue = ('gelu', [], 'none') if gelu else ('none', [], '')  # 'none' is GELU without an approximation
    return _conv_pointwise(image, weight, bias, [padding] * 2, [stride] * 2, [1, 1], 1, *epilogue)


def packed_weight(weight: Tensor, height: int, width: int) -> Tensor:
    """The weight (D, C, 1, 1) of a convolution in oneDNN's blocked layout, for images (1, C, height, width)."""
    return _reorder_weight(weight, [0, 0], [1, 1], [1, 1], 1, [1, weight.shape[1], height, width])


@lru_cache(maxsize=None)
def has_conv_pointwise(dtype: torch.dtype) -> bool:
    """True if the two functions above give the right numbers on this CPU: tried once for each type."""
    if not ONEDNN or not (dtype == torch.float32 or dtype == torch.bfloat16 and ONEDNN_BF16):
        return False
    image, weight = torch.tensor([1.0, -2.0], dtype=dtype).view(1, 1, 1, 2), torch.ones(1, 1, 1, 1, dtype=dtype)
    expected = image.float() + 1
    try:
        plain, gelu = (conv_pointwise(image, packed_weight(weight, 1, 2), weight.flatten(), 1, 0, g) for g in (0, 1))
    except (AttributeError, RuntimeError, TypeError):
        return False
    close = dict(rtol=1e-2, atol=1e-6)
    return torch.allclose(plain.float(), expected, **close) and torch.allclose(gelu.float(), F.gelu(expected), **close)


_linear_pointwise = _find('ops.mkldnn._linear_pointwise', None)


def inner_product(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """oneDNN's inner product x W^T + b, which takes the matrix as it lies; see :func:`has_inner_product`."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # oneDNN reads a matrix with gaps by its reference code, 500 times as slow
    return _linear_pointwise(x, weight, bias, 'none', [], '')


@lru_cache(maxsize=None)
def has_inner_product() -> bool:
    """True if the function above gives the right numbers on this CPU: tried once."""
    try:
        return (
            ONEDNN and inner_product(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]]), torch.ones(1)).item() == 2
        )
    except (AttributeError, RuntimeError, TypeError):
        return False


@torch.compiler.assume_constant_result  # the compiler would look into it, and break the graph at ``item``
def has_wide_bmm(dtype: torch.dtype, device: str) -> bool:
    """True if a batched matmul of this half type can return its fp32 sums: CUDA from PyTorch 2.8 on. Tried once."""
    return _try_wide_bmm(dtype, device)


@lru_cache(maxsize=None)
def _try_wide_bmm(dtype: torch.dtype, device: str) -> bool:
    tokens = torch.ones(1, 1, 1, dtype=dtype, device=device)
    try:
        return torch.bmm(tokens, tokens, out_dtype=torch.float32).item() == 1
    except (TypeError, RuntimeError, NotImplementedError):
        return False


# Operators of our own, which torch.compile calls and does not look into: from PyTorch 2.4 on.
HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')


def register(function: Callable, fake: Callable, mutates: tuple = ()) -> None:
    """Register an opaque custom op ``torch.ops.xcit_mm.<function's name>`` (no-op before PyTorch 2.4).

    Args:
        function (Callable): With annotated arguments.
        fake (Callable): Tensors like its results, from the same arguments.
        mutates (tuple[str]): Arguments that it changes.
    """
    if HAS_CUSTOM_OPS:
        torch.library.custom_op(f'xcit_mm::{function.__name__}', function, mutates_args=mutates).register_fake(fake)
