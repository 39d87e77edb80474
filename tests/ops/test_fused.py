"""Whole models by the Triton kernels, in Triton's interpreter, beside the reference."""

import copy
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from backbones import build, deviation, randomise
from interpreting import interpreted

from xcit_mm import ops
from xcit_mm.ops import dispatch, fused, trial

pytest.importorskip('triton', minversion='3.0', reason='needs Triton 3, which comes with PyTorch 2.4')
FORMS = pytest.mark.parametrize('covariance', [True, False], ids=['covariance form', 'token form'])
SMALL = dict(embed_dims=16, depth=2, num_heads=2)


def model(**changes):
    return randomise(build(arch=SMALL, patch_size=8, out_type='featmap', out_indices=(1,), **changes))


@contextmanager
def kernels(covariance=True, tried=False):
    """Every part by the kernels, also on this machine and in fp32, and XCA by this form."""
    always = mock.patch.object(trial, 'suits', lambda *_: True)
    # The trial calls the kernels too.
    passed = nullcontext() if tried else mock.patch.object(trial, 'passes', lambda *_: True)
    with always, passed, mock.patch.object(dispatch, 'prefers_covariance', lambda *_, **__: covariance):
        yield


@contextmanager
def called_in_every_block(covariance):
    """The three branches of each block went through this door."""
    with ExitStack() as stack:
        spies = [
            stack.enter_context(mock.patch.object(fused, name, wraps=getattr(fused, name)))
            for name in ('add_xca' if covariance else 'add_xca_by_tokens', 'add_lpi', 'add_mlp')
        ]
        yield
        assert [spy.call_count for spy in spies] == [SMALL['depth']] * 3


def image():
    return torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))


def inference(covariance):
    net = model()
    with torch.no_grad():
        with ops.use('reference'):
            (expected,) = net(image())
        with kernels(covariance), called_in_every_block(covariance):
            (eager,) = net(image())
        trial._KNOWN.clear()
        with kernels(covariance, tried=True):
            (compiled,) = torch.compile(net, backend='aot_eager', fullgraph=True)(image())
            assert len(trial._KNOWN) == 4 and all(trial._KNOWN.values())
    return deviation(eager, expected), deviation(compiled, expected)


@FORMS
def test_inference_eager_and_compiled(covariance):
    assert max(interpreted(inference, covariance)) < 2e-6


def gradients(net, order=1):
    x = image().requires_grad_()
    torch.manual_seed(0)  # stochastic depth
    loss = sum(out.square().mean() for out in net(x))
    if order == 2:
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        loss = grad.square().mean() * 1e3
    loss.backward()
    return {'image': x.grad, **{name: p.grad for name, p in net.named_parameters()}, **dict(net.named_buffers())}


def training(covariance, order, *settings):
    net = model(drop_path_rate=0.3, **dict(settings)).train()
    twin = copy.deepcopy(net)
    with ops.use('reference'):
        expected = gradients(twin, order)
    with kernels(covariance), called_in_every_block(covariance):
        found = gradients(net, order)
    assert found.keys() == expected.keys()
    return {
        name: ((found[name] - value).abs().max() / value.abs().max().clamp_min(1e-3)).item()
        for name, value in expected.items()
        if value is not None and value.is_floating_point()
    }


@FORMS
@pytest.mark.parametrize('settings', [{}, dict(norm_eval=True)], ids=['statistics of the batch', 'frozen statistics'])
def test_gradients_and_running_statistics(settings, covariance):
    """As with the reference, whose batch norms change the same running statistics."""
    errors = interpreted(training, covariance, 1, *settings.items())
    assert any('running_var' in name for name in errors)
    assert max(errors.values()) < 2e-4, errors


@FORMS
def test_gradients_of_gradients(covariance):
    errors = interpreted(training, covariance, 2)
    assert max(errors.values()) < 1e-3, errors
