"""Mixed precision stays finite and near fp32; memory stays where it is over many steps."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from backbones import build
from half_types import BOUND, HAS_FP16, TYPES
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import xcit_mm.models.xcit as xcit
from xcit_mm.benchmark.machine import process_memory
from xcit_mm.benchmark.memory import return_free_memory

pytestmark = pytest.mark.usefixtures('one_thread', 'covariance_of_few_tokens')

SMALL = dict(embed_dims=32, depth=4, num_heads=4)


def classifier(seed=0, **kwargs):
    torch.manual_seed(seed)
    backbone = build(out_type='cls_token', **kwargs)
    return nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(backbone.embed_dims, 10))).train()


def step(model, image, label, dtype, scale=1.0):
    """The loss and the gradients of one training step; ``scale`` as a gradient scaler would."""
    model.zero_grad()
    torch.manual_seed(0)  # stochastic depth
    with torch.autocast('cpu', dtype, enabled=dtype is not None):
        logits = model['head'](model['backbone'](image)[-1])
    loss = nn.functional.cross_entropy(logits.float(), label)
    (loss * scale).backward()
    return loss.item(), {name: p.grad / scale for name, p in model.named_parameters()}


def as_vector(gradients):
    return torch.cat([grad.flatten().double() for grad in gradients.values()])


def batch_of(size, number=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, size, size, generator=generator), torch.arange(number)


def assert_near(model, image, label, dtype, bound=None):
    loss, gradients = step(model, image, label, None)
    half_loss, half = step(model, image, label, dtype, scale=128.0)
    assert np.isfinite(half_loss)
    for name, grad in half.items():
        assert grad.isfinite().all(), name
    exact, found = as_vector(gradients), as_vector(half)
    error = ((found - exact).norm() / exact.norm()).item()
    print(f'{dtype}: loss {loss:.4f} and {half_loss:.4f}, gradients off by {error:.4f}')
    bound = bound or BOUND[dtype]
    assert error < bound and abs(half_loss - loss) < bound * abs(loss)


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('drop_path', [0.0, 0.3])
@pytest.mark.parametrize('size', [64, 256])
def test_a_training_step_is_near_that_of_fp32(size, drop_path, dtype):
    """Both forms of the attention: 16 tokens and 256 for 32 channels."""
    assert_near(classifier(arch=SMALL, patch_size=16, drop_path_rate=drop_path), *batch_of(size), dtype)


@pytest.mark.parametrize('dtype', TYPES)
def test_gradients_of_deep_models_at_their_published_start(dtype):
    """LayerScale starts at 1e-5, and a branch times that is below most of fp16's numbers."""
    torch.manual_seed(0)
    net = build(out_type='featmap', arch=SMALL, patch_size=16, layer_scale_init_value=1e-5).train()
    image, _ = batch_of(256)

    def gradients(kind):
        net.zero_grad()
        with torch.autocast('cpu', kind, enabled=kind is not None):
            out = net(image)[0]
        out.float().backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)) * 1024)
        return {name: p.grad.clone() for name, p in net.blocks[0].named_parameters()}

    exact, half = gradients(None), gradients(dtype)
    for name, grad in exact.items():
        error = (half[name] - grad).norm() / grad.norm()
        assert error < 2 * BOUND[dtype], name  # of each tensor, instead of all together


@pytest.mark.parametrize('dtype', TYPES)
def test_many_tokens_of_large_values_do_not_overflow(dtype):
    """Sums over 65,536 tokens, of which fp16 cannot hold the squares."""
    model = build(arch=dict(embed_dims=16, depth=1, num_heads=2), patch_size=8, out_type='featmap').train()
    image = 30 * torch.randn(1, 3, 2048, 2048, generator=torch.Generator().manual_seed(0))
    with torch.autocast('cpu', dtype):
        (out,) = model(image)
    out.float().square().mean().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('arch', xcit.ARCHS)
def test_every_arch_trains_from_its_start_values(arch, dtype):
    assert_near(classifier(arch=arch, patch_size=16), *batch_of(128), dtype)


class HalfProducts(TorchDispatchMode):
    """Products of fp16 as a GPU computes them: sums in fp32, rounded to fp16. The CPU's own take 100 times as long."""

    PRODUCTS = {
        getattr(torch.ops.aten, name).default
        for name in ('mm', 'addmm', 'bmm', 'baddbmm', 'convolution', 'convolution_backward')
    }

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in self.PRODUCTS or args[0].dtype != torch.float16:
            return func(*args, **(kwargs or {}))
        self.count += 1
        args = tree_map_only(torch.Tensor, lambda t: t.float(), args)
        return tree_map_only(torch.Tensor, lambda t: t.half(), func(*args, **(kwargs or {})))


@pytest.mark.skipif(not HAS_FP16, reason='PyTorch 2.4 is the first with fp16 autocast on the CPU')
def test_products_as_on_a_gpu_are_near_those_of_the_cpu():
    model, (image, label) = classifier(arch=SMALL, patch_size=16), batch_of(256)
    loss, gradients = step(model, image, label, torch.float16, scale=128.0)
    with HalfProducts() as products:
        other_loss, others = step(model, image, label, torch.float16, scale=128.0)
    assert products.count > 50
    exact = as_vector(gradients)
    assert (as_vector(others) - exact).norm() < 0.01 * exact.norm() and other_loss == pytest.approx(loss, 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('arch', xcit.ARCHS)
def test_every_arch_trains_at_4096_pixels(arch, dtype):
    model = classifier(arch=arch, patch_size=16, with_cp=True)
    image, label = batch_of(4096, 1)
    with HalfProducts() if dtype == torch.float16 else nullcontext():
        loss, gradients = step(model, image, label, dtype, scale=128.0)
    print(f'{arch}, {dtype}: loss {loss:.4f}')
    assert np.isfinite(loss) and all(grad.isfinite().all() for grad in gradients.values())


def growth(work, sizes):
    """How much memory the second half of the work adds: its largest value less that of the first half, in bytes.

    Without what the C library keeps of freed memory: with varying sizes that grows for a long while, with any model.
    """
    used = []
    for height, width in sizes:
        work(height, width)
        return_free_memory()
        used.append(process_memory('VmRSS'))
    half = len(used) // 2
    return max(used[half:]) - max(used[:half])


def sizes_of(number, largest):
    generator = np.random.default_rng(0)
    sizes = (32 * generator.integers(1, largest // 32 + 1, (number, 2))).tolist()  # as detectors pad them
    return [*sizes[: number // 4], [largest, largest], *sizes[number // 4 : -1]]


@pytest.mark.parametrize(
    'number, largest, arch', [(30, 96, SMALL), pytest.param(200, 384, 't12', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('training', [True, False], ids=['training', 'inference'])
def test_memory_does_not_grow(training, number, largest, arch):
    torch.manual_seed(0)
    model = build(arch=arch, patch_size=8, out_type='pyramid', out_indices=(0, 1, 2, 3)).train(training)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

    def train(height, width):
        optimizer.zero_grad()
        sum(out.square().mean() for out in model(torch.randn(1, 3, height, width))).backward()
        optimizer.step()

    @torch.no_grad()
    def infer(height, width):
        model(torch.randn(1, 3, height, width))

    added = growth(train if training else infer, sizes_of(number, largest))
    print(f'{number} {"iterations" if training else "inferences"} up to {largest} pixels: {added / 1e6:+.1f} MB')
    assert added < 24e6
