"""Gradients of gradients for autograd functions whose backward pass is written by hand."""

from functools import wraps
from typing import Callable

import torch

from .precision import without_autocast
from .private import is_batched


def twice_differentiable(backward: Callable) -> staticmethod:
    """Decorate the ``backward`` of an autograd function: where its graph is wanted, the reference is differentiated.

    So it is for a batch of gradients (``is_grads_batched=True``, ``jacobian(vectorize=True)``), since vmap takes no
    operation in place.

    PyTorch enables gradients in a backward pass with ``create_graph=True`` only. The function has, beside ``forward``
    and ``backward``, two static methods: ``reference``, with the arguments of ``forward``, and ``arguments``, which
    gives these from the context. ``ctx.dtype`` is the type of matmuls.
    """

    @wraps(backward)
    def wrapped(ctx, *grads):
        create_graph = torch.is_grad_enabled()
        if not create_graph and not any(is_batched(grad) for grad in grads if grad is not None):
            return backward(ctx, *grads)
        function = type(ctx)._forward_cls
        with torch.enable_grad():
            # Views, at which the derivatives stop: one argument may have been computed from another.
            arguments = [a.view_as(a) if isinstance(a, torch.Tensor) else a for a in function.arguments(ctx)]
            x, needed = arguments[0], ctx.needs_input_grad
            # PyTorch before 2.4 refuses some types even where it is not enabled.
            with torch.autocast(x.device.type, dtype=ctx.dtype) if ctx.dtype != x.dtype else without_autocast(x):
                outs = function.reference(*arguments)
        if isinstance(outs, torch.Tensor):
            grads = grads[:1]  # the other outputs have none
        inputs = [argument for argument, need in zip(arguments, needed) if need]
        found = iter(torch.autograd.grad(outs, inputs, grads, create_graph=create_graph))
        return tuple(next(found) if need else None for need in needed)

    return staticmethod(wrapped)
