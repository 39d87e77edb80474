"""Masked convolution and CARAFE (Wang et al., 2019), for which mmcv has no CPU code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .registration import operator, wide


@operator('PyTorch')
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fill ``col`` (C * kernel_h * kernel_w, M) with the windows of ``im`` (1, C, H, W) at M places of the output."""
    # Padded on the far side by a whole window, since a place may be on any pixel of the input.
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].reshape(col.shape))


@operator('PyTorch')
def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write ``col`` (C, M) to M places of ``im`` (1, C, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im)


@operator('PyTorch')
def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Fill ``output`` (B, C, s * H, s * W) with sums over kernel_size² pixels of ``features`` (B, C, H, W).

    Args:
        masks (Tensor): (B, group_size * kernel_size², s * H, s * W), weights for each group of channels.
        scale_factor (int): s.
    """
    features, masks = wide(features, masks)
    output.copy_(_reassemble(features, masks, kernel_size, group_size, scale_factor))


@operator('PyTorch')
def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill ``bottom_grad`` and ``mask_grad``, shaped as ``features`` and ``masks``."""
    features, masks = (t.detach().requires_grad_() for t in wide(features, masks))
    with torch.enable_grad():
        output = _reassemble(features, masks, kernel_size, group_size, scale_factor)
    grads = torch.autograd.grad(output, (features, masks), top_grad.to(output))
    for target, grad in zip((bottom_grad, mask_grad), grads):
        target.copy_(grad)


@operator('PyTorch')
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As :func:`carafe_naive_forward`; ``rfeatures``, which :func:`carafe_backward` gets, holds the features."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


@operator('PyTorch')
def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As :func:`carafe_naive_backward`; arguments that begin with r are workspace of the compiled operator."""
    geometry = (kernel_size, group_size, scale_factor)
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, *geometry)


def _reassemble(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    windows = F.unfold(features, kernel, padding=(kernel - 1) // 2)
    windows = windows.view(batch, groups, channels // groups, kernel * kernel, height, width)
    masks = masks.view(batch, groups, kernel * kernel, height, scale, width, scale)
    output = torch.einsum('bgckhw,bgkhiwj->bgchiwj', windows, masks)
    return output.reshape(batch, channels, height * scale, width * scale)
