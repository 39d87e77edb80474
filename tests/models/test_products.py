"""Products of tokens: through oneDNN the same as through PyTorch's linear layers, forward and backward."""

import time

import pytest
import torch
from torch import nn

from xcit_mm.models import products

torch.manual_seed(0)
N, C, D = 150, 24, 40
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(params=['onednn', 'other'])
def library(request, monkeypatch):
    """Both ways of computing, whatever this machine would choose."""
    if request.param == 'onednn' and not torch.backends.mkldnn.is_available():
        pytest.skip('this PyTorch has no oneDNN')
    monkeypatch.setattr(products, 'ONEDNN', request.param == 'onednn')
    monkeypatch.setattr(products, 'MKL_IS_FASTER', False)
    return request.param


@pytest.fixture(params=[True, False], ids=['tiles', 'no tiles'])
def tiles(request, monkeypatch):
    monkeypatch.setattr(products, 'HAS_TILES', request.param)
    products._grid.cache_clear()
    yield request.param
    products._grid.cache_clear()


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
    ours = products.Linear(C, D)
    ours.load_state_dict(reference.state_dict())
    x = tokens(*shape, layout=layout)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = ours(a), reference(b)
    assert out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, **CLOSE)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad.double())
    for found, wanted in ((a, b), (ours.weight, reference.weight), (ours.bias, reference.bias)):
        torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-5, atol=1e-4)


@pytest.fixture
def inner_product(monkeypatch):
    """The conditions for it, whatever this machine's processor is."""
    if not (products.ONEDNN and products._has_inner_product()):
        pytest.skip('this PyTorch has no inner product of oneDNN')
    monkeypatch.setattr(products, 'MKL_IS_FASTER', False)


@pytest.mark.parametrize('layout', ['rows', 'columns', 'slice'])
@pytest.mark.parametrize('shape', [(100, 192), (2, 100, 192), (3, 2, 50, 192)])
@pytest.mark.parametrize('bias', [True, False])
def test_inner_product(inner_product, shape, layout, bias):
    x, weight = tokens(*shape, layout=layout), tokens(256, 192, layout=layout)
    bias = torch.randn(256) if bias else None
    expected = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.no_grad():
        assert products.suits_inner_product(x, weight)
        found = [products.linear(x, weight, bias)]
        if x.dim() == 2 and bias is not None:
            found.append(products.linear_gelu(x, weight, bias))
    for out, wanted in zip(found, (expected, nn.functional.gelu(expected))):
        assert out.shape == wanted.shape and out.is_contiguous()
        torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-4)


def test_inner_product_is_for_inference_of_some_hundred_tokens_in_fp32(inner_product, monkeypatch):
    x, weight = torch.zeros(100, 192), torch.zeros(256, 192)
    assert not products.suits_inner_product(x, weight)
    assert products.linear(x.requires_grad_(), weight).requires_grad
    with torch.no_grad():
        assert products.suits_inner_product(x, weight)
        for few_or_many in (x[:40], torch.zeros(2000, 192)):
            assert not products.suits_inner_product(few_or_many, weight)
        assert not products.suits_inner_product(x, weight[:50])
        assert not products.suits_inner_product(torch.zeros(100, 2048), torch.zeros(512, 2048))
        assert not products.suits_inner_product(x.bfloat16(), weight.bfloat16())
        assert not products.suits_inner_product(x.double(), weight.double())
        assert not products.suits_inner_product(x.to('meta'), weight.to('meta'))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert products.linear(x, weight).dtype == torch.bfloat16
        monkeypatch.setattr(products, 'MKL_IS_FASTER', True)
        assert not products.suits_inner_product(x, weight)


