"""Multi-scale deformable attention (Zhu et al., 2021) and the masks of PSANet (Zhao et al., 2018)."""

import torch
from torch import Tensor

from .registration import operator, wide


@operator('PyTorch')
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Attended values (B, Q, heads * D).

    Args:
        value (Tensor): (B, keys, heads, D), the levels one after the other.
        value_spatial_shapes (Tensor): (levels, 2), height and width.
        sampling_locations (Tensor): (B, Q, heads, levels, points, 2), x and y in [0, 1].
        attention_weights (Tensor): (B, Q, heads, levels, points).
    """
    output = _attend(value_spatial_shapes, *wide(value, sampling_locations, attention_weights))
    return output.to(value)


@operator('PyTorch')
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Fill the three gradients, each shaped as its input."""
    inputs = [t.detach().requires_grad_() for t in wide(value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = _attend(value_spatial_shapes, *inputs)
    grads = torch.autograd.grad(output, inputs, grad_output.to(output))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        target.copy_(grad)


def _attend(shapes: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)


@operator('PyTorch')
def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Spread masks (B, h_mask * w_mask, H, W), each around its pixel, over whole maps ``output`` (B, H * W, H, W).

    Args:
        psa_type (int): 0 collects: channel q at pixel p is p's mask at q; 1 distributes: the reverse.
    """
    index, inside = _mask_places(output, h_mask, w_mask, half_h_mask, half_w_mask)
    masks = input.flatten(2).gather(1, index.expand(len(input), -1, -1)) * inside
    output.copy_((masks if psa_type == 0 else masks.transpose(1, 2)).reshape(output.shape))


@operator('PyTorch')
def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fill ``grad_input`` (B, h_mask * w_mask, H, W)."""
    index, inside = _mask_places(grad_output, h_mask, w_mask, half_h_mask, half_w_mask)
    grad = grad_output.flatten(2)
    grad = (grad if psa_type == 0 else grad.transpose(1, 2)) * inside
    flat = grad_input.new_zeros(grad_input.flatten(2).shape)
    flat.scatter_add_(1, index.expand(len(grad), -1, -1), grad.to(flat))
    grad_input.copy_(flat.view_as(grad_input))


def _mask_places(maps: Tensor, h_mask: int, w_mask: int, half_h: int, half_w: int) -> tuple:
    """Channel of pixel p's mask that covers pixel q, (1, q, p), and whether there is one."""
    height, width = maps.shape[2:]
    pixel = torch.arange(height * width, device=maps.device)
    y, x = (pixel // width)[:, None] - pixel // width + half_h, (pixel % width)[:, None] - pixel % width + half_w
    inside = (y >= 0) & (y < h_mask) & (x >= 0) & (x < w_mask)
    return torch.where(inside, y * w_mask + x, 0)[None], inside
