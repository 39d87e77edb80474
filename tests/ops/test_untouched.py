"""Whoever looks at a layer, or changes it, gets what the changed layers compute: nothing is silently ignored.

Every way goes over every layer, in inference and with gradients, at a size at which the fast paths run.
"""

import copy
from contextlib import contextmanager

import pytest
import torch
from backbones import build, deviation, randomise
from torch import nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrizations, prune, weight_norm
from torch.utils.flop_counter import FlopCounterMode

from xcit_mm import ops
from xcit_mm.models.xcit import XCABlock
from xcit_mm.ops import dispatch

pytestmark = pytest.mark.usefixtures('one_thread', 'covariance_of_few_tokens')

OLD = torch.__version__ < torch.torch_version.TorchVersion('2.4')
LEAVES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm, nn.BatchNorm2d, nn.GELU, nn.MaxPool2d)


@pytest.fixture(autouse=True)
def fast_paths_of_few_tokens(monkeypatch):
    monkeypatch.setattr(dispatch, 'LEAST_VALUES', 0)
    monkeypatch.setattr(dispatch, 'LEAST_VALUES_OF_STEM', 0)


@pytest.fixture(params=['cls_token', 'pyramid'])
def net(request, tiny):
    indices = dict(out_indices=(0, 1, 2, 3)) if request.param == 'pyramid' else {}
    return randomise(build(arch=tiny, patch_size=16, out_type=request.param, **indices))


@pytest.fixture(params=[False, True], ids=['inference', 'gradients'])
def recording(request):
    with torch.set_grad_enabled(request.param):
        yield request.param


def image(batch=2):
    return torch.randn(batch, 3, 192, 192, generator=torch.Generator().manual_seed(0))


def leaves(net):
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, LEAVES)}


def last(outs):
    """All of the outputs as one vector."""
    return torch.cat([out.flatten() for out in outs])


def check(changed, net):
    """The changed model computes what its layers do, and this differs from the model as it was."""
    found, before = last(changed(image())), last(net(image()))
    with ops.use('reference'):
        expected = last(changed(image()))
    assert deviation(found, expected) < 2e-6
    assert deviation(before, expected) > 1e-3
    return found


def test_the_fast_paths_run_when_nobody_does(net, recording, monkeypatch):
    """Or the tests of this module would test nothing."""
    called = []
    for layer in leaves(net).values():
        layer._watched = layer.register_forward_hook(lambda layer, *_: called.append(layer))
        layer._watched.remove()
    monkeypatch.setattr(nn.Linear, '__call__', lambda self, x: called.append(self) or nn.Module.__call__(self, x))
    net(image())
    linears = {name for name, layer in leaves(net).items() if layer in called}
    assert all(name.startswith('cls_attn_blocks') and 'qkv' not in name for name in linears)


@pytest.mark.parametrize('kind', ['forward', 'pre', 'backward', 'backward_pre'])
def test_hooks_of_every_kind_on_every_layer(net, kind):
    seen = set()
    register = dict(
        forward='register_forward_hook',
        pre='register_forward_pre_hook',
        backward='register_full_backward_hook',
        backward_pre='register_full_backward_pre_hook',
    )[kind]
    for name, layer in net.named_modules():
        getattr(layer, register)(lambda *_, name=name: seen.add(name))
    with torch.set_grad_enabled('backward' in kind):
        out = last(net(image().requires_grad_('backward' in kind)))
    if 'backward' in kind:
        out.sum().backward()
    assert set(leaves(net)) <= seen
    branches = {f'blocks.{i}.{part}' for i in range(4) for part in ('attn', 'lpi', 'mlp', 'attn.attn_drop')}
    assert branches <= seen


@pytest.mark.parametrize('kind', ['forward', 'pre', 'backward', 'backward_pre'])
def test_hooks_on_all_modules(net, kind):
    seen = set()
    register = dict(
        forward=nn_module.register_module_forward_hook,
        pre=nn_module.register_module_forward_pre_hook,
        backward=nn_module.register_module_full_backward_hook,
        backward_pre=nn_module.register_module_full_backward_pre_hook,
    )[kind]
    handle = register(lambda layer, *_: seen.add(layer))
    try:
        out = last(net(image().requires_grad_('backward' in kind)))
        if 'backward' in kind:
            out.sum().backward()
    finally:
        handle.remove()
    assert set(leaves(net).values()) <= seen


