"""The two forms of XCA's residual branch: the same outputs and gradients, and digits kept where they are few."""

import pytest
import torch
import torch.nn.functional as F
from backbones import deviation

from xcit_mm.ops import reference, xca
from xcit_mm.ops.precision import compute_dtype


def weights(C, heads, dtype=torch.float32):
    """Of the norm, of XCA and LayerScale."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    norm = 1 + 0.3 * randn(C), 0.3 * randn(C)
    linears = randn(3 * C, C) * C**-0.5, 0.3 * randn(3 * C), randn(C, C) * C**-0.5, 0.3 * randn(C)
    return [*norm, *linears, 1 + 0.3 * randn(heads, 1, 1), randn(C)]


def run(form, x, tensors):
    norm_weight, norm_bias, *rest = tensors
    return form(x, norm_weight, norm_bias, 1e-6, *rest)


@pytest.mark.parametrize('shape, heads', [((2, 300, 64), 4), ((1, 35, 32), 8), ((3, 7, 48), 2)])
def test_forms_agree_with_the_reference(shape, heads):
    tensors = [t.requires_grad_() for t in weights(shape[-1], heads)]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    outs = [run(form, x, tensors) for form in (reference.add_xca, xca.add_token_form, xca.add_covariance_form)]
    weight = torch.linspace(-1, 1, x.numel()).view_as(x)
    expected, *others = [torch.autograd.grad((out * weight).sum(), [x, *tensors]) for out in outs]
    for out, found in zip(outs[1:], others):
        assert deviation(out, outs[0]) < 2e-6
        scale = max(grad.abs().max() for grad in expected)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale) for a, b in zip(found, expected))
    with torch.no_grad():
        run(xca.add_covariance_form_, x, tensors)
    assert deviation(x, outs[0]) < 2e-6


def test_digits_are_kept_where_the_tokens_have_a_large_common_part():
    """Second moments about zero lose digits to a mean; the layer norm before XCA bounds how far it can go."""
    tensors = weights(64, 4)
    tensors[0], tensors[1] = torch.ones(64), 3 * torch.ones(64)
    x = torch.randn(1, 2000, 64) + 5 * torch.randn(64)
    exact = run(reference.add_xca, x.double(), [t.double() for t in tensors])
    assert deviation(run(xca.add_covariance_form, x, tensors).double(), exact) < 1e-5


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_does_not_overflow(dtype):
    """Sums over many tokens pass fp16's largest value (65504) by far."""
    if not hasattr(torch, 'get_autocast_dtype'):
        pytest.skip('autocast to fp16 on the CPU needs PyTorch 2.4')
    tensors = weights(16, 2)
    tensors[0] = 3 * tensors[0]
    x = torch.randn(1, 40000, 16)
    assert (F.layer_norm(x, (16,), tensors[0], tensors[1]).square().sum(1) > 65504).any()
    exact = run(xca.add_covariance_form, x, tensors)
    with torch.autocast('cpu', dtype):
        assert compute_dtype(x) == dtype
        half = run(xca.add_covariance_form, x, tensors)
    assert half.dtype == torch.float32 and deviation(half, exact) < 0.02
