"""What a GPU would run: PyTorch follows types, shapes and devices of its tensors without one, but not their numbers.

The numbers of its path through the code are those of the same path on a CPU.
"""

import copy
from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest
import timm
import torch
from backbones import build, deviation, randomise
from half_types import BOUND, TYPES
from torch.utils._python_dispatch import TorchDispatchMode

from xcit_mm.models import attention, in_place, products, tokenwise, xcit
from xcit_mm.models.attention import XCA

fake = pytest.importorskip('torch._subclasses.fake_tensor')
HALF = {'fp16': torch.float16, 'bf16': torch.bfloat16}


class Launches(TorchDispatchMode):
    """Counts the operators that compute something, not those that look at memory differently."""

    VIEWS = 'alias as_strided detach expand permute prim promote_types select slice split t transpose unbind unsqueeze'

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).split('.')[1]
        self.count += name not in self.VIEWS.split() and not any(
            part in name for part in ('view', 'empty', 'split', 'device')
        )
        return function(*args, **(kwargs or {}))


@contextmanager
def on_gpu(kind, dtype):
    """Makes tensors and modules of a GPU; kind is 'fp32', 'half' (weights as well) or 'autocast'."""
    default = torch.get_default_dtype()
    with fake.FakeTensorMode(), torch.no_grad(), torch.device('cuda'):
        try:
            torch.set_default_dtype(dtype if kind == 'half' else torch.float32)
            # torch.autocast turns itself off where there is no GPU.
            torch.set_autocast_dtype('cuda', dtype)
            torch.set_autocast_enabled('cuda', kind == 'autocast')
            yield
        finally:
            torch.set_autocast_enabled('cuda', False)
            torch.set_default_dtype(default)


def launches(make, size, kind, dtype, batch=1):
    """Outputs and launches of inference by a model."""
    with on_gpu(kind, dtype):
        model, image = make().eval(), torch.empty(batch, 3, *size)
        with Launches() as launched:
            return model(image), launched.count


@pytest.fixture
def gpu(monkeypatch):
    """PyTorch's answers about a GPU that are no shapes."""
    if not hasattr(torch, 'get_autocast_dtype'):
        pytest.skip('this PyTorch cannot turn on autocast for a GPU that is not there')
    monkeypatch.setattr(attention, 'HAS_WIDE_PRODUCTS', True)
    monkeypatch.setattr(
        tokenwise, 'multiplies_into_fp32', lambda dtype, kind: kind == 'cuda' and dtype in HALF.values()
    )


@pytest.mark.parametrize('dtype', list(HALF))
@pytest.mark.parametrize('kind', ['fp32', 'half', 'autocast'])
@pytest.mark.parametrize('size', [(512, 512), (64, 90)])  # the covariance form and the token form
def test_everything_stays_on_the_device_and_in_its_type(gpu, monkeypatch, size, kind, dtype):
    forms = []
    chosen = XCA.takes_covariance
    monkeypatch.setitem(attention.LEAST_VALUES, 'gpu in half precision', 2**20)
    monkeypatch.setattr(XCA, 'takes_covariance', lambda *args: forms.append(chosen(*args)) or forms[-1])
    for out_type in ('cls_token', 'featmap', 'pyramid'):
        make = partial(build, arch='n12', patch_size=8, out_type=out_type)
        outs, _ = launches(make, size, kind, HALF[dtype], batch=2)
        assert {out.device.type for out in outs} == {'cuda'}
        if out_type != 'pyramid':  # of which autocast leaves the deconvolutions in half precision
            assert {out.dtype for out in outs} == {HALF[dtype] if kind == 'half' else torch.float32}
    assert len(forms) == 36 and set(forms) == {size == (512, 512)}


@pytest.mark.parametrize('kind', ['fp32', 'half', 'autocast'])
def test_launches_are_about_as_many_as_those_of_timm(gpu, kind):
    """Where a GPU waits for them, they are the time that it takes."""

    ours = partial(build, arch='s12', patch_size=8)
    theirs = partial(timm.create_model, 'xcit_small_12_p8_224', num_classes=0)
    few, many = (224, 224), (800, 1216)
    peer = launches(theirs, many, kind, torch.float16)[1]
    assert launches(ours, few, kind, torch.float16)[1] <= peer
    assert launches(ours, many, kind, torch.float16)[1] <= 1.5 * peer


@pytest.mark.parametrize('tiles', [False, True])  # of the CPU beside it, on which nothing may depend
@pytest.mark.parametrize('dtype', list(HALF.values()))
def test_choice_of_a_form(monkeypatch, dtype, tiles):
    monkeypatch.setattr(attention, 'HAS_TILES', tiles)

    def form(tokens_per_channel, dtype, batch=8):
        return XCA.prefers_covariance(int(tokens_per_channel * 384), 384, dtype, batch, 'cuda')

    assert [form(ratio, torch.float32) for ratio in (1.9, 2)] == [False, True]
    assert not form(2, torch.float32, batch=1)
    monkeypatch.setattr(attention, 'HAS_WIDE_PRODUCTS', True)
    assert [form(ratio, dtype) for ratio in (2, 7.9, 8)] == [False, False, True]
    assert not form(8, dtype, batch=1)
    monkeypatch.setattr(attention, 'HAS_WIDE_PRODUCTS', False)  # the moments need fp32
    assert [form(ratio, dtype) for ratio in (63.9, 64)] == [False, True]


@pytest.mark.parametrize('kind', ['half', 'autocast'])
def test_no_product_over_the_tokens_is_in_fp32_when_compiled(gpu, monkeypatch, kind):
    """A GPU multiplies ten times as fast in half precision, and keeps the sums in fp32 all the same."""

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            tensors = [t for t in args if isinstance(t, torch.Tensor)]
            if any(word in str(function) for word in ('mm', 'gram')) and any(1600 in t.shape for t in tensors):
                found.append((str(function), {t.dtype for t in tensors}))
            return function(*args, **(kwargs or {}))

    found = []
    for module in (products, tokenwise, attention):
        monkeypatch.setattr(module, 'is_traced', lambda: True)
    monkeypatch.setattr(tokenwise, 'is_exported', lambda: False)
    with on_gpu(kind, torch.float16), Products():
        out = XCA(64, 4)(torch.empty(2, 1600, 64))
    assert out.dtype == torch.float16
    assert found == [('xcit_mm.gram.default', {torch.float16}), ('aten.baddbmm.default', {torch.float16})]


@pytest.fixture
def path_of_gpus(monkeypatch):
    """On a CPU."""
    monkeypatch.setitem(tokenwise.CHUNK_SIZES, 'cpu', tokenwise.CHUNK_SIZES['other'])
    monkeypatch.setattr(tokenwise, 'LEAST_VALUES', 0)
    monkeypatch.setattr(tokenwise, 'gram_step', lambda x: x.shape[-1])
    monkeypatch.setattr(tokenwise, 'mirrored', lambda total: total)
    monkeypatch.setattr(tokenwise, 'adds_to_memory', lambda x, dtype: False)
    for module in (products, tokenwise):
        monkeypatch.setattr(module, 'ONEDNN', False)
        monkeypatch.setattr(module, 'by_columns', lambda matrix: matrix)
    for module in (xcit, in_place):
        monkeypatch.setattr(module, 'works_in_place', lambda *_: False)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.usefixtures('covariance_of_few_tokens', 'path_of_gpus')
def test_numbers_and_gradients(tiny, monkeypatch, training):
    net = randomise(build(arch=tiny, patch_size=8, out_type='featmap', drop_path_rate=0.3)).train(training)
    image = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        torch.manual_seed(0)
        inference = net(image)[0]
    outs = []
    for model in (net, twin):
        torch.manual_seed(0)  # stochastic depth
        outs.append(model(image)[0])
        outs[-1].square().mean().backward()
        monkeypatch.setattr(xcit.XCABlock, '_can_be_chunked', lambda self, x: False)  # the twin runs as written
    assert max(deviation(inference, outs[1]), deviation(outs[0], outs[1])) < 2e-6
    for (name, ours), reference in zip(net.named_parameters(), twin.parameters()):
        scale = reference.grad.abs().max()
        assert torch.allclose(ours.grad, reference.grad, rtol=0, atol=2e-4 * scale + 1e-9), name


