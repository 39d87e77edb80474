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
        pytest.param(2, 5, 13, 192, True, id='several tiles of tokens and of columns, 4 heads of 48'),
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
