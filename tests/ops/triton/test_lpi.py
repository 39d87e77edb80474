"""LPI's kernels in Triton's interpreter, beside plain PyTorch in fp64."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from interpreting import interpreted, interpreted_by_all

from xcit_mm.benchmark.kernels import BN_EPS, EPS, Case, compare

from . import assert_as_exact_as_pytorch


@pytest.mark.parametrize(
    'batch, height, width, channels, keep',
    [
        pytest.param(1, 9, 17, 8, True, id='more rows and columns than a strip'),
        pytest.param(3, 2, 3, 8, True, id='batch of 3'),
        pytest.param(1, 1, 5, 72, False, id='one row, two blocks of channels'),
        pytest.param(2, 10, 1, 8, True, id='one column'),
    ],
)
def test_training_in_fp32(batch, height, width, channels, keep):
    case = Case('lpi', batch, height, width, channels, keep=keep, device='cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


@pytest.mark.parametrize('stream, dtype', [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_frozen_statistics_with_and_without_backward_pass(stream, dtype):
    case = Case('lpi, frozen statistics', 2, 9, 5, 8, dtype, stream, True, 'cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


@pytest.mark.parametrize('stream, dtype', [(torch.float32, torch.bfloat16), (torch.float16, torch.float16)])
def test_training_in_half_precision(stream, dtype):
    case = Case('lpi', 2, 5, 9, 24, dtype, stream, True, 'cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


def running_statistics():
    from xcit_mm.ops.triton.lpi import forward

    case = Case('lpi', 2, 3, 5, 8, device='cpu')
    x, *weights = case.tensors()
    weight, bias, w1, b1, *_ = weights
    x += 100  # a large mean costs a one-pass variance its digits
    b1 += 1000
    _, (mean, _, var, _) = forward(x, weights, None, EPS, x.dtype, False, 3, BN_EPS, None, None)
    image = F.layer_norm(x.double(), (8,), weight.double(), bias.double(), EPS).unflatten(1, (3, 5)).permute(0, 3, 1, 2)
    hidden = F.gelu(F.conv2d(image, w1.double(), b1.double(), padding=1, groups=8))
    return mean, var, hidden.mean((0, 2, 3)), hidden.var((0, 2, 3))


def test_statistics_for_the_running_ones():
    mean, var, expected_mean, expected_var = interpreted(running_statistics)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-3, atol=0)


def of_half_a_batch(rank, address):
    """Output and gradients of this process's image, BN's statistics being of both processes."""
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    try:
        return of_images(slice(rank, rank + 1), dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def of_images(images, group=None):
    from xcit_mm.ops.triton import lpi
    from xcit_mm.ops.triton.operators import Branch

    x, *weights = (t.requires_grad_() for t in Case('lpi', 2, 3, 5, 8, device='cpu').tensors())
    others = None, EPS, x.dtype, True, 3, BN_EPS, None, None
    branch = lpi if group is None else lpi.synchronised(group)
    out, *_, (mean, _, var, _) = Branch.apply(x[images], *weights, others, branch)
    out.square().sum().backward()
    return out.detach(), mean, var, [t.grad for t in (x, *weights)]


def test_two_processes_share_the_statistics_of_the_batch(tmp_path):
    """As with SyncBN: outputs and gradients, summed, are those of one process with both images."""
    address = f'file://{tmp_path / "rendezvous"}'
    a, b = interpreted_by_all(of_half_a_batch, 2, address)
    whole = interpreted(of_images, slice(0, 2))
    torch.testing.assert_close(torch.cat((a[0], b[0])), whole[0])
    for mean_or_var in (1, 2):
        torch.testing.assert_close(a[mean_or_var], whole[mean_or_var])
        torch.testing.assert_close(b[mean_or_var], whole[mean_or_var])
    for one, other, both in zip(a[3], b[3], whole[3]):
        torch.testing.assert_close(one + other, both, rtol=1e-4, atol=1e-4 * both.abs().max().item())


class PyTorchSyncBN(torch.autograd.Function):
    """The messages of torch.nn.SyncBatchNorm, whose own operators need a GPU."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        C, count = x.shape[1], x.new_full((1,), x.numel() // x.shape[1])
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        own = torch.cat((mean, (var + BN_EPS).rsqrt(), count))
        everybody = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everybody, own)
        means, inv_stds, counts = torch.stack(everybody).split((C, C, 1), 1)
        ctx.count = counts.sum()
        mean = (means * counts).sum(0) / ctx.count
        squares = (inv_stds**-2 - BN_EPS + (means - mean) ** 2) * counts
        centred, inv_std = x - mean.view(-1, 1, 1), (squares.sum(0) / ctx.count + BN_EPS).rsqrt().view(-1, 1, 1)
        ctx.save_for_backward(centred, inv_std, weight)
        return centred * inv_std * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)

    @staticmethod
    def backward(ctx, grad):
        centred, inv_std, weight = ctx.saved_tensors
        own = grad.sum((0, 2, 3)), (grad * centred).sum((0, 2, 3))
        sums = torch.cat(own)
        dist.all_reduce(sums)
        of_grad, of_both = (sums / ctx.count).view(2, -1, 1, 1)
        by_x = (grad - of_grad - centred * inv_std**2 * of_both) * inv_std * weight.view(-1, 1, 1)
        return by_x, own[1] * inv_std.flatten(), own[0]


def of_half_a_batch_by_two_ways(rank, address):
    """As :func:`of_half_a_batch`, where the second process runs PyTorch's layers."""
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    try:
        if rank == 0:
            out, _, _, grads = of_images(slice(0, 1), dist.group.WORLD)
            return out, grads
        tensors = [t.requires_grad_() for t in Case('lpi', 2, 3, 5, 8, device='cpu').tensors()]
        x, weight, bias, w1, b1, bn_weight, bn_bias, w2, b2, gamma = tensors
        image = F.layer_norm(x[1:], (len(gamma),), weight, bias, EPS).unflatten(1, (3, -1)).permute(0, 3, 1, 2)
        image = F.gelu(F.conv2d(image, w1, b1, padding=1, groups=len(gamma)))
        image = PyTorchSyncBN.apply(image, bn_weight, bn_bias)
        branch = F.conv2d(image, w2, b2, padding=1, groups=len(gamma)).flatten(2).transpose(1, 2)
        out = x[1:] + gamma * branch
        out.square().sum().backward()
        return out.detach(), [t.grad for t in tensors]
    finally:
        dist.destroy_process_group()


def test_a_process_without_the_kernels_shares_the_statistics(tmp_path):
    """One rank has a hook on LPI, or an older GPU: it talks as PyTorch's SyncBatchNorm."""
    a, b = interpreted_by_all(of_half_a_batch_by_two_ways, 2, f'file://{tmp_path / "rendezvous"}')
    whole = interpreted(of_images, slice(0, 2))
    torch.testing.assert_close(torch.cat((a[0], b[0])), whole[0], rtol=1e-4, atol=1e-5)
    for one, other, both in zip(a[1], b[1], whole[3]):
        torch.testing.assert_close(one + other, both, rtol=1e-4, atol=1e-4 * both.abs().max().item())