def test_hooks_that_change_one_layer(net, recording):
    """One at a time: each branch is decided on its own."""
    names = [n for n in leaves(net) if n.startswith(('patch_embed', 'pos_embed', 'blocks.1', 'cls', 'pyramid'))]
    plain = last(net(image()))
    for name in names:
        handle = net.get_submodule(name).register_forward_hook(lambda m, args, out: out * 1.5)
        found = last(net(image()))
        with ops.use('reference'):
            assert deviation(found, last(net(image()))) < 5e-6, name
        assert deviation(found, plain) > 1e-5, name
        handle.remove()
    assert torch.equal(last(net(image())), plain)


@pytest.mark.parametrize('where', ['instance', 'class'])
def test_a_replaced_forward(net, recording, where, monkeypatch):
    """As tools do that move weights between devices."""
    changed, called = copy.deepcopy(net), set()

    def replace(owner, forward):
        def replaced(*args):
            called.add(args[0] if where == 'class' else owner)
            return 1.1 * forward(*args)

        monkeypatch.setattr(owner, 'forward', replaced)

    if where == 'instance':
        for layer in leaves(changed).values():
            replace(layer, layer.forward)
        check(changed, net)
        assert called == set(leaves(changed).values())
    else:
        replace(nn.Linear, nn.Linear.forward)
        last(changed(image()))
        assert called == {layer for layer in leaves(changed).values() if isinstance(layer, nn.Linear)}


