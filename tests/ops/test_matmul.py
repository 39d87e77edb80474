"""Matmuls of tokens: through oneDNN the same as through PyTorch's linear layers, forward and backward."""

import pytest
import torch
from torch import nn

from xcit_mm.ops import deconv, matmul, private

torch.manual_seed(0)
N, C, D = 150, 24, 40
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(params=['onednn', 'other'])
def library(request, monkeypatch):
    """Both ways of computing, whatever this machine would choose."""
    if request.param == 'onednn' and not torch.backends.mkldnn.is_available():
        pytest.skip('this PyTorch has no oneDNN')
    monkeypatch.setattr(matmul, 'ONEDNN', request.param == 'onednn')
    monkeypatch.setattr(matmul, 'MKL_IS_FASTER', False)
    return request.param


@pytest.fixture(params=[True, False], ids=['tiles', 'no tiles'])
def tiles(request, monkeypatch):
    monkeypatch.setattr(matmul, 'AMX', request.param)
    matmul._grid.cache_clear()
    yield request.param
    matmul._grid.cache_clear()


def tokens(*shape, layout='rows'):
    if layout == 'rows':
        return torch.randn(shape)
    if layout == 'columns':
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    return torch.randn(*shape[:-1], 2 * shape[-1])[..., : shape[-1]]  # a slice


@pytest.mark.parametrize('layout', ['rows', 'columns', 'slice'])
@pytest.mark.parametrize('shape', [(N, C), (2, N, C), (1, 1, C), (2, 3, N, C)])
def test_linear_and_its_gradients(library, shape, layout):
    if layout == 'columns' and len(shape) < 2:
        return
    reference = nn.Linear(C, D).double()
    ours = nn.Linear(C, D)
    ours.load_state_dict(reference.state_dict())
    x = tokens(*shape, layout=layout)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = matmul.linear(a, ours.weight, ours.bias), reference(b)
    assert out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, **CLOSE)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad.double())
    for found, wanted in ((a, b), (ours.weight, reference.weight), (ours.bias, reference.bias)):
        torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('layout', ['rows', 'columns', 'slice'])
@pytest.mark.parametrize('shape', [(100, 192), (2, 100, 192), (3, 2, 50, 192)])
@pytest.mark.parametrize('bias', [True, False])
def test_inner_product(monkeypatch, shape, layout, bias):
    if not private.has_inner_product():
        pytest.skip('this PyTorch has no inner product of oneDNN')
    monkeypatch.setattr(matmul, 'MKL_IS_FASTER', False)
    x, weight = tokens(*shape, layout=layout), tokens(256, 192, layout=layout)
    bias = torch.randn(256) if bias else None
    expected = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.no_grad():
        assert matmul.prefers_inner_product(x, weight)
        assert not matmul.prefers_inner_product(x.bfloat16(), weight.bfloat16())
        found = [matmul.linear(x, weight, bias)]
        if x.dim() == 2 and bias is not None:
            found.append(matmul.linear_gelu(x, weight, bias))
    assert not matmul.prefers_inner_product(x, weight)  # with gradients
    for out, wanted in zip(found, (expected, nn.functional.gelu(expected))):
        assert out.shape == wanted.shape and out.is_contiguous()
        torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-4)


