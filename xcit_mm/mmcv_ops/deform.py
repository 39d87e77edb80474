"""Deformable convolution, version 1 (Dai et al., 2017) and 2 (Zhu et al., 2019), by torchvision."""

from typing import Optional

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .registration import operator, wide


@operator('torchvision')
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill ``output`` (B, O, H', W') with the convolution of ``input`` (B, C, H, W).

    Args:
        weight (Tensor): (O, C / group, kH, kW).
        offset (Tensor): (B, 2 * deformable_group * kH * kW, H', W'), y before x.
        columns, ones (Tensor): Workspace of the compiled operator, not used here.
    """
    x, weight, offset = wide(input, weight, offset)
    bias = x.new_zeros(weight.shape[0])
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False)
    output.copy_(torch.ops.torchvision.deform_conv2d(x, weight, offset, _no_mask(x), bias, *geometry))


@operator('torchvision')
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill ``gradInput`` and ``gradOffset``, shaped as ``input`` and ``offset``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False)
    grads = _backward(gradOutput, input, weight, offset, None, geometry)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])


@operator('torchvision')
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add ``scale`` times the gradient of the weight to ``gradWeight``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False)
    gradWeight.add_(_backward(gradOutput, input, gradWeight, offset, None, geometry)[1].to(gradWeight), alpha=scale)


@operator('torchvision')
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """As :func:`deform_conv_forward`; ``mask`` (B, deformable_group * kH * kW, H', W') scales each sample."""
    x, weight, bias, offset, mask = wide(input, weight, bias, offset, mask)
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, True)
    bias = bias if with_bias else x.new_zeros(weight.shape[0])
    output.copy_(torch.ops.torchvision.deform_conv2d(x, weight, offset, mask, bias, *geometry))


@operator('torchvision')
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fill the five gradients, each shaped as its input; ``grad_bias`` only if ``with_bias``."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, True)
    grads = _backward(grad_output, input, weight, offset, mask, geometry)
    targets = (grad_input, grad_weight, grad_offset, grad_mask, *([grad_bias] if with_bias else []))
    for target, grad in zip(targets, grads):
        target.copy_(grad)


def _no_mask(x: Tensor) -> Tensor:
    return x.new_zeros(len(x), 1)  # as torchvision's own function fills the place


def _backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Optional[Tensor], geometry: tuple
) -> tuple:
    """Gradients of input, weight, offset, mask and bias."""
    x, grad, weight, offset = wide(input, grad_output.contiguous(), weight, offset)
    mask = _no_mask(x) if mask is None else mask.to(x)
    bias = x.new_zeros(weight.shape[0])
    return torch.ops.torchvision._deform_conv2d_backward(grad, x, weight, offset, mask, bias, *geometry)