class LoRA(nn.Module):
    """As in peft: the weights are those of the layer below, and the forward pass adds to it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


def replace_linears(model, make):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, make(layer))


def test_lora_is_what_its_merged_weights_compute(net):
    lora = copy.deepcopy(net).requires_grad_(False)
    replace_linears(lora, LoRA)
    merged = copy.deepcopy(net)
    for name, layer in lora.named_modules():
        if isinstance(layer, LoRA):
            merged.get_submodule(name).weight.data += layer.up.weight.data @ layer.down.weight.data
    for recording in (False, True):
        with torch.set_grad_enabled(recording):
            found = last(lora(image()))
        assert deviation(found, last(merged(image()))) < 1e-5
    (found * torch.linspace(-1, 1, found.numel())).sum().backward()
    adapters = [p for name, p in lora.named_parameters() if 'up' in name or 'down' in name]
    assert len(adapters) == 2 * sum(isinstance(layer, LoRA) for layer in lora.modules())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters)


@pytest.mark.parametrize('target', ['.*qkv', '.*attn.proj', '.*fc1'])
def test_mmpretrains_lora_trains_saves_and_loads(tiny, target, tmp_path):
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    head = dict(type='LinearClsHead', num_classes=3, in_channels=32, loss=dict(type='CrossEntropyLoss'))
    backbone = dict(type='xcit_mm.XCiT', arch=tiny, patch_size=16)
    cfg = dict(type='LoRAModel', alpha=4, rank=2, targets=[dict(type=target)])
    cfg['module'] = dict(type='ImageClassifier', backbone=backbone, head=head)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model, other = (MODELS.build(copy.deepcopy(cfg)) for _ in range(2))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    before = last(model.module.backbone(image()))
    for _ in range(2):  # the first step moves the second matrix alone, since that starts at zero
        optimizer.zero_grad()
        last(model.module.backbone(image())).sin().sum().backward()
        lora = {name: p for name, p in model.named_parameters() if 'lora' in name}
        assert lora and all(p.grad is not None for p in lora.values())
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in lora.values())
    with torch.no_grad():
        after = last(model.module.backbone(image()))
    assert deviation(after, before) > 1e-4
    torch.save(model.state_dict(), tmp_path / 'lora.pth')
    incompatible = other.load_state_dict(torch.load(tmp_path / 'lora.pth'), strict=False)
    assert not incompatible.unexpected_keys
    rest = {name: value for name, value in model.module.state_dict().items() if 'lora' not in name}
    nn.Module.load_state_dict(other.module, rest, strict=False)
    with torch.no_grad():
        assert deviation(last(other.module.backbone(image())), after) < 1e-6


@pytest.mark.parametrize('kind', ['prune', 'weight_norm', 'parametrizations'])
def test_pruned_and_reparametrized_layers(net, recording, kind):
    changed = copy.deepcopy(net)
    for layer in leaves(changed).values():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            if kind == 'prune':
                prune.l1_unstructured(layer, 'weight', 0.3)
            elif kind == 'weight_norm':
                weight_norm(layer)
                layer.weight_g.data *= 1.2
            else:
                parametrizations.weight_norm(layer)
                layer.parametrizations.weight.original0.data *= 1.2
    check(changed, net)
    expected, saved = last(changed(image())), copy.deepcopy(changed.state_dict())
    for p in changed.parameters():
        p.data.add_(0.1)
    changed(image())
    nn.Module.load_state_dict(changed, saved)
    assert deviation(last(changed(image())), expected) < 1e-6


@pytest.mark.filterwarnings('ignore:torch.ao.quantization:DeprecationWarning')
def test_dynamic_quantisation(tiny):
    net = randomise(build(arch=tiny, patch_size=16))
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8)
    linears = sum(isinstance(layer, nn.Linear) for layer in net.modules())
    kind = torch.ao.nn.quantized.dynamic.Linear
    assert sum(isinstance(layer, kind) for layer in quantised.modules()) == linears
    with torch.no_grad():
        error = deviation(last(quantised(image())), last(net(image())))
    assert 0 < error < 0.2


@pytest.mark.parametrize(
    'part, layer',
    [
        ('blocks.1.mlp.act', nn.ReLU()),
        ('blocks.1.mlp.act', nn.GELU(approximate='tanh')),
        ('blocks.1.mlp.act', nn.Identity()),
        ('blocks.1.norm1', nn.Identity()),
        ('blocks.1.norm2', nn.LayerNorm(32, elementwise_affine=False)),
        ('blocks.1.norm3', nn.LayerNorm(32, bias=False) if torch.__version__ >= '2.1' else nn.Identity()),
        ('blocks.1.attn.qkv', nn.Linear(32, 96, bias=False)),
        ('blocks.1.attn.proj_drop', nn.Identity()),
        ('blocks.1.lpi.conv1', nn.Conv2d(32, 32, 5, padding=2, groups=32)),
        ('blocks.1.lpi.conv2', nn.Conv2d(32, 32, 3, padding=1, groups=32, padding_mode='reflect')),
        ('blocks.1.lpi.conv2', nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32)),
        ('blocks.1.lpi.conv2', nn.Conv2d(32, 32, 3, padding=1)),
        ('blocks.1.lpi.bn', nn.GroupNorm(4, 32)),
        ('blocks.1.lpi.bn', nn.BatchNorm2d(32, affine=False)),
        ('blocks.1.lpi.bn', nn.BatchNorm2d(32, track_running_stats=False)),
        ('patch_embed.proj.1', nn.Identity()),
        ('patch_embed.proj.0.0', nn.Conv2d(3, 4, 3, stride=2, padding=1)),
        ('patch_embed.proj.0.1', nn.BatchNorm2d(4, track_running_stats=False)),
        ('patch_embed.proj.6.1', nn.InstanceNorm2d(32, affine=True)),
        ('cls_attn_blocks.0.attn.qkv', nn.Linear(32, 96, bias=False)),
    ],
)
def test_a_replaced_layer(tiny, part, layer, recording):
    net = randomise(build(arch=tiny, patch_size=16))
    changed = copy.deepcopy(net)
    parent, _, name = part.rpartition('.')
    torch.manual_seed(0)
    changed.get_submodule(parent)._modules[name] = layer.eval()
    found = last(changed(image()))
    with ops.use('reference'):
        assert deviation(found, last(changed(image()))) < 2e-6


def test_a_subclass_of_a_branch(tiny, recording):
    class Mine(XCABlock):
        def forward(self, x, grid, inplace=False):
            return super().forward(x, grid, inplace) * torch.linspace(1, 2, x.shape[2])

    net = randomise(build(arch=tiny, patch_size=16))
    changed = copy.deepcopy(net)
    changed.blocks[1].__class__ = Mine
    check(changed, net)


def test_operations_counted_are_those_of_the_paper(tiny, recording):
    """As many as the layers do, whatever the fast paths do."""
    net = randomise(build(arch=tiny, patch_size=16, out_type='featmap'))
    with FlopCounterMode(display=False) as counted:
        net(image(1))
    N, C, d = 144, 32, 8
    linears = N * C * (3 * C + C + 8 * C)
    attention = 2 * N * C * d
    block = linears + attention + 2 * 9 * N * C
    sides, widths = (96, 48, 24, 12), (3, 4, 8, 16, 32)
    stem = sum(9 * side**2 * a * b for side, a, b in zip(sides, widths, widths[1:]))
    assert counted.get_total_flops() == 2 * (4 * block + stem + N * 64 * C)


@pytest.fixture
def backbone(tiny):
    return randomise(build(arch=tiny, patch_size=16))


def gradient(function, *inputs):
    return torch.autograd.grad(function(*inputs), inputs)


def loss(net, weights, x):
    return torch.func.functional_call(net, weights, (x,))[0].sin().sum()


def test_gradients_of_torch_func(backbone):
    weights = {name: p.detach() for name, p in backbone.named_parameters()}
    found = torch.func.grad(lambda w: loss(backbone, w, image()))(weights)
    loss(backbone, {}, image()).backward()
    for name, p in backbone.named_parameters():
        assert torch.allclose(found[name], p.grad, rtol=0, atol=2e-4 * p.grad.abs().max() + 1e-6), name


def test_vmap_and_jacobians(backbone):
    images = image(3)
    with torch.no_grad():
        expected = backbone(images)[0]
        assert deviation(torch.vmap(lambda x: backbone(x[None])[0][0])(images), expected) < 1e-5
    small = images[:1, :, :48, :48].double()
    backbone.double()
    jacobian = torch.func.jacrev(lambda x: backbone(x)[0][0, :3])(small)
    for i in range(3):
        x = small.clone().requires_grad_()
        (grad,) = torch.autograd.grad(backbone(x)[0][0, i], x)
        assert deviation(jacobian[i], grad) < 1e-6


@contextmanager
def dual_level():
    with torch.autograd.forward_ad.dual_level():
        yield torch.autograd.forward_ad


@pytest.mark.parametrize('way', ['jvp', 'dual'])
def test_forward_mode(backbone, way):
    backbone.double()
    x, direction = image().double(), torch.randn(2, 3, 192, 192, dtype=torch.float64)
    if way == 'jvp':
        _, found = torch.func.jvp(lambda x: backbone(x)[0], (x,), (direction,))
    else:
        with dual_level() as forward_ad:
            found = forward_ad.unpack_dual(backbone(forward_ad.make_dual(x, direction))[0]).tangent
    step = 1e-6 * direction
    with torch.no_grad(), ops.use('reference'):
        expected = (backbone(x + step)[0] - backbone(x - step)[0]) / 2e-6
    assert deviation(found, expected) < 1e-5


@pytest.mark.skipif(OLD, reason='torch.fx follows promote_types from PyTorch 2.4 on')
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('out_type', ['cls_token', 'pyramid'])
def test_fx(tiny, out_type, training):
    indices = dict(out_indices=(0, 1, 2, 3)) if out_type == 'pyramid' else {}
    net = randomise(build(arch=tiny, patch_size=16, out_type=out_type, **indices)).train(training)
    traced = torch.fx.symbolic_trace(copy.deepcopy(net))
    for size in ((192, 192), (90, 70)):
        x = torch.randn(2, 3, *size)
        assert deviation(last(traced(x)), last(net(x))) < 1e-5


def test_plain_layers(net):
    """What other tools look for."""
    allowed = {nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm, nn.BatchNorm2d, nn.GELU, nn.MaxPool2d}
    assert {type(layer) for layer in leaves(net).values()} <= allowed
