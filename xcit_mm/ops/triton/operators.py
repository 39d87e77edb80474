"""The functions without a backward pass as operators ``torch.ops.xcit_mm_triton.*``, for torch.compile.

They are opaque (``custom_op``, from PyTorch 2.4 on), not ``triton_op``: their tiles depend on the sizes of tensors, so
that a compiler that looked into them would compile a model anew for every size of image.
"""

from typing import Callable, List

import torch
from torch import Tensor

from .lpi import add_lpi
from .mlp import add_mlp
from .stem import embed_patches
from .token_form import add_token_form
from .xca import add_xca


def _like_tokens(x: Tensor, *_, **__) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _like_map(image: Tensor, weights: List[Tensor], norms: List[Tensor], eps: List[float], dtype: torch.dtype):
    height, width = image.shape[2:]
    for _ in weights:
        height, width = (height + 1) // 2, (width + 1) // 2
    return image.new_empty(len(image), height, width, len(weights[-1]), dtype=dtype)


def _register(function: Callable, like: Callable) -> None:
    torch.library.custom_op(f'xcit_mm_triton::{function.__name__}', function, mutates_args=()).register_fake(like)


if hasattr(torch.library, 'custom_op'):
    for function in (add_lpi, add_mlp, add_token_form, add_xca):
        _register(function, _like_tokens)
    _register(embed_patches, _like_map)
