"""The C x C algebra of XCA's covariance form in Triton's interpreter, beside the token form in fp64."""

import os
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from interpreting import interpreted

from xcit_mm.ops.reference import l2_normalized

pytest.importorskip('triton', minversion='3.0', reason='needs Triton 3, which comes with PyTorch 2.4')
NAMES = ['tokens', 'qkv weight', 'qkv bias', 'proj weight', 'proj bias', 'temperature']
HALF = torch.bfloat16


def tensors(batch, channels, heads, tokens=50):
    """Tokens (B, N, C) with a mean, and the weights of XCA."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    x = normal(batch, tokens, channels) + normal(channels)
    weights = normal(3 * channels, channels) * channels**-0.5, normal(3 * channels)
    weights += normal(channels, channels) * channels**-0.5, normal(channels)
    return [x, *weights, 1 + torch.rand(heads, 1, 1, generator=generator)]


def exact(x, qkv_weight, qkv_bias, proj_weight, proj_bias, temperature):
    """The map, through queries and keys of every token."""
    B, _, C = x.shape
    heads = len(temperature)
    qkv = F.linear(x, qkv_weight, qkv_bias).transpose(1, 2).unflatten(1, (3, heads, -1))
    q, k = (l2_normalized(t) for t in (qkv[:, 0], qkv[:, 1]))
    attn = (q @ k.transpose(-2, -1) * temperature).softmax(-1)
    mixed = (attn @ qkv_weight[2 * C :].view(heads, -1, C)).reshape(B, C, C)
    bias = (attn @ qkv_bias[2 * C :].view(heads, -1, 1)).reshape(B, 1, C)
    return mixed.transpose(1, 2) @ proj_weight.t(), F.linear(bias, proj_weight, proj_bias).squeeze(1)


def sums(x):
    return x.transpose(1, 2) @ x, x.sum(1), 1 / x.shape[1]


def stacked(matrix, offset):
    return torch.cat((matrix, offset.unsqueeze(1)), 1)


def errors(batch, channels, heads, dtype=torch.float32, weight_dtype=torch.float32, wide=False):
    """Relative RMS errors of the map and of all gradients."""
    from xcit_mm.ops.triton import covariance

    x, *weights = tensors(batch, channels, heads)
    weights = [weight.to(weight_dtype) for weight in weights]
    leaves = [t.double().requires_grad_() for t in (x, *weights)]
    expected = exact(*leaves)
    grads = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in expected]
    expected += torch.autograd.grad(expected, leaves, [grad.double() for grad in grads])
    given = *sums(x), *weights
    # Blocks of 64 as for many images.
    with mock.patch.object(covariance, 'PROGRAMS', 0 if wide else covariance.PROGRAMS):
        matrix, offset, kept = covariance.affine_map(*given, dtype, keeps=True)
        again = covariance.affine_map(*given, dtype)
    assert matrix.dtype == dtype and matrix.is_contiguous() and offset.dtype == torch.float32
    assert torch.allclose(matrix, again[0]) and torch.allclose(offset, again[1]) and again[2] is None
    slope, shift, *by_weights = covariance.affine_map_backward(stacked(*grads), kept, *given)
    found = matrix, offset, torch.baddbmm(shift.unsqueeze(1), x, slope), *by_weights
    return {
        name: ((a.double() - b).norm() / b.norm()).item()
        for name, a, b in zip(['matrix', 'offset', *NAMES], found, expected)
    }


@pytest.mark.parametrize(
    'batch, channels, heads, wide',
    [
        pytest.param(2, 24, 2, False, id='heads smaller than a tile'),
        pytest.param(1, 72, 3, False, id='three heads, several blocks'),
        pytest.param(1, 72, 3, True, id='large blocks'),
        pytest.param(3, 40, 1, False, id='one head, three images'),
        pytest.param(1, 96, 2, False, id='heads of S12'),
    ],
)
def test_map_and_gradients(batch, channels, heads, wide):
    found = interpreted(errors, batch, channels, heads, torch.float32, torch.float32, wide)
    assert found.pop('temperature') < 2e-5  # a sum of terms that cancel
    assert max(found.values()) < 5e-6, found


@pytest.mark.parametrize('heads', [1, 3])
def test_weights_and_matrix_in_half_precision(heads):
    """Only the matrix is rounded."""
    found = interpreted(errors, 1, 72, heads, HALF, HALF)
    assert 1e-4 < found.pop('matrix') < torch.finfo(HALF).eps / 2
    assert found.pop('temperature') < 2e-5  # a sum of terms that cancel
    assert max(found.values()) < 5e-6, found


def map_of_equal_tokens():
    """Their covariance is zero: a query's and a key's cosine is 1 or -1, whatever the tokens are."""
    from xcit_mm.ops.triton import covariance

    x, *weights = tensors(1, 32, 2)
    given = *sums(x[:, :1].expand(-1, 7, -1)), *weights
    matrix, offset, kept = covariance.affine_map(*given, torch.float32, keeps=True)
    assert torch.allclose(kept.cosines.abs(), torch.ones(()), atol=1e-3)
    grad = torch.randn_like(stacked(matrix, offset))
    slope, shift, *_ = covariance.affine_map_backward(grad, kept, *given)
    return (torch.baddbmm(shift.unsqueeze(1), x[:, :1], slope).abs().max() / shift.abs().max()).item()


def test_equal_tokens_have_no_gradient():
    assert interpreted(map_of_equal_tokens) < 5e-5


def same_twice():
    from xcit_mm.ops.triton import covariance

    x, *weights = tensors(2, 40, 2)
    given = *sums(x), *weights
    runs = []
    for _ in range(2):
        matrix, offset, kept = covariance.affine_map(*given, torch.float32, keeps=True)
        grads = covariance.affine_map_backward(stacked(matrix, offset), kept, *given)
        runs.append([matrix, offset, *kept, *grads])
    return [torch.equal(a, b) for a, b in zip(*runs)]


def test_the_result_is_the_same_every_time():
    assert all(interpreted(same_twice))


def meta(batch, channels, heads, backward):
    from xcit_mm.ops.triton import covariance

    x, *weights = (t.to('meta') for t in tensors(batch, channels, heads, 1))
    given = *sums(x), *weights
    matrix, offset, kept = covariance.affine_map(*given, torch.float32 if backward else HALF, keeps=backward)
    if backward:
        covariance.affine_map_backward(stacked(matrix, offset), kept, *given)


@pytest.mark.skipif('TRITON_INTERPRET' in os.environ, reason='the interpreter compiles nothing')
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize(
    'batch, channels, heads, backward',
    [
        (1, 384, 8, False),
        *(
            pytest.param(batch, channels, heads, True, marks=pytest.mark.slow)
            for channels, heads in [(128, 4), (192, 4), (384, 8), (512, 8), (768, 16)]
            for batch in (1, 8)
        ),
    ],
)
def test_kernels_fit_the_registers(batch, channels, heads, backward, capability):
    from ahead_of_time import launches, resources

    from xcit_mm.ops.triton.launch import SHARED_MEMORY

    found = launches(meta, batch, channels, heads, backward)
    assert len(found) == (7 if backward else 3)
    for launch in found:
        needed = resources(launch, capability)
        assert needed.stack == 0, f'{launch.key} spills: {needed}'
        assert needed.registers * 32 * launch.options['num_warps'] <= 65536
        assert needed.shared <= SHARED_MEMORY
