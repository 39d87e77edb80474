"""Whole models by the Triton kernels, in Triton's interpreter, beside the reference."""

import copy
from collections import Counter
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from backbones import build, deviation, randomise
from functorch.compile import make_boxed_func
from interpreting import interpreted

from xcit_mm import ops
from xcit_mm.ops import dispatch, fused, trial

pytest.importorskip('triton', minversion='3.0', reason='needs Triton 3, which comes with PyTorch 2.4')
FORMS = pytest.mark.parametrize('covariance', [True, False], ids=['covariance form', 'token form'])
SMALL = dict(embed_dims=16, depth=2, num_heads=2)


def model(**changes):
    settings = dict(arch=SMALL, patch_size=8, out_type='featmap', out_indices=(1,))
    return randomise(build(**{**settings, **changes}))


@contextmanager
def kernels(covariance=True, tried=False):
    """Every part by the kernels, also on this machine and in fp32, and XCA by this form."""
    always = mock.patch.object(trial, 'suits', lambda *_: True)
    # The trial calls the kernels too.
    passed = nullcontext() if tried else mock.patch.object(trial, 'passes', lambda *_: True)
    with always, passed, mock.patch.object(dispatch, 'prefers_covariance', lambda *_, **__: covariance):
        yield


def branches(covariance, depth=SMALL['depth']):
    return dict.fromkeys(('xca' if covariance else 'token_form', 'lpi', 'mlp'), depth)


@contextmanager
def called_in_every_block(covariance):
    """The three branches of each block went through this door."""
    with mock.patch.object(fused, '_run', wraps=fused._run) as spy:
        yield
    assert Counter(call.args[0] for call in spy.call_args_list) == branches(covariance)


def image(size=(24, 40)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


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


def gradients(net, order=1, size=(24, 40), run=None):
    x = image(size).requires_grad_()
    torch.manual_seed(0)  # stochastic depth
    loss = sum(out.square().mean() for out in (net if run is None else run)(x))
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
    return differences(found, expected)


def differences(found, expected):
    assert found.keys() == expected.keys()
    return {
        name: ((found[name] - value).abs().max() / value.abs().max().clamp_min(1e-3)).item()
        for name, value in expected.items()
        if value is not None and value.is_floating_point()
    }


@FORMS
@pytest.mark.parametrize(
    'settings',
    [
        pytest.param({}, id='statistics of the batch'),
        pytest.param(dict(norm_eval=True), id='frozen statistics'),
        pytest.param(
            dict(bn_norm_cfg=dict(type='BN', momentum=None)), marks=pytest.mark.slow, id='average of all batches'
        ),
    ],
)
def test_gradients_and_running_statistics(settings, covariance):
    """As with the reference, whose batch norms change the same running statistics."""
    errors = interpreted(training, covariance, 1, *settings.items())
    assert any('running_var' in name for name in errors)
    assert max(errors.values()) < 2e-4, errors


@FORMS
def test_gradients_of_gradients(covariance):
    errors = interpreted(training, covariance, 2)
    assert max(errors.values()) < 1e-3, errors


def operators_of(graph):
    names = (str(node.target) for node in graph.graph.nodes if node.op == 'call_function')
    return dict(Counter(name.split('.')[1] for name in names if name.startswith('xcit_mm')))


def compiled_training(covariance, kind, *settings):
    """Operators of all compiled graphs, and deviations from eager mode: output, gradients, statistics; of two sizes."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor import config

    graphs = []

    def recording(graph, _):
        graphs.append(operators_of(graph))
        return make_boxed_func(graph.forward)

    net = model(arch=dict(SMALL, depth=1), out_indices=(0,), drop_path_rate=0.3, **dict(settings)).train()
    twin = copy.deepcopy(net)
    backend = 'inductor' if kind == 'inductor' else aot_autograd(fw_compiler=recording, bw_compiler=recording)
    compiled = torch.compile(net, backend=backend, fullgraph=True, dynamic=True)
    autocast = torch.autocast('cpu', torch.bfloat16, enabled=kind == 'autocast')
    errors = {}
    for size in ((24, 40), (48, 32)):
        with kernels(covariance), autocast, mock.patch.object(config, 'fallback_random', True):
            expected, found = gradients(twin, size=size), gradients(net, size=size, run=compiled)
        errors.update({f'{name} {size}': error for name, error in differences(found, expected).items()})
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers()) if not a.is_floating_point())
    return graphs, errors


@pytest.mark.parametrize(
    'covariance, kind, settings',
    [
        pytest.param(True, 'fp32', {}, id='covariance form'),
        pytest.param(False, 'fp32', {}, id='token form'),
        pytest.param(True, 'autocast', {}, id='covariance form, autocast'),
        pytest.param(False, 'autocast', {}, marks=pytest.mark.slow, id='token form, autocast'),
        pytest.param(True, 'fp32', dict(norm_eval=True), marks=pytest.mark.slow, id='frozen statistics'),
        pytest.param(True, 'fp32', dict(with_cp=True), id='activation checkpointing'),
        pytest.param(True, 'inductor', {}, marks=pytest.mark.slow, id='Inductor'),
    ],
)
def test_compiled_training_has_the_kernels(kind, settings, covariance):
    """One graph forward and one backward, of the kernels alone, for all sizes; it computes what eager mode does."""
    graphs, errors = interpreted(compiled_training, covariance, kind, *settings.items())
    if kind != 'inductor':  # which lets nobody see its graphs
        expected = branches(covariance, depth=1)
        recomputed = expected if 'with_cp' in settings else {}
        assert graphs == [expected, {**recomputed, **{f'{name}_backward': n for name, n in expected.items()}}]
    assert any('running_var' in name for name in errors)
    assert max(errors.values()) < (3e-2 if kind == 'autocast' else 1e-5), errors  # whose convolutions are in bf16