@pytest.mark.skipif(not hasattr(torch.library, 'opcheck'), reason='no operators of our own in this PyTorch')
@pytest.mark.parametrize('bias', [True, False])
def test_operator_of_compiled_models(bias):
    arguments = torch.randn(2, N, C), torch.randn(D, C), torch.randn(D) if bias else None
    torch.library.opcheck(
        products._opaque_linear, tuple(t if t is None else t.requires_grad_() for t in arguments), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize('layout', ['rows', 'columns', 'slice'])
def test_gradients_without_autograd(library, layout):
    x, grad, weight = tokens(N, C, layout=layout), tokens(N, D, layout=layout), torch.randn(D, C)
    found = products.linear_backward(grad, x, weight)
    for ours, wanted in zip(found, (grad @ weight, grad.t() @ x, grad.sum(0))):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(products.product_over_tokens(grad, x), grad.t() @ x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('images', [1, 3])
@pytest.mark.parametrize('prepare', [lambda m: m, products.by_columns])
def test_one_map_for_each_image(library, images, prepare):
    x, grad = torch.randn(images, N, C), torch.randn(images, N, D)
    matrix, offset = torch.randn(images, C, D), torch.randn(images, 1, D)
    torch.testing.assert_close(products.affine(x, prepare(matrix), offset), x @ matrix + offset, **CLOSE)
    grad_x, grad_matrix = products.affine_backward(grad, x, prepare(matrix))
    torch.testing.assert_close(grad_x, grad @ matrix.transpose(1, 2), **CLOSE)
    torch.testing.assert_close(grad_matrix, x.transpose(1, 2) @ grad, rtol=1e-5, atol=1e-4)


def test_few_tokens_other_types_and_exported_models_stay_with_linear_layers(monkeypatch):
    monkeypatch.setattr(products, 'ONEDNN', True)
    monkeypatch.setattr(products, 'MKL_IS_FASTER', False)
    assert products.suits_onednn(torch.zeros(1, N, C))
    assert not products.suits_onednn(torch.zeros(1, 1, C))
    assert not products.suits_onednn(torch.zeros(N, C, dtype=torch.bfloat16))
    assert not products.suits_onednn(torch.zeros(N, C, device='meta'))
    monkeypatch.setattr(products, 'MKL_IS_FASTER', True)
    assert not products.suits_onednn(torch.zeros(1, N, C)) and products.is_large_in_fp32(torch.zeros(1, N, C))
    monkeypatch.setattr(products, 'MKL_IS_FASTER', False)
    traced = torch.jit.trace(products.Linear(C, D), torch.randn(N, C))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert 'aten::linear' in kinds and not any('conv' in kind for kind in kinds)


def test_exported_programs_keep_linear_layers_and_compiled_ones_do_not(monkeypatch):
    if not hasattr(getattr(torch, 'compiler', None), '_is_exporting_flag'):
        pytest.skip('this PyTorch does not tell export from compile')
    monkeypatch.setattr(products, 'ONEDNN', True)
    monkeypatch.setattr(products, 'MKL_IS_FASTER', False)
    layer, x = products.Linear(C, D), torch.randn(N, C)

    def names(graph):
        return ' '.join(str(node.target) for node in graph.nodes)

    for strict in (False, True):
        exported = names(torch.export.export(layer, (x,), strict=strict).graph)
        assert 'linear' in exported and 'conv' not in exported
    compiled = []
    torch.compile(layer, backend=lambda module, _: compiled.append(names(module.graph)) or module.forward)(x)
    assert len(compiled) == 1 and 'xcit_mm.linear' in compiled[0]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('n', [1, N, 151, 192])
@pytest.mark.parametrize('gelu', [False, True])
def test_a_linear_layer_prepared_for_many_tokens(library, tiles, dtype, n, gelu):
    layer, x = nn.Linear(C, D).to(dtype), torch.randn(n, C).to(dtype)
    with torch.no_grad():
        expected = layer.double()(x.double())
        expected = nn.functional.gelu(expected) if gelu else expected
        layer = layer.to(dtype)
        run = products.prepared_linear(layer.weight, layer.bias, n, gelu)
        run(-x)
        found = run(x)
    close = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else CLOSE
    assert found.dtype == dtype and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, **close)


def test_images_of_tokens(tiles):
    x = torch.randn(150, C).bfloat16()
    image = products.as_image(x)
    assert image.shape == ((1, C, 3, 50) if tiles else (1, C, 1, 150)) and image.data_ptr() == x.data_ptr()
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert products.as_image(x[:149]).shape == (1, C, 1, 149)  # a prime number
    assert products.as_image(x.float()).shape == (1, C, 1, 150)


def test_another_pytorch_without_gelu_in_its_convolutions(monkeypatch):
    def refuse(*_):
        raise RuntimeError('no such operator')

    monkeypatch.setattr(products, '_convolution', refuse)
    products._has_own_convolution.cache_clear()
    image, weight, bias = torch.randn(1, C, 5, 7), torch.randn(D, C, 3, 3), torch.randn(D)
    try:
        found = products.conv_gelu(image.contiguous(memory_format=torch.channels_last), weight, bias, 2, 1)
    finally:
        products._has_own_convolution.cache_clear()
    torch.testing.assert_close(found, nn.functional.gelu(nn.functional.conv2d(image, weight, bias, 2, 1)), **CLOSE)


def test_another_pytorch_without_inner_products(inner_product, monkeypatch):
    def refuse(*_):
        raise AttributeError('no such operator')

    monkeypatch.setattr(products, '_inner_product', refuse)
    products._has_inner_product.cache_clear()
    x, weight = torch.randn(100, 192), torch.randn(256, 192)
    try:
        with torch.no_grad():
            found = products.linear(x, weight)
    finally:
        products._has_inner_product.cache_clear()
    torch.testing.assert_close(found, x @ weight.t(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('channels', [6, 3])
@pytest.mark.parametrize('bias', [True, False])
def test_large_convolutions_by_a_part_of_their_channels(monkeypatch, bias, channels):
    reference = nn.Conv2d(4, channels, 3, stride=2, padding=1, bias=bias)
    ours = products.Conv2d(4, channels, 3, stride=2, padding=1, bias=bias)
    ours.load_state_dict(reference.state_dict())
    image = torch.randn(2, 4, 9, 12).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(products.Conv2d, 'LARGEST', 2 * 9 * 12)  # one output channel, or a few where that cannot be
    calls = []
    monkeypatch.setattr(ours, '_conv_forward', lambda *args: calls.append(args) or nn.Conv2d._conv_forward(ours, *args))
    a, b = image.clone().requires_grad_(), image.clone().requires_grad_()
    out, expected = ours(a), reference(b)
    assert len(calls) == channels and out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    for found, wanted in ((a, b), *zip(ours.parameters(), reference.parameters())):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-5)
    calls.clear()
    with torch.no_grad():
        ours(image)
    assert len(calls) == 1  # inference has nothing to gain


@pytest.mark.slow
def test_gradients_of_huge_images_take_time_in_proportion_to_their_size():
    """As one convolution, the larger takes oneDNN a quarter of an hour."""

    def seconds(rows):
        conv = products.Conv2d(64, 128, 3, stride=2, padding=1, bias=False)
        out = conv(torch.ones(1, 64, rows, 2048).contiguous(memory_format=torch.channels_last))
        start = time.perf_counter()
        out.backward(torch.ones_like(out))
        return time.perf_counter() - start

    seconds(64)
    assert seconds(2048) < 10 * seconds(1024)