@pytest.mark.parametrize('training', [False, True])
def test_lpi_in_the_other_layout(monkeypatch, training):
    lpi = randomise(xcit.LPI(16, dict(type='BN'), dict(type='GELU'))).train(training)
    layouts, results = [], []
    lpi.conv1.register_forward_pre_hook(lambda _, args: layouts.append(args[0].stride()))
    for first in (False, True):
        monkeypatch.setattr(xcit, 'prefers_channels_first', lambda *_, first=first: first)
        tokens = torch.randn(2, 48, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = lpi(tokens, (6, 8))
        results.append((out, *torch.autograd.grad(out.sin().sum(), (tokens, *lpi.parameters()))))
    assert layouts == [(768, 1, 128, 16), (768, 48, 8, 1)]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*results))


@pytest.mark.parametrize('backward', [False, True])
def test_the_faster_layout_is_measured(monkeypatch, backward):
    class Convolutions(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if 'convolution' in str(function):
                found[str(function).split('.')[1], args[1 if 'backward' in str(function) else 0].stride(1) == 1] += 1
            return function(*args, **(kwargs or {}))

    def seconds(tokens, weight, format, backward):
        measured = measure(tokens, weight, format, backward)
        assert measured > 0
        return measured + 1000 * (format is slower)

    measure = products._depthwise_seconds
    monkeypatch.setattr(products, '_depthwise_seconds', seconds)
    for slower in (torch.contiguous_format, torch.channels_last):
        found = Counter()
        with Convolutions():
            first = products.is_faster_channels_first(torch.device('cpu'), torch.float32, 16, backward)
        assert first is (slower is torch.channels_last)
        names = ['convolution', 'convolution_backward'] if backward else ['convolution']
        assert found == {(name, last): 24 for name in names for last in (False, True)}
    assert not products.prefers_channels_first(torch.zeros(1, 4, 64), backward)  # on a CPU that is known


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('form', ['covariance', 'token'])
@pytest.mark.usefixtures('covariance_of_few_tokens', 'path_of_gpus')
def test_gradients_in_mixed_precision(tiny, monkeypatch, form, dtype):
    """With products of half precision that keep the fp32 sums, which a CPU does not have."""

    def bmm(a, b, out_dtype=None):
        assert out_dtype in (None, torch.float32) and a.dtype == b.dtype
        wide.append(out_dtype is not None)
        return product(a, b) if out_dtype is None else product(a.float(), b.float())

    product, wide = torch.bmm, []
    monkeypatch.setattr(torch, 'bmm', bmm)
    monkeypatch.setattr(tokenwise, 'multiplies_into_fp32', lambda dtype, kind: dtype in HALF.values())
    monkeypatch.setattr(XCA, 'takes_covariance', lambda *_: form == 'covariance')
    net = randomise(build(arch=tiny, patch_size=8, out_type='featmap', drop_path_rate=0.3)).train()
    image = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    gradients = []
    for half in (True, False):
        torch.manual_seed(0)  # stochastic depth
        net.zero_grad()
        with torch.autocast('cpu', dtype, enabled=half):
            out = net(image)[0]
        assert out.dtype == torch.float32
        (out.square().mean() * 128).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert any(wide) is (form == 'covariance')
    assert (gradients[0] - gradients[1]).norm() < BOUND[dtype] * gradients[1].norm()


@pytest.mark.parametrize('dtype', [torch.float32, *HALF.values()])
def test_norms_at_once_and_in_steps(dtype):
    tokens = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens[..., 1:3] *= torch.tensor([0, 1e3], dtype=dtype)
    results = []
    for at_once in (True, False):
        x = tokens.clone().requires_grad_()
        norms = attention._inverse_norms(x, at_once)
        results.append((norms, *torch.autograd.grad(norms[:, 2:].sum(), x)))
    assert all(
        a.isfinite().all() and torch.allclose(a, b, rtol=1e-2 if a.dtype in HALF.values() else 1e-5)
        for a, b in zip(*results)
    )