def test_inner_product_gets_no_matrix_with_gaps(monkeypatch):
    """oneDNN reads it by its reference code, 500 times as slow. Some rows of a map are such a matrix."""
    if not private.has_inner_product():
        pytest.skip('this PyTorch has no inner product of oneDNN')
    monkeypatch.setattr(matmul, 'MKL_IS_FASTER', False)
    matrices, original = [], private._linear_pointwise

    def record(x, weight, *others):
        matrices.append(weight)
        return original(x, weight, *others)

    monkeypatch.setattr(private, '_linear_pointwise', record)
    image, weight, bias = torch.randn(1, 192, 120, 100), torch.randn(192, 192, 2, 2), torch.randn(192)
    with torch.no_grad():
        found = deconv.deconvolve(image, weight, bias)
        expected = nn.functional.conv_transpose2d(image, weight, bias, stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert len(matrices) > 1
    assert all(matrix.is_contiguous() or matrix.t().is_contiguous() for matrix in matrices)


@pytest.mark.parametrize('layout', ['rows', 'columns', 'slice'])
def test_gradients_without_autograd(library, layout):
    x, grad, weight = tokens(N, C, layout=layout), tokens(N, D, layout=layout), torch.randn(D, C)
    found = matmul.linear_backward(grad, x, weight)
    for ours, wanted in zip(found, (grad @ weight, grad.t() @ x, grad.sum(0))):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(matmul._transposed_matmul(grad, x), grad.t() @ x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('images', [1, 3])
@pytest.mark.parametrize('prepare', [lambda m: m, matmul.column_major])
def test_one_map_for_each_image(library, images, prepare):
    x, grad = torch.randn(images, N, C), torch.randn(images, N, D)
    matrix, offset = torch.randn(images, C, D), torch.randn(images, 1, D)
    torch.testing.assert_close(matmul.affine(x, prepare(matrix), offset), x @ matrix + offset, **CLOSE)
    grad_x, grad_matrix = matmul.affine_backward(grad, x, prepare(matrix))
    torch.testing.assert_close(grad_x, grad @ matrix.transpose(1, 2), **CLOSE)
    torch.testing.assert_close(grad_matrix, x.transpose(1, 2) @ grad, rtol=1e-5, atol=1e-4)


def test_few_tokens_and_other_types_stay_with_linear_layers(monkeypatch):
    monkeypatch.setattr(matmul, 'ONEDNN', True)
    monkeypatch.setattr(matmul, 'MKL_IS_FASTER', False)
    assert matmul.prefers_onednn(torch.zeros(1, N, C))
    assert not matmul.prefers_onednn(torch.zeros(1, 1, C))
    assert not matmul.prefers_onednn(torch.zeros(N, C, dtype=torch.bfloat16))
    assert not matmul.prefers_onednn(torch.zeros(N, C, device='meta'))
    monkeypatch.setattr(matmul, 'MKL_IS_FASTER', True)
    assert not matmul.prefers_onednn(torch.zeros(1, N, C))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('n', [1, N, 151, 192])
@pytest.mark.parametrize('gelu', [False, True])
def test_a_linear_layer_prepared_for_many_tokens(library, tiles, dtype, n, gelu):
    layer, x = nn.Linear(C, D).to(dtype), torch.randn(n, C).to(dtype)
    with torch.no_grad():
        expected = layer.double()(x.double())
        expected = nn.functional.gelu(expected) if gelu else expected
        layer = layer.to(dtype)
        run = matmul.packed_linear(layer.weight, layer.bias, n, gelu)
        run(-x)
        found = run(x)
    close = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else CLOSE
    assert found.dtype == dtype and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, **close)


def test_images_of_tokens(tiles):
    x = torch.randn(150, C).bfloat16()
    image = matmul.as_image(x)
    assert image.shape == ((1, C, 3, 50) if tiles else (1, C, 1, 150)) and image.data_ptr() == x.data_ptr()
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert matmul.as_image(x[:149]).shape == (1, C, 1, 149)  # a prime number
    assert matmul.as_image(x.float()).shape == (1, C, 1, 150)


def test_another_pytorch_without_gelu_in_its_convolutions(monkeypatch):
    monkeypatch.setattr(private, '_conv_pointwise', None)
    private.has_conv_pointwise.cache_clear()
    image, weight, bias = torch.randn(1, C, 5, 7), torch.randn(D, C, 3, 3), torch.randn(D)
    try:
        found = matmul.conv_gelu(image.contiguous(memory_format=torch.channels_last), weight, bias, 2, 1)
    finally:
        private.has_conv_pointwise.cache_clear()
    torch.testing.assert_close(found, nn.functional.gelu(nn.functional.conv2d(image, weight, bias, 2, 1)), **CLOSE)


def test_gram_matrix_of_many_large_values_does_not_overflow_half_precision():
    total = torch.zeros(1, 8, 8)
    matmul.add_gram(total, torch.full((1, 375_000, 8), 3.0, dtype=torch.float16))
    assert torch.equal(matmul.symmetric(total), torch.full((1, 8, 8), 9.0 * 375_000))
    assert total.half().isinf().any()  # what sums in fp16 come to
