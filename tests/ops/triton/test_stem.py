"""The patch embedding's kernels in Triton's interpreter, beside PyTorch's layers in fp64."""

import copy
from unittest import mock

import pytest
import torch
from interpreting import interpreted
from torch import nn

from xcit_mm import ops
from xcit_mm.models.xcit import PatchEmbed
from xcit_mm.ops import dispatch, fused, trial
from xcit_mm.ops import triton as kernels

SINGLE, HALF = torch.float32, torch.bfloat16


def layers(channels, width, patch_size):
    """The published ones, with other numbers than their initial ones in each batch norm."""
    torch.manual_seed(0)
    embed = PatchEmbed(channels, width, patch_size, dict(type='BN', eps=1e-3), dict(type='GELU')).eval()
    for module in embed.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return embed.proj.requires_grad_(False)


def image_of(batch, channels, height, width, layout='NCHW', dtype=SINGLE):
    image = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    if layout == 'channels last':
        return image.contiguous(memory_format=torch.channels_last)
    if layout == 'crop':  # every stride is another one than of a tensor of this size
        whole = torch.randn(batch + 1, channels + 1, height + 3, 2 * width).to(dtype)
        whole[1:, 1:, 2:-1, ::2] = image
        return whole[1:, 1:, 2:-1, ::2]
    return image


def errors(image, proj, dtype):
    """Largest error over largest value, of the kernels and of the layers in the same type."""
    exact = copy.deepcopy(proj).double()(image.double())
    found = fused.embed_patches(image, proj[::2], dtype)
    assert found.dtype == dtype and found.is_contiguous()
    with torch.autocast('cpu', dtype, enabled=dtype != image.dtype):
        plain = proj.to(image.dtype)(image)
    return [((t.double() - exact).abs().max() / exact.abs().max()).item() for t in (found.permute(0, 3, 1, 2), plain)]


def error_in_fp32(size, layout, width, patch_size):
    return errors(image_of(*size, layout), layers(size[1], width, patch_size), SINGLE)[0]


@pytest.mark.parametrize('layout', ['NCHW', 'channels last', 'crop'])
@pytest.mark.parametrize(
    'size, width, patch_size',
    [
        pytest.param((3, 3, 37, 50), 96, 8, id='odd and even, a first layer of 24'),
        pytest.param((1, 3, 1, 70), 192, 8, id='one row'),
        pytest.param((2, 3, 41, 1), 96, 16, id='one column, four layers'),
        pytest.param((1, 3, 16, 35), 384, 16, id='a first layer of 48'),
        pytest.param((2, 3, 24, 24), 384, 8, id='a first layer of 96'),
        pytest.param((1, 3, 9, 23), 768, 8, id='a first layer of 192'),
        pytest.param((1, 3, 1, 1), 64, 8, id='one pixel'),
        pytest.param((2, 1, 19, 14), 32, 8, id='grey'),
        pytest.param((1, 7, 13, 20), 32, 8, id='seven channels'),
    ],
)
def test_fp32(size, layout, width, patch_size):
    assert interpreted(error_in_fp32, size, layout, width, patch_size) < 5e-6


def errors_in_half_precision(dtype, stream):
    return errors(image_of(2, 3, 37, 50, dtype=stream), layers(3, 192, 8), dtype)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision(dtype, autocast):
    """No further from fp64 than the layers in the same type, with weights in it or, as under autocast, in fp32."""
    fused, plain = interpreted(errors_in_half_precision, dtype, SINGLE if autocast else dtype)
    assert fused <= 1.2 * plain


def channels_last_weights():
    image, proj = image_of(2, 3, 13, 18), layers(3, 96, 8)
    found = [fused.embed_patches(image, net[::2], SINGLE) for net in (proj, proj.to(memory_format=torch.channels_last))]
    return torch.equal(*found)


def test_weights_of_any_layout():
    assert interpreted(channels_last_weights)


def ways():
    """By the layers, by the kernels, and by their operator; and how often the kernels were called."""
    image, proj = image_of(2, 3, 33, 40), layers(3, 96, 8)
    with torch.no_grad(), ops.use('reference'):
        found = [dispatch.embed_patches(image, proj)]
    operators = []

    def recording(graph, _):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    always = mock.patch.object(trial, 'suits', lambda *_: True)
    with torch.no_grad(), always, mock.patch.object(trial, '_KNOWN', {}):
        with mock.patch.object(fused, 'embed_patches', wraps=fused.embed_patches) as spy:
            found.append(dispatch.embed_patches(image, proj))
            count = spy.call_count
        found.append(torch.compile(dispatch.embed_patches, backend=recording, fullgraph=True)(image, proj))
    return found, count, operators


