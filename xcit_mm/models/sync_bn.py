"""Batch norm with statistics of all processes, on every device."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..registry import MODELS


@MODELS.register_module()
class SyncBN(nn.SyncBatchNorm):
    """:class:`torch.nn.SyncBatchNorm` that also synchronises on the CPU.

    PyTorch's own refuses CPU tensors once a process group exists, so a published recipe could not be tried with two
    gloo processes. Alone, or on CUDA, this is PyTorch's implementation.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if x.is_cuda or not self.training or not (dist.is_available() and dist.is_initialized()):
            return super().forward(x)
        group = self.process_group or dist.group.WORLD
        if dist.get_world_size(group) == 1:
            return super().forward(x)
        return self._forward_cpu(x, group)

    def _forward_cpu(self, x: Tensor, group) -> Tensor:
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        count = x.new_full((1,), x.numel() // x.shape[1])
        sums = _all_reduce(torch.cat([x.sum(dims), count]), group)
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1]
        # Two passes: the variance from squared deviations keeps its digits when the mean is large.
        centred = x - mean.view(shape)
        var = _all_reduce(centred.square().sum(dims), group) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(var.detach() * (count / (count - 1)), momentum)
        out = centred * (var + self.eps).rsqrt().view(shape)
        return torch.addcmul(self.bias.view(shape), out, self.weight.view(shape)) if self.affine else out


class _SumOverProcesses(torch.autograd.Function):
    """Sum over the processes; the gradient of a sum that all of them use is the sum of their gradients."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def _all_reduce(x: Tensor, group) -> Tensor:
    return _SumOverProcesses.apply(x, group)
