"""Parameters and MACs, counted on the meta device: only shapes are computed."""

import math
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Optional

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UsageError
from ..models import xcit

CONVENTION = (
    'MACs (multiply-accumulates) as mmengine.analysis.get_model_complexity_info counts them, on the backbone without '
    'its head, for one image: one for each multiply-accumulate of a matmul or convolution (bias not counted), 5 for '
    'each element of a layer norm and 2 of a batch norm; activations, softmax, sums, scalings and the l2 norm are not '
    'counted.'
)

# PyTorch infers the shapes of these by decompositions in Python, which would take half of the time.
SHAPED_LIKE_INPUT = ('gelu', 'native_batch_norm', 'native_layer_norm')


class MultiplyAdds(TorchDispatchMode):
    """Count the MACs of everything that runs inside.

    MMEngine's own counter reads a TorchScript trace, which needs a real forward pass (minutes for the large models),
    and skips operators that it does not know. This one sees every operator that is executed.

    Attributes:
        count (int): MACs.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        out = _like_input(name, args) if name in SHAPED_LIKE_INPUT else func(*args, **(kwargs or {}))
        self.count += _multiply_adds(name, args, out)
        return out


def _like_input(operator: str, args: tuple):
    out = torch.empty_like(args[0])
    if operator == 'gelu':
        return out
    return out, out.new_empty(0), out.new_empty(0)  # with the statistics, which only a backward pass reads


def _multiply_adds(operator: str, args: tuple, out) -> int:
    if operator in ('mm', 'bmm'):
        return args[0].numel() * args[1].shape[-1]
    if operator == 'addmm':
        return args[1].numel() * args[2].shape[-1]
    if operator == 'convolution':
        image, weight, transposed = args[0], args[1], args[6]
        positions = (image if transposed else out).shape
        return positions[0] * math.prod(positions[2:]) * weight.numel()
    if operator == 'native_layer_norm':
        return 5 * args[0].numel()
    if 'batch_norm' in operator:
        return 2 * args[0].numel()
    return 0


def count_multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """MACs of a model in eval mode for one image.

    Args:
        model (nn.Module): On the meta device.
        height, width (int): Pixels.

    Returns:
        int: MACs.
    """
    model.train(False)
    counter = MultiplyAdds()
    with torch.no_grad(), counter:
        model(torch.empty(1, 3, height, width, device='meta'))
    return counter.count


@contextmanager
def without_memory():
    """Build models inside on the meta device, without drawing initial weights, which takes half of the time."""
    with torch.device('meta'), _NoStartValues():
        yield


class _NoStartValues(TorchDispatchMode):
    OPERATORS = ('uniform_', 'normal_', 'erfinv_', 'mul_', 'add_', 'clamp_', 'fill_', 'zero_')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.OPERATORS:
            return args[0]
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=None)
def backbone_multiply_adds(arch: str, patch_size: int, out_type: str, height: int, width: int) -> int:
    """MACs of the layers of this project's backbone; with 'pyramid', those of the adapter too."""
    with without_memory():
        model = xcit.XCiT(arch, patch_size, out_type)
    return count_multiply_adds(model, height, width)


@lru_cache(maxsize=None)
def mmpretrain_multiply_adds(arch: str, patch_size: int, height: int, width: int) -> Optional[int]:
    """MACs of MMPretrain's backbone; None without MMPretrain."""
    if not find_spec('mmpretrain'):
        return None
    from mmpretrain.models.backbones import XCiT

    settings = {'tokens_norm': True, **xcit.ARCHS[arch], 'patch_size': patch_size, 'img_size': (height, width)}
    with without_memory():
        model = XCiT(**settings)
    return count_multiply_adds(model, height, width)


class Parameters(NamedTuple):
    """Parameters of a whole model, and those of them in the multi-scale adapter (0 for a classifier)."""

    total: int
    adapter: int


def count_parameters(config: Path) -> Optional[Parameters]:
    """Parameters of a config's model, counted on the meta device; None if its library is not installed.

    Raises:
        UsageError: If there is no such config.
    """
    if not config.is_file():
        raise UsageError(f'there is no config {config}; the model zoo needs the configs/ folder of the repository')
    cfg = Config.fromfile(config)
    if not find_spec(cfg.default_scope):
        return None
    with DefaultScope.overwrite_default_scope(cfg.default_scope), without_memory():
        model = MODELS.build(cfg.model)
    adapter = getattr(model.backbone, 'pyramid', None)
    return Parameters(_numel(model), _numel(adapter) if adapter else 0)


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
