"""Batch norm with statistics of all processes, on every device."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import ops
from ..registry import MODELS


@MODELS.register_module()
@ops.published()
class SyncBN(nn.modules.batchnorm._BatchNorm):
    """:class:`torch.nn.SyncBatchNorm` that also works between processes on the CPU.

    PyTorch's own refuses CPU tensors once a process group exists, and its DistributedDataParallel refuses models that
    contain it, so a published recipe could not be tried with two gloo processes. Alone this is batch norm, on an
    accelerator PyTorch's implementation.
    """

    process_group = None  # all processes
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f'SyncBN expected at least two dimensions (B, C, ...), got {x.dim()}')

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        if x.device.type != 'cpu':
            return nn.SyncBatchNorm.forward(self, x)
        return self._forward_cpu(x)

    def _forward_cpu(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        count = x.new_full((1,), x.numel() // x.shape[1])
        sums = _SumOverProcesses.apply(torch.cat([x.sum(dims), count]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1]
        # Two passes: the variance from squared deviations keeps its digits when the mean is large.
        centred = x - mean.view(shape)
        var = _SumOverProcesses.apply(centred.square().sum(dims)) / count
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
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad
