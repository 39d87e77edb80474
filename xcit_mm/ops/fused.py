"""The residual branches by the kernels of :mod:`xcit_mm.ops.triton`: with a backward pass, without, or as operators.

The patch embedding has none with a backward pass.

x is the residual stream (B, N, C), contiguous; norm the weight, bias and eps of its layer norm; gamma LayerScale (C);
keep stochastic depth's factors (B, 1, 1) or None; dtype that of matmuls. All give a new stream.
"""

from typing import Any, Callable, Iterable, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .private import is_compiling
from .triton import LARGEST_HEAD
from .untouched import has_bias, is_conv

Norm = Tuple[Tensor, Tensor, float]


def fits_lpi(x: Tensor, lpi: nn.Module) -> bool:
    """True if LPI has the published convolutions, and a batch norm with statistics of the batch or running ones."""
    convs, bn = (lpi.conv1, lpi.conv2), lpi.bn
    if not all(is_conv(conv, 3, depthwise=True) for conv in convs) or not has_bias(*convs):
        return False
    if not isinstance(bn, _BatchNorm) or not bn.affine:
        return False
    # While compiling, a batch norm in training would have to change its running statistics.
    many = x.shape[0] * x.shape[1] > 1 and not is_compiling()
    return many if bn.training else bn.running_mean is not None


def fits_heads(temperature: Tensor, dim: int) -> bool:
    """True if a head of XCA fits the registers of the token form's kernels, which hold d x d sums."""
    return dim <= LARGEST_HEAD * temperature.shape[0]


def add_xca(
    x: Tensor,
    norm: Norm,
    weights: Tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    gamma: Tensor,
    keep: Optional[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """x + keep * gamma * XCA(LN(x)) in its covariance form; the weights are those of :func:`~.xca.affine_map`."""
    if torch.is_grad_enabled():
        from .triton.xca import AddXca

        return AddXca.apply(x, *norm, *weights, gamma, keep, dtype)
    return _function('xca', 'add_xca')(x, *norm, *weights, gamma, keep, dtype)


def add_xca_by_tokens(
    x: Tensor,
    norm: Norm,
    weights: Tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    gamma: Tensor,
    keep: Optional[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """x + keep * gamma * XCA(LN(x)) in its token form; see :func:`add_xca`."""
    if torch.is_grad_enabled():
        from .triton.token_form import AddTokenForm

        return AddTokenForm.apply(x, *norm, *weights, gamma, keep, dtype)
    return _function('token_form', 'add_token_form')(x, *norm, *weights, gamma, keep, dtype)


def add_lpi(
    x: Tensor, norm: Norm, lpi: nn.Module, gamma: Tensor, height: int, keep: Optional[Tensor], dtype: torch.dtype
) -> Tensor:
    """x + keep * gamma * LPI(LN(x)) for the tokens of an image of that many rows; moves BN's running statistics."""
    bn = lpi.bn
    first = *norm, lpi.conv1.weight, lpi.conv1.bias, bn.weight, bn.bias
    second = bn.eps, lpi.conv2.weight, lpi.conv2.bias, gamma, height, keep, dtype
    if not bn.training and not torch.is_grad_enabled():
        return _function('lpi', 'add_lpi')(x, *first, bn.running_mean, bn.running_var, *second)
    from .triton.lpi import add_lpi_training

    if not bn.training:
        return add_lpi_training(x, *first, bn.running_mean, bn.running_var, *second)[0]
    out, mean, var = add_lpi_training(x, *first, None, None, *second, group=_group(bn))
    if bn.track_running_stats and bn.running_mean is not None:
        with torch.no_grad():
            bn.num_batches_tracked.add_(1)
            momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
            bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
            bn.running_var.lerp_(var.to(bn.running_var.dtype), momentum)
    return out


def _group(bn: _BatchNorm) -> Any:
    """The processes that a batch norm has statistics of, if it is a synchronised one and there are others."""
    if not hasattr(bn, 'process_group') or not (dist.is_available() and dist.is_initialized()):
        return None
    return bn.process_group or dist.group.WORLD


def add_mlp(
    x: Tensor,
    norm: Norm,
    weights: Tuple[Tensor, Tensor, Tensor, Tensor],
    gamma: Tensor,
    keep: Optional[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """x + keep * gamma * MLP(LN(x)); weights and biases of its two layers."""
    if torch.is_grad_enabled():
        from .triton.mlp import AddMlp

        return AddMlp.apply(x, *norm, *weights, gamma, keep, dtype)
    return _function('mlp', 'add_mlp')(x, *norm, *weights, gamma, keep, dtype)


def embed_patches(image: Tensor, steps: Sequence[Iterable[Any]], dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) -> (B, rows, columns, D) by steps of a convolution and its batch norm, with running statistics."""
    norms = [t for _, bn in steps for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var)]
    weights, eps = [conv.weight for conv, _ in steps], [bn.eps for _, bn in steps]
    return _function('stem', 'embed_patches')(image, weights, norms, eps, dtype)


def _function(part: str, name: str) -> Callable:
    """One without a backward pass: itself, or while compiling its operator."""
    from .triton import lpi, mlp, stem, token_form, xca

    if is_compiling():
        return getattr(torch.ops.xcit_mm_triton, name)
    return getattr(dict(lpi=lpi, mlp=mlp, stem=stem, token_form=token_form, xca=xca)[part], name)
