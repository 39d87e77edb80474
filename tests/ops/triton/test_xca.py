"""The kernels of XCA's covariance form in Triton's interpreter, beside plain PyTorch in fp64."""

import pytest
import torch
from interpreting import interpreted

from xcit_mm.benchmark.kernels import Case, compare

from . import assert_as_exact_as_pytorch

PARTS = ['moments', 'affine']


@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize(
    'batch, height, width, channels, keep',
    [
        pytest.param(3, 7, 5, 24, True, id='batch of 3'),
        pytest.param(2, 5, 26, 72, True, id='several tiles of tokens and of channels'),
        pytest.param(1, 1, 1, 8, False, id='one token'),
    ],
)
def test_fp32(part, batch, height, width, channels, keep):
    case = Case(part, batch, height, width, channels, keep=keep, device='cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize(
    'stream, dtype',
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)],
)
def test_half_precision(part, stream, dtype):
    case = Case(part, 2, 5, 9, 72, dtype, stream, True, 'cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


def moments_of_many_tokens():
    from xcit_mm.ops.triton.xca import normed_moments

    case = Case('moments', 2, 37, 31, 8, device='cpu')
    x, weight, bias = case.tensors()
    return [normed_moments(x, weight, bias, 1e-6, torch.float32) for _ in range(2)]


def test_second_moments_are_symmetric_and_the_same_every_time():
    """1147 tokens are in two chunks, whose sums are added in one order."""
    (moments, mean), again = interpreted(moments_of_many_tokens)
    assert torch.equal(moments, moments.transpose(1, 2))
    assert torch.equal(moments, again[0]) and torch.equal(mean, again[1])


def test_many_tokens():
    case = Case('moments', 1, 37, 31, 8, device='cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))