def test_published_layers_in_inference():
    (expected, *found), calls, operators = interpreted(ways)
    assert calls == 2, 'in a trial and for this image'
    assert any('xcit_mm_triton.embed_patches' in name for name in operators)
    for out in found:
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.fixture
def only_layers(monkeypatch):
    """The rule takes the kernels wherever it is asked, and they must not run."""
    monkeypatch.setattr(trial, 'suits', lambda *_: True)
    monkeypatch.setattr(trial, 'passes', lambda *_: True)
    monkeypatch.setattr(fused, 'embed_patches', mock.Mock(side_effect=AssertionError('by the kernels')))


def hooked(proj):
    proj[0][0].register_forward_hook(lambda *_: None)
    return proj


@pytest.mark.usefixtures('only_layers')
@pytest.mark.parametrize(
    'change',
    [
        pytest.param(lambda proj: proj.train(), id='statistics of the batch'),
        pytest.param(hooked, id='hooked'),
        pytest.param(lambda proj: nn.Sequential(*proj, nn.GELU()), id='another GELU'),
        pytest.param(lambda proj: nn.Sequential(proj[0], nn.ReLU(), *proj[2:]), id='another activation'),
    ],
)
def test_other_layers_are_called(change):
    image, proj = image_of(2, 3, 33, 40), change(layers(3, 96, 8))
    with torch.no_grad():
        torch.testing.assert_close(dispatch.embed_patches(image, proj), copy.deepcopy(proj)(image), rtol=0, atol=1e-5)


@pytest.mark.usefixtures('only_layers')
def test_gradients_are_of_the_layers():
    image, proj = image_of(2, 3, 33, 40).requires_grad_(), layers(3, 96, 8)
    dispatch.embed_patches(image, proj).sum().backward()
    assert image.grad.abs().sum() > 0


@pytest.mark.usefixtures('only_layers')
def test_wrong_images_are_errors_of_the_layers():
    proj = layers(3, 96, 8)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match='channels'):
            dispatch.embed_patches(image_of(1, 4, 8, 8), proj)
        with pytest.raises(RuntimeError, match='type'):
            dispatch.embed_patches(image_of(1, 3, 8, 8).half(), proj)


def outcome(fault=0.0):
    """What a trial says of the kernels, in three types."""
    right = fused.embed_patches
    wrong = mock.patch.object(fused, 'embed_patches', lambda *args: right(*args) * (1 + fault))
    state = torch.get_rng_state()
    with mock.patch.object(trial, '_KNOWN', {}), wrong, torch.inference_mode():
        case = 'stem', torch.device('cpu')
        found = [trial.passes(*case, dtype, (3, 24, 48, 96), False) for dtype in trial.TOLERANCE]
    assert torch.equal(state, torch.get_rng_state())
    return found


def test_trial():
    assert interpreted(outcome) == [True] * 3


@pytest.mark.filterwarnings('ignore:the fused kernels of the patch embedding')
def test_trial_finds_wrong_numbers():
    assert interpreted(outcome, 0.1) == [False] * 3


def test_rule(monkeypatch):
    monkeypatch.setattr(kernels, 'available', lambda x: True)
    image = torch.zeros(1, 3, 37, 50)
    assert kernels.suits('stem', image, HALF) and kernels.suits('stem', image.half(), torch.float16)
    assert not kernels.suits('stem', image, SINGLE)
    assert not kernels.suits('stem', image.double(), HALF) and not kernels.suits('stem', image[:0], HALF)
    assert not kernels.suits('stem', torch.zeros(1, 8, 4, 4), HALF), 'more taps than one step of a matmul'


def promised_and_returned():
    from xcit_mm.ops.triton import operators  # noqa: F401

    proj = layers(3, 96, 8)
    norms = [t for _, bn in proj[::2] for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var)]
    arguments = image_of(2, 3, 11, 16), [conv.weight for conv, _ in proj[::2]], norms, [1e-3] * 3, HALF
    operator = torch.ops.xcit_mm_triton.embed_patches.default
    return torch.library.opcheck(operator, arguments, test_utils=('test_schema', 'test_faketensor'))


def test_operator_returns_what_it_promises():
    assert set(interpreted(promised_and_returned).values()) == {'SUCCESS'}
