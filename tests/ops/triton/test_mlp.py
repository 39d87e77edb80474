"""The MLP's kernels in Triton's interpreter, beside plain PyTorch in fp64."""

import pytest
import torch
from interpreting import interpreted

from xcit_mm.benchmark.kernels import Case, compare

from . import assert_as_exact_as_pytorch


@pytest.mark.parametrize(
    'batch, height, width, channels, keep',
    [
        pytest.param(3, 7, 5, 24, True, id='tiles with tokens of two images'),
        pytest.param(1, 1, 1, 8, False, id='one token'),
    ],
)
def test_fp32(batch, height, width, channels, keep):
    case = Case('mlp', batch, height, width, channels, keep=keep, device='cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


@pytest.mark.parametrize(
    'stream, dtype',
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)],
)
def test_half_precision(stream, dtype):
    case = Case('mlp', 2, 5, 9, 24, dtype, stream, True, 'cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


def gradients_at_the_published_start():
    """LayerScale of 1e-5 in fp16: gradients of 1e-3 times it are below fp16's smallest number."""
    case = Case('mlp', 1, 3, 5, 16, torch.float16, torch.float32, device='cpu')
    tensors = case.tensors()
    tensors[-1].fill_(1e-5)
    found = []
    for dtype in (torch.float16, torch.float64):
        from xcit_mm.benchmark.kernels import fused, plain

        leaves = [t.detach().to(t.dtype if dtype == torch.float16 else dtype).requires_grad_() for t in tensors]
        (out,) = fused(case, leaves) if dtype == torch.float16 else plain(case, leaves, dtype)
        (out * 1e-3).sum().backward()
        found.append([leaf.grad.double() for leaf in leaves])
    return found


def test_small_layer_scale_loses_no_gradients():
    for ours, exact in zip(*interpreted(gradients_at_the_published_start)):
        assert (ours - exact).norm() <= 1e-2 * exact.norm()
