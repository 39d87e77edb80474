"""The residual branches in chunks of tokens: outputs and gradients of the reference."""

import copy

import pytest
import torch
from backbones import build, deviation, randomise

from xcit_mm import ops
from xcit_mm.ops import chunks, dispatch, lpi, mlp, private, reference, xca

pytestmark = pytest.mark.usefixtures('covariance_of_few_tokens')


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks for each image, the last one shorter."""
    monkeypatch.setitem(chunks.CHUNK_VALUES, 'cpu', 50 * 32)  # 50 tokens, of which the images have 192, 80 and 25
    monkeypatch.setattr(dispatch, 'LEAST_VALUES', 0)


def model(tiny, **kwargs):
    return randomise(build(arch=tiny, patch_size=8, out_type='featmap', out_indices=(1, 3), **kwargs))


IMAGE = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def gradients(net, image):
    image = image.clone().requires_grad_()
    torch.manual_seed(0)  # stochastic depth
    outs = net(image)
    sum(out.float().square().mean() for out in outs).backward()
    return {'image': image.grad, **{name: p.grad for name, p in net.named_parameters()}}


@pytest.mark.parametrize('mkl', [True, False], ids=['MKL', 'oneDNN'])
@pytest.mark.parametrize('size', [(96, 128), (64, 80)])  # the covariance form, and more images than one in a chunk
def test_inference(tiny, monkeypatch, size, mkl):
    monkeypatch.setattr(ops.matmul, 'MKL_IS_FASTER', mkl)
    net, image = model(tiny), IMAGE[..., : size[0], : size[1]]
    with torch.no_grad():
        chunked = net(image)
        with ops.use('reference'):
            for ours, plain in zip(chunked, net(image)):
                assert deviation(ours, plain) < 2e-6


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(96, 128), (40, 40)])  # the covariance form and the token form
def test_gradients(tiny, training, size):
    net, image = model(tiny, drop_path_rate=0.3).train(training), IMAGE[..., : size[0], : size[1]]
    twin = copy.deepcopy(net)
    chunked = gradients(net, image)
    with ops.use('reference'):
        expected = gradients(twin, image)
    for name, grad in expected.items():
        assert torch.allclose(chunked[name], grad, rtol=0, atol=2e-4 * grad.abs().max() + 1e-9), name


def test_gradients_in_double_precision_are_those_of_finite_differences():
    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    torch.manual_seed(0)
    norm = (randn(6), randn(6))
    mlp_weights = (randn(8, 6), randn(8), randn(6, 8), randn(6), randn(6))
    scale = torch.rand(2, 1, 1, dtype=torch.float64)
    first, second = dict(atol=1e-5, rtol=1e-4, fast_mode=True), dict(atol=1e-4, fast_mode=True)
    cases = [(lambda x, w, b, *p: mlp.add_mlp(x, w, b, 1e-6, *p, scale), (randn(2, 60, 6), *norm, *mlp_weights))]
    for gamma in (randn(6), randn(2, 1, 6)):
        inputs = randn(2, 60, 6), *norm, randn(2, 6, 6), randn(2, 1, 6), gamma
        cases.append((lambda x, w, b, *p: xca.NormedAffine.apply(x, w, b, 1e-6, *p), inputs))
    for function, inputs in cases:
        assert torch.autograd.gradcheck(function, inputs, **first)
        assert torch.autograd.gradgradcheck(function, inputs, **second)


@pytest.mark.parametrize('size', [(96, 128), (40, 40)])  # the covariance form and the token form
def test_gradients_of_gradients(tiny, size):
    """A gradient penalty, for example."""
    net = model(tiny, drop_path_rate=0.3).double().train()

    def penalty():
        torch.manual_seed(0)  # stochastic depth
        image = IMAGE[..., : size[0], : size[1]].double().requires_grad_()
        (grad,) = torch.autograd.grad(net(image)[-1].sin().sum(), image, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [image, *net.blocks.parameters()])

    found = penalty()
    with ops.use('reference'):
        for ours, plain in zip(found, penalty()):
            # The covariance form keeps its sums in fp32.
            assert torch.allclose(ours, plain, rtol=0, atol=1e-4 * plain.abs().max() + 1e-9)


@pytest.mark.parametrize('size', [(96, 128), (40, 40)])
@pytest.mark.parametrize('vmap', ['autograd', 'torch.func'])
def test_several_gradients_at_once(tiny, size, vmap):
    """A Jacobian, for example; autograd and torch.func each have a vmap."""
    if 'torch._C._functorch.is_legacy_batchedtensor' in private.MISSING and vmap == 'autograd':
        pytest.skip('this PyTorch does not tell batched gradients from others')
    net = model(tiny).train()
    image = IMAGE[..., : size[0], : size[1]].clone().requires_grad_()
    out = net(image)[-1]
    directions = torch.randn(3, *out.shape)

    def gradient(direction, **options):
        return torch.autograd.grad(out, image, direction, retain_graph=True, **options)[0]

    if vmap == 'autograd':
        found = gradient(directions, is_grads_batched=True)
    else:
        found = torch.func.vmap(gradient)(directions)
    assert deviation(found, torch.stack([gradient(direction) for direction in directions])) < 1e-5


@pytest.mark.parametrize('training', [False, True])
def test_no_images_give_no_features(tiny, training):
    """What a detector may hand to a part of its model; without gradients, and with."""
    net = model(tiny)
    with torch.set_grad_enabled(training):
        outs = net(IMAGE[:0])
    assert [tuple(out.shape) for out in outs] == [(0, *out.shape[1:]) for out in net(IMAGE)]
    if training:
        sum(out.sum() for out in outs).backward()
        assert all(not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize('kind', ['autocast', 'bfloat16'])
def test_half_precision_is_nearer_to_fp32_than_the_reference(tiny, kind):
    net = model(tiny)
    with torch.no_grad():
        reference = net(IMAGE)[-1]
        half = copy.deepcopy(net).bfloat16() if kind == 'bfloat16' else net
        image = IMAGE.bfloat16() if kind == 'bfloat16' else IMAGE
        with torch.autocast('cpu', torch.bfloat16, enabled=kind == 'autocast'):
            (*_, out) = half(image)
            with ops.use('reference'):
                (*_, plain) = half(image)
    assert out.dtype == plain.dtype == half.blocks[0].gamma1.dtype
    rms, plain_rms = ((o.float() - reference).square().mean().sqrt() for o in (out, plain))
    # Autocast leaves the sums in fp32 in both.
    assert rms < (1.1 if kind == 'autocast' else 0.8) * plain_rms < 0.05 * reference.square().mean().sqrt()


@pytest.mark.skipif(not hasattr(torch.library, 'opcheck'), reason='no custom ops in this PyTorch')
def test_custom_ops_of_compiled_inference():
    torch.manual_seed(0)
    tokens, norm = torch.randn(2, 150, 24), (torch.randn(24), torch.randn(24), 1e-6)
    attn = torch.randn(72, 24), torch.randn(72), torch.randn(24, 24), torch.randn(24), torch.rand(3, 1, 1)
    gamma = torch.randn(24)
    linears = torch.randn(40, 24), torch.randn(40), torch.randn(24, 40), torch.randn(24)
    conv, bn = (torch.randn(24, 1, 3, 3), torch.randn(24)), (*torch.randn(3, 24), torch.rand(24) + 0.5, 1e-5)
    stem = [torch.randn(8, 3, 3, 3), torch.randn(24, 8, 3, 3)], [torch.randn(8), torch.randn(24)]
    cases = {
        'add_covariance_form_': (tokens, *norm, *attn, gamma),
        'add_token_form': (tokens, *norm, *attn, gamma),
        'add_lpi_': (tokens, *norm, *conv, *bn, *conv, gamma, 10),
        'add_mlp_': (tokens, *norm, *linears, gamma),
        'embed_patches': (torch.randn(2, 3, 37, 50), *stem),
        'deconvolve': (torch.randn(2, 24, 7, 10), torch.randn(24, 40, 2, 2), torch.randn(40)),
    }
    for name, arguments in cases.items():
        torch.library.opcheck(getattr(torch.ops.xcit_mm, name), arguments, atol=1e-4, rtol=1e-4)


def test_the_input_of_a_block_is_left_alone(tiny):
    net = model(tiny)
    tokens = torch.randn(2, 192, 32)
    before = tokens.clone()
    with torch.no_grad():
        net.blocks[0](tokens, (12, 16))
    assert torch.equal(tokens, before)


@pytest.mark.parametrize('watch', ['nothing', 'outputs', 'inputs'])
def test_what_others_hold_is_left_alone(tiny, watch):
    """Tokens that are given out, and those that hooks see."""
    raw = randomise(build(arch=tiny, patch_size=8, out_type='raw', out_indices=(0, 1, 2, 3)))
    held = []
    for block in raw.blocks:
        if watch == 'outputs':
            block.register_forward_hook(lambda m, args, out: held.append((out, out.clone())))
        elif watch == 'inputs':
            block.register_forward_pre_hook(lambda m, args: held.append((args[0], args[0].clone())))
    last = copy.deepcopy(raw)
    last.out_indices = (3,)
    with torch.no_grad():
        outs = raw(IMAGE)
        assert torch.equal(outs[-1], last(IMAGE)[0])
    for i, out in enumerate(outs[:-1]):
        with torch.no_grad():
            assert torch.equal(raw.blocks[i + 1](out, (12, 16)), outs[i + 1])
    assert len(held) == (0 if watch == 'nothing' else 11) and all(torch.equal(seen, then) for seen, then in held)


def test_a_block_with_hooks_among_blocks_in_half_precision(tiny):
    net = model(tiny).bfloat16()
    with torch.no_grad():
        (*_, expected) = net(IMAGE.bfloat16())
        net.blocks[1].mlp.act.register_forward_hook(lambda *_: None)
        (*_, found) = net(IMAGE.bfloat16())
    assert found.dtype == torch.bfloat16 and deviation(found.float(), expected.float()) < 0.05


def test_tokens_of_any_memory_layout(tiny):
    block = model(tiny).blocks[0]
    tokens = torch.randn(2, 32, 192).transpose(1, 2)
    with torch.no_grad():
        assert torch.equal(block(tokens, (12, 16)), block(tokens.contiguous(), (12, 16)))


def test_training_keeps_less(tiny):
    """What autograd holds on to between the two passes of a block, in values for each token and channel."""
    net = model(tiny).train()
    tokens = torch.randn(2, 192, 32, requires_grad=True)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def kept():
        sizes = {}

        def note(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = net.blocks[0](tokens, (12, 16))  # alive until counted, so that no memory is counted twice
        return sum(n for place, n in sizes.items() if place not in weights) / out.numel()

    chunked = kept()
    with ops.use('reference'):
        assert chunked < 0.7 * kept()


class TestPatchesInBands:
    """The stem of inference, in bands of rows with batch norm in the convolutions and GELU in their products."""

    @pytest.mark.parametrize('patch', [8, 16])
    @pytest.mark.parametrize(
        'batch, size', [(1, (96, 128)), (1, (203, 91)), (1, (17, 300)), (3, (64, 48)), (2, (250, 64))]
    )
    @pytest.mark.parametrize('kind', ['fp32', 'bf16', 'autocast'])
    def test_the_sums_are_those_of_the_layers(self, tiny, patch, batch, size, kind):
        net = randomise(build(arch=tiny, patch_size=patch, out_type='featmap'))
        image = torch.randn(batch, 3, *size)
        stem = net.patch_embed
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=kind == 'autocast'):
            reference = stem.proj.double()(image.double()).flatten(2).transpose(1, 2)
            stem = stem.bfloat16() if kind == 'bf16' else stem.float()
            found, grid = stem(image.bfloat16() if kind == 'bf16' else image)
        assert grid == tuple(-(-n // patch) for n in size) and found.shape == reference.shape
        assert found.dtype == (torch.float32 if kind == 'fp32' else torch.bfloat16)
        assert deviation(found.double(), reference) < (1e-6 if kind == 'fp32' else 2e-2)

    def test_shapes_alone(self, tiny):
        """What counts operations, for example, runs a model without values."""
        net = model(tiny).to('meta')
        with torch.no_grad():
            assert net(torch.empty(2, 3, 90, 120, device='meta'))[-1].shape == (2, 32, 12, 15)

    def test_images_of_another_type_are_refused(self, tiny):
        net = model(tiny)
        with torch.no_grad():
            for image in (IMAGE.byte(), IMAGE.bfloat16(), IMAGE.double()):
                with pytest.raises(RuntimeError, match='type'):
                    net(image)


class TestLPIInBands:
    """LPI of inference, in bands of rows with what these need of their neighbours."""

    @pytest.mark.parametrize(
        'batch, grid', [(1, (12, 16)), (1, (9, 60)), (1, (2, 3)), (3, (12, 16)), (3, (5, 5)), (1, (90, 1))]
    )
    @pytest.mark.parametrize('kind', ['fp32', 'bf16', 'autocast'])
    def test_the_sums_are_those_of_the_layers(self, tiny, batch, grid, kind):
        block = model(tiny).blocks[1]
        tokens = torch.randn(batch, grid[0] * grid[1], 32)
        if kind == 'bf16':
            block, tokens = block.bfloat16(), tokens.bfloat16()
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=kind == 'autocast'):
            expected = torch.addcmul(tokens, block.lpi(block.norm3(tokens), grid), block.gamma3)
            assert dispatch._fits_bands(tokens, block.lpi)
            found = ops.add_lpi(tokens, block.norm3, block.lpi, block.gamma3, grid)
        assert deviation(found.float(), expected.float()) < (1e-6 if kind == 'fp32' else 1e-2)

    def test_a_batch_norm_that_trains_is_called(self, tiny):
        net = model(tiny).train()
        count = net.blocks[0].lpi.bn.num_batches_tracked.item()
        with torch.no_grad():
            net(IMAGE)
        assert net.blocks[0].lpi.bn.num_batches_tracked == count + 1


@pytest.mark.parametrize('compiled', [False, True], ids=['eager', 'compiled'])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_deconvolution_in_bands_is_pytorchs(layout, compiled, monkeypatch):
    monkeypatch.setattr(ops.deconv, 'LARGEST_MAP', 4 * 4 * 40 * 30)  # 30 pixels of 40 channels in fp32: 3 rows of 10
    layer = torch.nn.ConvTranspose2d(24, 40, 2, stride=2)
    x = torch.randn(2, 24, 7, 10).contiguous(memory_format=layout)
    expected = layer(x)

    def run(x):
        return ops.deconvolve(x, layer)

    with torch.no_grad():
        found = (torch.compile(run) if compiled and private.HAS_CUSTOM_OPS else run)(x)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run(x), expected)  # with a backward pass
    run(x).sum().backward()
    assert layer.weight.grad.abs().min() > 0


def test_stochastic_depth_without_a_backward_pass(tiny):
    """A teacher that trains along, for example."""
    block = model(tiny, drop_path_rate=0.9).train().blocks[-1]
    tokens = torch.randn(64, 192, 32)
    torch.manual_seed(0)
    expected = block(tokens, (12, 16))
    torch.manual_seed(0)
    with torch.no_grad():
        found = block(tokens, (12, 16))
    assert (found == tokens).flatten(1).all(dim=1).any() and deviation(found, expected) < 1e-5


def test_every_part_is_its_reference():
    """On tensors, without a model: odd sizes, one row, several chunks and bands."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return 0.5 * torch.randn(shape, generator=generator)

    C, gamma = 24, randn(24)
    norm, conv = (1 + randn(C), randn(C), 1e-6), (randn(C, 1, 3, 3), randn(C))
    bn = 1 + randn(C), randn(C), randn(C), randn(C).abs() + 0.5, 1e-5
    linears = randn(40, C), randn(40), randn(C, 40), randn(C)
    for height, width in ((11, 15), (1, 7)):
        x = randn(3, height * width, C)
        for function, plain, weights in (
            (mlp.add_mlp_, reference.add_mlp, (*linears, gamma)),
            (lpi.add_lpi_, reference.add_lpi, (*conv, *bn, *conv, gamma, height)),
        ):
            found = x.clone()
            with torch.no_grad():
                function(found, *norm, *weights)
            assert deviation(found, plain(x, *norm, *weights)) < 2e-6
        image, deconv_weights = randn(2, C, height, width), (randn(C, 10, 2, 2), randn(10))
        found = ops.deconv.deconvolve(image, *deconv_weights)
        assert deviation(found, reference.deconvolve(image, *deconv_weights)) < 2e-6
    stem_weights = [randn(8, 3, 3, 3), randn(16, 8, 3, 3), randn(C, 16, 3, 3)], [randn(8), randn(16), randn(C)]
    for size in ((203, 91), (9, 300)):
        image = randn(2, 3, *size)
        with torch.no_grad():
            found = ops.stem.embed_patches(image, *stem_weights)
        assert deviation(found, reference.embed_patches(image, *stem_weights)) < 2e-6
