"""The kernels of XCA's covariance form in Triton's interpreter, beside plain PyTorch in fp64."""

import pytest
import torch
from interpreting import interpreted

from xcit_mm.benchmark.kernels import Case, compare

from . import assert_as_exact_as_pytorch


@pytest.mark.parametrize(
    'batch, height, width, channels, keep',
    [
        pytest.param(3, 7, 5, 24, True, id='batch of 3'),
        pytest.param(2, 5, 26, 72, True, id='several tiles of tokens and of channels'),
        pytest.param(1, 1, 1, 8, False, id='one token'),
    ],
)
def test_fp32(batch, height, width, channels, keep):
    case = Case('xca', batch, height, width, channels, keep=keep, device='cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


@pytest.mark.parametrize(
    'stream, dtype',
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)],
)
def test_half_precision(stream, dtype):
    case = Case('xca', 2, 5, 9, 72, dtype, stream, True, 'cpu')
    assert_as_exact_as_pytorch(case, interpreted(compare, case))


def twice():
    from xcit_mm.benchmark.kernels import fused

    case = Case('xca', 2, 37, 31, 8, device='cpu')
    return [fused(case, case.tensors())[0] for _ in range(2)]


def test_many_tokens_have_the_same_result_every_time():
    """The sums over 1147 tokens are of several chunks, added in one order."""
    assert torch.equal(*interpreted(twice))
