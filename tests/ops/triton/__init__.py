"""The kernels run in Triton's interpreter here, and are compiled for GPUs that are not there."""

import math
from typing import Dict

import pytest
import torch

from xcit_mm.benchmark.kernels import Case, Errors

pytest.importorskip('triton', minversion='3.0', reason='needs Triton 3, which comes with PyTorch 2.4')


def assert_as_exact_as_pytorch(case: Case, errors: Dict[str, Errors]) -> None:
    """fp32 to rounding, or thrice PyTorch's where batch norm has few values; half precision no further from fp64 than
    PyTorch's operators: on average, and nowhere twice."""
    assert errors
    if case.dtype == torch.float32:
        wrong = {name: error for name, error in errors.items() if not error.fused <= max(5e-6, 3 * error.plain)}
    else:
        eps = torch.finfo(case.dtype).eps
        wrong = {name: e for name, e in errors.items() if not e.fused <= max(2 * e.plain, eps / 2)}
        ratios = [error.fused / error.plain for error in errors.values()]
        assert math.prod(ratios) <= 1, f'{case}: {errors}'
    assert not wrong, f'{case}: {wrong}'
