"""The kernels of XCA's token form in Triton's interpreter, beside plain PyTorch in fp64."""

import pytest
import torch
from interpreting import interpreted

from xcit_mm.benchmark.kernels import Case, compare

from . import assert_as_exact_as_pytorch

PART = 'xca, token form'


@pytest.mark.parametrize(
    'batch, height, width, channels, keep',
    [
        pytest.param(3, 7, 5, 48, True, id='batch of 3'),
        pytest.param(1, 13, 15, 128, False, id='several chunks, 4 heads of 32'),
        pytest.param(2, 3, 7, 144, True, id='several tiles of tokens and of columns, 3 heads of 48'),
        pytest.param(1, 1, 1, 16, False, id='one token'),
    ],
)
def test_fp32(batch, height, width, channels, keep):
    case = Case(PART, batch, height, width, channels, keep=keep, device='cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


@pytest.mark.parametrize(
    'stream, dtype',
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)],
)
def test_half_precision(stream, dtype):
    case = Case(PART, 2, 5, 9, 80, dtype, stream, True, 'cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


def gradients_at_the_published_start():
    """LayerScale of 1e-5 in fp16: gradients of 1e-3 times it are below fp16's smallest number."""
    from xcit_mm.benchmark.kernels import fused, plain

    case = Case(PART, 1, 3, 5, 32, torch.float16, torch.float32, device='cpu')
    tensors = case.tensors()
    tensors[-1].fill_(1e-5)
    found = []
    for function, dtype in ((lambda leaves: fused(case, leaves), torch.float32), (plain, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
        (out,) = function(leaves) if dtype == torch.float32 else plain(case, leaves, dtype)
        (out * 1e-3).sum().backward()
        found.append([leaf.grad.double() for leaf in leaves])
    return found


def test_small_layer_scale_loses_no_gradients():
    for ours, exact in zip(*interpreted(gradients_at_the_published_start)):
        assert (ours - exact).norm() <= 1e-2 * exact.norm()


def with_a_dead_query():
    """Output and gradients where a channel of q is zero for all tokens, and exactly."""
    from xcit_mm.benchmark.kernels import fused, plain

    case = Case(PART, 2, 4, 5, 32, device='cpu')
    tensors = case.tensors()
    tensors[3][5], tensors[4][5] = 0, 0
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
        (out,) = fused(case, leaves) if dtype == torch.float32 else plain(case, leaves, dtype)
        out.square().sum().backward()
        found.append([out.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    return found


def test_a_query_of_zeros_has_the_bounded_norm_of_the_reference():
    ours, exact = interpreted(with_a_dead_query)
    for value, other in zip(ours, exact):
        assert (value - other).norm() <= 1e-5 * other.norm()


def twice():
    from xcit_mm.benchmark.kernels import fused

    case = Case(PART, 1, 13, 21, 32, torch.bfloat16, torch.bfloat16, True, 'cpu')
    found = []
    for _ in range(2):
        leaves = [t.requires_grad_() for t in case.tensors()]
        (out,) = fused(case, leaves)
        out.sum().backward()
        with torch.no_grad():
            found.append([out.detach(), *fused(case, leaves), *(leaf.grad for leaf in leaves)])
    return found


def test_the_same_bits_every_time():
    """The sums over 273 tokens are of three chunks, added in one order."""
    first, second = interpreted(twice)
    assert all(torch.equal(*pair) for pair in zip(first, second))


def test_chunks_fill_a_gpu_and_bound_the_length_of_sums():
    from xcit_mm.ops.triton.token_form import chunks_of

    assert chunks_of(256 * 8, 784) == 1
    assert chunks_of(8, 784) == 7
    assert chunks_of(2 * 8, 273) == 3
    assert chunks_of(1, 5) == 1
    assert chunks_of(512, 2**20) == 128, 'of 8192 tokens each'
