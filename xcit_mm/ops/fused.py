"""The residual branches by the kernels of :mod:`xcit_mm.ops.triton`: with a backward pass, without, or as operators.

The patch embedding has none with a backward pass.

x is the residual stream (B, N, C), contiguous; norm the weight, bias and eps of its layer norm; gamma LayerScale (C);
keep stochastic depth's factors (B, 1, 1) or None; dtype that of matmuls. All give a new stream.
"""

from typing import Any, Iterable, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .private import is_compiling
from .triton import LARGEST_HEAD
from .untouched import has_bias, is_conv

Norm = Tuple[Tensor, Tensor, float]


def fits(part: str, x: Tensor, branch: nn.Module) -> bool:
    """True if the kernels compute this branch, 'xca', 'lpi' or 'mlp', as it is."""
    if part == 'mlp':
        return has_bias(branch.fc1, branch.fc2)
    if part == 'xca':
        # Programs hold the d x d sums of a head.
        return has_bias(branch.qkv, branch.proj) and x.shape[-1] <= LARGEST_HEAD * len(branch.temperature)
    convs, bn = (branch.conv1, branch.conv2), branch.bn
    if not all(is_conv(conv, 3, depthwise=True) for conv in convs) or not has_bias(*convs):
        return False
    if not isinstance(bn, _BatchNorm) or not bn.affine:
        return False
    if not bn.training:
        return bn.running_mean is not None
    # The compiler would have to look into the messages between processes.
    return x.shape[0] * x.shape[1] > 1 and not (is_compiling() and _is_of_several_processes(bn))


def add(
    name: str,
    x: Tensor,
    norm: Norm,
    weights: Sequence[Tensor],
    gamma: Tensor,
    keep: Optional[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """x + keep * gamma * branch(LN(x)).

    Args:
        name (str): 'mlp', 'xca' or 'token_form': the forms of XCA.
        weights (Sequence[Tensor]): Of both layers of the MLP, or as :func:`.xca.affine_map` takes them.
    """
    return _run(name, x, norm, weights, gamma, keep, dtype)[0]


def add_lpi(
    x: Tensor, norm: Norm, lpi: nn.Module, gamma: Tensor, height: int, keep: Optional[Tensor], dtype: torch.dtype
) -> Tensor:
    """x + keep * gamma * LPI(LN(x)) for the tokens of an image of that many rows; moves BN's running statistics."""
    bn = lpi.bn
    weights = lpi.conv1.weight, lpi.conv1.bias, bn.weight, bn.bias, lpi.conv2.weight, lpi.conv2.bias
    running = (None, None) if bn.training else (bn.running_mean, bn.running_var)
    group = (bn.process_group or dist.group.WORLD) if bn.training and _is_of_several_processes(bn) else None
    out, *kept = _run('lpi', x, norm, weights, gamma, keep, dtype, height, bn.eps, *running, group=group)
    if bn.training and bn.track_running_stats and bn.running_mean is not None:
        mean, _, var, _ = kept[-1]
        with torch.no_grad():
            bn.num_batches_tracked.add_(1)
            for moving, value in ((bn.running_mean, mean), (bn.running_var, var)):
                # Without a momentum it is the average of all batches.
                momentum = bn.num_batches_tracked.to(moving).reciprocal() if bn.momentum is None else bn.momentum
                moving.lerp_(value.to(moving.dtype), momentum)
    return out


def _is_of_several_processes(bn: _BatchNorm) -> bool:
    """True if a batch norm is a synchronised one, and there are others to synchronise with."""
    if not hasattr(bn, 'process_group') or not (dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size(bn.process_group) > 1


def _run(
    name: str,
    x: Tensor,
    norm: Norm,
    weights: Sequence[Tensor],
    gamma: Tensor,
    keep: Optional[Tensor],
    dtype: torch.dtype,
    *settings: Any,
    group: Any = None,
) -> Sequence[Tensor]:
    """What a branch's forward pass returns, see :mod:`.triton.operators`; differentiable where that is wanted."""
    from .triton import operators

    weights = [*norm[:2], *weights, gamma]
    keeps = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
    others = keep, norm[2], dtype, keeps, *settings
    if is_compiling():
        return getattr(torch.ops.xcit_mm_triton, name)(x, weights, *others)
    branch = operators.BRANCHES[name] if group is None else operators.lpi.synchronised(group)
    if keeps:
        return operators.Branch.apply(x, *weights, others, branch)
    return branch.forward(x, weights, *others)


def embed_patches(image: Tensor, steps: Sequence[Iterable[Any]], dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) -> (B, rows, columns, D) by steps of a convolution and its batch norm, with running statistics."""
    from .triton import operators

    norms = [t for _, bn in steps for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var)]
    weights, eps = [conv.weight for conv, _ in steps], [bn.eps for _, bn in steps]
    run = torch.ops.xcit_mm_triton.embed_patches if is_compiling() else operators.stem.embed_patches
    return run(image, weights, norms, eps, dtype)
