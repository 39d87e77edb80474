"""The residual branch of local patch interaction, x + gamma LPI(LN(x)).

In inference on a CPU in bands of rows that stay in its cache: memory for another image costs more than a step itself
(batch norm of 96x400x608 values takes 28 ms with it and 3 ms without).
"""

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import bands, chunk_size
from .matmul import gelu_
from .precision import compute_dtype, in_range, without_autocast
from .private import register


def add_lpi_(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    bn_mean: Tensor,
    bn_var: Tensor,
    bn_eps: float,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
    gamma: Tensor,
    height: int,
) -> None:
    """x += gamma LPI(LN(x)) in place, for the tokens (B, N, C) of an image of ``height`` rows; gamma (C).

    Each band is computed with the two rows above and below that it depends on.
    """
    dtype, C = compute_dtype(conv1_weight), x.shape[2]
    w1, b1, w2, b2 = (t.to(dtype) for t in (conv1_weight, conv1_bias, conv2_weight, conv2_bias))
    norm_weight, norm_bias = norm_weight.to(x.dtype), norm_bias.to(x.dtype)
    images = x.unflatten(1, (height, -1))
    pending = []  # the sum of a band waits until the next one has read its last two rows
    with without_autocast(x):
        for group, rows in bands(images, chunk_size(images)):
            above, below = max(rows.start - 2, 0), min(rows.stop + 2, height)
            image = F.layer_norm(images[group, above:below], (C,), norm_weight, norm_bias, eps).to(dtype)
            _add_pending(pending, gamma)
            # Rows of the edge that lack a neighbour are dropped after each convolution.
            start, stop = max(rows.start - 1, 0), min(rows.stop + 1, height)
            image = F.conv2d(image.permute(0, 3, 1, 2), w1, b1, padding=1, groups=C)[:, :, start - above : stop - above]
            image = _batch_norm_(gelu_(image), bn_weight, bn_bias, bn_mean, bn_var, bn_eps)
            image = F.conv2d(image, w2, b2, padding=1, groups=C)[:, :, rows.start - start : rows.stop - start]
            pending.append((images[group, rows], image.permute(0, 2, 3, 1)))
        _add_pending(pending, gamma)


def _add_pending(pending: List[Tuple[Tensor, Tensor]], gamma: Tensor) -> None:
    while pending:
        target, branch = pending.pop()
        target.addcmul_(branch, gamma)


def _batch_norm_(image: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Batch norm of (B, C, H, W) with given statistics, in place."""
    unused = mean.new_empty(0)
    torch.ops.aten.native_batch_norm.out(
        image, weight, bias, mean, var, False, 0.0, eps, out=image, save_mean=unused, save_invstd=unused
    )
    return image


def add_last_conv(
    x: Tensor, image: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, keep: Optional[Tensor] = None
) -> Tensor:
    """x + keep gamma conv2(image). Differentiable.

    Gamma is folded into the convolution, whose output need not be kept.

    Args:
        x (Tensor): (B, N, C).
        image (Tensor): (B, C, H, W), what LPI's second convolution is applied to.
        weight, bias (Tensor): Of that convolution, (C, 1, 3, 3) and (C).
        gamma (Tensor): (C).
        keep (Tensor, optional): (B, 1, 1).
    """
    folded, size = in_range(gamma, compute_dtype(x))
    weight = weight * folded[:, None, None, None]
    branch = F.conv2d(image, weight, bias * folded, padding=1, groups=len(gamma)).flatten(2).transpose(1, 2)
    if size is None and keep is None:
        return x + branch
    return torch.addcmul(x, branch, size if keep is None else keep if size is None else size * keep)


register(add_lpi_, lambda *_: None, mutates=('x',))
