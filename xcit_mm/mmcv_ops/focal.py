"""Focal loss (Lin et al., 2017), as mmcv's CUDA code; logs clamp probabilities at the smallest normal float32."""

import torch
from torch import Tensor

from .registration import operator, wide

TINY = torch.finfo(torch.float32).tiny


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=TINY).log()


def _class_weights(weight: Tensor, target: Tensor) -> Tensor:
    """Weight (N,) of each sample's class; 1 for the background, which has none, and without weights."""
    if weight.numel() == 0:
        return torch.ones_like(target, dtype=torch.float32)
    known = (target >= 0) & (target < weight.numel())
    return torch.where(known, weight[target.clamp(0, weight.numel() - 1)], weight.new_ones(()))


@operator('PyTorch')
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``output`` (N, C) with the losses of logits (N, C); ``target`` (N,) may be C for the background."""
    x, weight = wide(input, weight)
    p, positive = x.sigmoid(), target[:, None] == torch.arange(x.shape[1], device=x.device)
    loss = torch.where(positive, -alpha * (1 - p) ** gamma * _log(p), (alpha - 1) * p**gamma * _log(1 - p))
    output.copy_(loss * _class_weights(weight, target)[:, None])


@operator('PyTorch')
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` (N, C) with the derivatives of the losses by the logits."""
    x, weight = wide(input, weight)
    p, positive = x.sigmoid(), target[:, None] == torch.arange(x.shape[1], device=x.device)
    of_positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * _log(p))
    of_negative = (alpha - 1) * p**gamma * (gamma * (1 - p) * _log(1 - p) - p)
    grad_input.copy_(torch.where(positive, of_positive, of_negative) * _class_weights(weight, target)[:, None])


@operator('PyTorch')
def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``output`` (N,) with the losses of probabilities (N, C); 0 where ``target`` (N,) is negative."""
    probability, weight = wide(softmax, weight)
    p = probability.gather(1, target.clamp(min=0)[:, None])[:, 0]
    loss = -alpha * (1 - p) ** gamma * _log(p)
    output.copy_(torch.where(target >= 0, loss, torch.zeros_like(loss)) * _class_weights(weight, target))


@operator('PyTorch')
def softmax_focal_loss_backward(
    softmax: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` (N, C) with the derivatives of the losses by the logits; ``buff`` (N,) is workspace."""
    probability, weight = wide(softmax, weight)
    p = probability.gather(1, target.clamp(min=0)[:, None])[:, 0]
    factor = alpha * (gamma * (1 - p) ** (gamma - 1) * p * _log(p) - (1 - p) ** gamma)
    buff.copy_(torch.where(target >= 0, factor, torch.zeros_like(factor)) * _class_weights(weight, target))
    own = target[:, None] == torch.arange(probability.shape[1], device=target.device)
    grad_input.copy_(buff.to(probability)[:, None] * (own.to(probability) - probability))
