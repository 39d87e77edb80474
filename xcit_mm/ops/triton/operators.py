"""The branches as PyTorch's operators: with autograd, and for torch.compile opaque ones ``torch.ops.xcit_mm_triton.*``.

Each of :mod:`lpi`, :mod:`mlp`, :mod:`token_form` and :mod:`xca` has these functions of the same arguments.

``forward``
    [x + keep gamma branch(LN(x)), in the type of x; and, if it keeps them, tensors for the backward pass].
``like``
    Empty tensors like these.
``backward``, with the gradient of the first and the kept tensors before the arguments
    [gradient of x; of the weight and bias of the layer norm, (2, C) in fp32; of each other weight, fp32].
``plain``
    The first, differentiable as often as one likes.

The arguments are tokens x (B, N, C); the branch's weights, of which those of the layer norm come first and LayerScale
last; stochastic depth's factors (B, 1, 1) or None; eps of the layer norm; the type of matmuls and of what is between
them (sums are fp32); whether tensors are kept; and what the branch needs besides.

The operators are opaque (``custom_op``, from PyTorch 2.4 on), not ``triton_op``: their tiles depend on the sizes of
tensors, so that a compiler that looked into them would compile a model anew for every size of image. In eager mode they
would take several times as long to call as an autograd function.
"""

from typing import Any, Callable, List, Tuple

import torch
from torch import Tensor

from ..private import HAS_CUSTOM_OPS
from ..second_order import twice_differentiable
from . import lpi, mlp, stem, token_form, xca

BRANCHES = dict(lpi=lpi, mlp=mlp, token_form=token_form, xca=xca)
ARGUMENTS = 'Tensor x, Tensor[] weights, Tensor? keep, float eps, ScalarType dtype, bool keeps'
MORE_ARGUMENTS = dict(lpi=', SymInt height, float bn_eps, Tensor? bn_mean, Tensor? bn_var')


class Branch(torch.autograd.Function):
    """``forward`` of a branch with its ``backward``, from (x, *weights, the other arguments, the branch)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tuple[Tensor, ...]:
        *weights, others, branch = rest
        outs = branch.forward(x, weights, *others)
        _save(ctx, (x, weights, *others), outs)
        ctx.dtype, ctx.branch = others[2], branch
        return tuple(outs)

    @staticmethod
    def arguments(ctx: Any) -> tuple:
        _, x, weights, *others = _saved(ctx)
        return (x, *weights, others, ctx.branch)

    @staticmethod
    def reference(x: Tensor, *rest: Any) -> Tensor:
        *weights, others, branch = rest
        return branch.plain(x, weights, *others)

    @twice_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple:
        by_x, by_norm, *grads = ctx.branch.backward(grad, *_saved(ctx))
        return (by_x, *by_norm, *grads, None, None)


def _save(ctx: Any, inputs: tuple, output: List[Tensor]) -> None:
    """Keep the arguments of a branch, and what its forward pass returned for the backward pass."""
    x, weights, *others = inputs
    ctx.number = len(weights)
    ctx.constants = [None if isinstance(value, Tensor) else value for value in others]
    tensors = [value if isinstance(value, Tensor) else None for value in others]
    ctx.save_for_backward(x, *tensors, *weights, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> tuple:
    """Kept tensors, x, the weights and the other arguments."""
    x, *tensors = ctx.saved_tensors
    first = len(ctx.constants)
    last = first + ctx.number
    others = [value if tensor is None else tensor for value, tensor in zip(ctx.constants, tensors)]
    return (tensors[last:], x, tensors[first:last], *others)


def _gradients_like(grad: Tensor, kept: List[Tensor], x: Tensor, weights: List[Tensor], *_: Any) -> List[Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    shapes = [(2, x.shape[2]), *(weight.shape for weight in weights[2:])]
    return [out, *(x.new_empty(shape, dtype=torch.float32) for shape in shapes)]


def _register(name: str, branch: Any) -> None:
    arguments = ARGUMENTS + MORE_ARGUMENTS.get(name, '')

    def operator(name: str, function: Callable, arguments: str, like: Callable) -> Any:
        schema = f'({arguments}) -> Tensor[]'
        found = torch.library.custom_op(f'xcit_mm_triton::{name}', function, mutates_args=(), schema=schema)
        found.register_fake(like)
        return found

    forward = operator(name, branch.forward, arguments, branch.like)
    backward = operator(
        f'{name}_backward', branch.backward, f'Tensor grad, Tensor[] kept, {arguments}', _gradients_like
    )

    def differentiate(ctx: Any, grads: List[Tensor]) -> tuple:
        by_x, by_norm, *by_weights = backward(grads[0], *_saved(ctx))
        return (by_x, [*by_norm, *by_weights], *(None for _ in ctx.constants))

    forward.register_autograd(differentiate, setup_context=_save)


def _like_map(image: Tensor, weights: List[Tensor], norms: List[Tensor], eps: List[float], dtype: torch.dtype):
    height, width = image.shape[2:]
    for _ in weights:
        height, width = (height + 1) // 2, (width + 1) // 2
    return image.new_empty(len(image), height, width, len(weights[-1]), dtype=dtype)


if HAS_CUSTOM_OPS:
    for name, branch in BRANCHES.items():
        _register(name, branch)
    torch.library.custom_op('xcit_mm_triton::embed_patches', stem.embed_patches, mutates_args=()).register_fake(
        _like_map
    )
