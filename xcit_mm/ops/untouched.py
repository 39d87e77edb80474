"""Whether layers still are what this package built, so that their weights say all about them.

Hooks of every kind, a ``forward`` replaced on an instance or a class, another class (LoRA, quantisation,
parametrizations, sharding), other settings, tensors of another type: any of it, and the layers are called themselves.
"""

from typing import Callable, Dict, Type

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .private import has_global_hooks, is_hooked

TENSORS = (Tensor, nn.Parameter)
_BUILT = (
    *(nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Sequential),
    *(nn.BatchNorm2d, nn.SyncBatchNorm),
)
_FORWARDS = {kind: kind.forward for kind in _BUILT}
_CHILDREN: Dict[type, Dict[str, type]] = {}
_WITH_WEIGHTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm, _BatchNorm)


def published(**children: type) -> Callable[[Type[nn.Module]], Type[nn.Module]]:
    """Decorate a class of modules whose forward pass :mod:`xcit_mm.ops` knows; subclasses do not count.

    Args:
        **children (type): The classes of its children.
    """

    def decorate(kind: Type[nn.Module]) -> Type[nn.Module]:
        _FORWARDS[kind], _CHILDREN[kind] = kind.forward, children
        return kind

    return decorate


def is_untouched(module: nn.Module) -> bool:
    """True if nobody changed this module, or those that its class declares, or looks at them."""
    kind = type(module)
    # MMEngine's revert_sync_batchnorm leaves a class of its own with PyTorch's forward pass.
    known = _FORWARDS.get(kind, _BatchNorm.forward if issubclass(kind, _BatchNorm) else None)
    if known is not kind.forward or 'forward' in module.__dict__ or is_hooked(module):
        return False
    if isinstance(module, nn.Dropout):
        return not (module.training and module.p)
    if isinstance(module, nn.GELU):
        return module.approximate == 'none'
    if isinstance(module, nn.Sequential):
        return all(map(is_untouched, module))
    if isinstance(module, _WITH_WEIGHTS):
        weight, bias = module._parameters.get('weight'), module._parameters.get('bias')
        return type(weight) in TENSORS and (bias is None or type(bias) in TENSORS)
    if any(type(parameter) not in TENSORS for parameter in module._parameters.values()):
        return False
    for name, expected in _CHILDREN.get(kind, {}).items():
        child = module._modules.get(name)
        if not isinstance(child, expected) or not is_untouched(child):
            return False
    return True


def are_untouched(*modules: nn.Module) -> bool:
    """True if all of these are, and no hook is on all modules."""
    return not has_global_hooks() and all(map(is_untouched, modules))


def has_bias(*layers: nn.Module) -> bool:
    """True if all of them have one."""
    return all(layer._parameters.get('bias') is not None for layer in layers)


def is_conv(conv: nn.Module, kernel: int, stride: int = 1, depthwise: bool = False) -> bool:
    """True if it is a 2-d convolution of these settings, padded to keep the size but for the stride."""
    if not isinstance(conv, nn.Conv2d):
        return False
    found = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode, conv.groups
    pad, groups = kernel // 2, conv.in_channels if depthwise else 1
    return found == ((kernel, kernel), (stride, stride), (pad, pad), (1, 1), 'zeros', groups)


def has_statistics(norm: nn.Module) -> bool:
    """True if a batch norm uses its running statistics."""
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None and norm.affine


def is_deconv(conv: nn.Module) -> bool:
    """True if it is a 2x2 deconvolution of stride 2."""
    if not isinstance(conv, nn.ConvTranspose2d):
        return False
    found = conv.kernel_size, conv.stride, conv.padding, conv.output_padding, conv.dilation, conv.groups
    return found == ((2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1)
