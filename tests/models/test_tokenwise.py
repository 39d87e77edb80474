"""Blocks computed in chunks of tokens: the numbers and gradients of the blocks as the paper writes them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from backbones import build, deviation, randomise

from xcit_mm.models import products, tokenwise
from xcit_mm.models.in_place import add_normed_lpi, lpi_arguments
from xcit_mm.models.xcit import XCABlock

pytestmark = pytest.mark.usefixtures('covariance_of_few_tokens')


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks for each image, the last one shorter."""
    monkeypatch.setitem(tokenwise.CHUNK_SIZES, 'cpu', 50 * 32)  # 50 tokens, of which the images have 192, 80 and 25
    monkeypatch.setattr(tokenwise, 'LEAST_VALUES', 0)


@pytest.fixture
def as_written(monkeypatch):
    """Turns the chunks off: blocks run as the paper writes them."""

    def turn_off():
        monkeypatch.setattr(XCABlock, '_can_be_chunked', lambda self, x: False)

    return turn_off


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
def test_inference(tiny, as_written, monkeypatch, size, mkl):
    monkeypatch.setattr(products, 'MKL_IS_FASTER', mkl)
    net, image = model(tiny), IMAGE[..., : size[0], : size[1]]
    with torch.no_grad():
        chunked = net(image)
        as_written()
        for ours, reference in zip(chunked, net(image)):
            assert deviation(ours, reference) < 2e-6


@pytest.mark.parametrize('mean, outlier', [(0, 0), (100, 0), (0, 1000)])
def test_an_affine_map_of_normed_tokens_as_one_product(mean, outlier):
    torch.manual_seed(0)
    x = torch.randn(2, 300, 64) + mean
    x[..., 7] += outlier
    weight, bias = torch.rand(64) + 0.5, torch.randn(64)
    matrix, offset = torch.randn(2, 64, 40), torch.randn(2, 1, 40)
    exact = F.layer_norm(x.double(), (64,), weight.double(), bias.double(), 1e-6) @ matrix.double() + offset
    plain = F.layer_norm(x, (64,), weight, bias, 1e-6) @ matrix + offset
    found = tokenwise.normed_plus_one(x, 1e-6) @ tokenwise.without_offset(weight, bias, matrix, offset)
    assert deviation(found, exact) < 2 * deviation(plain, exact) + 1e-7


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(96, 128), (40, 40)])  # the covariance form and the token form
def test_gradients(tiny, as_written, training, size):
    net, image = model(tiny, drop_path_rate=0.3).train(training), IMAGE[..., : size[0], : size[1]]
    twin = copy.deepcopy(net)
    chunked = gradients(net, image)
    as_written()
    for name, reference in gradients(twin, image).items():
        assert torch.allclose(chunked[name], reference, rtol=0, atol=2e-4 * reference.abs().max() + 1e-9), name


def test_gradients_in_double_precision_are_those_of_finite_differences():
    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    torch.manual_seed(0)
    norm = (randn(6), randn(6))
    mlp = (randn(8, 6), randn(8), randn(6, 8), randn(6), randn(6))
    scale = torch.rand(2, 1, 1, dtype=torch.float64)
    check = dict(atol=1e-5, rtol=1e-4, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda x, w, b, *p: tokenwise.NormedMlp.apply(x, w, b, 1e-6, *p, scale), (randn(2, 60, 6), *norm, *mlp), **check
    )
    for gamma in (randn(6), randn(2, 1, 6)):
        assert torch.autograd.gradcheck(
            lambda x, w, b, P, p, g: tokenwise.NormedAffine.apply(x, w, b, 1e-6, P, p, g),
            (randn(2, 60, 6), *norm, randn(2, 6, 6), randn(2, 1, 6), gamma),
            **check,
        )


@pytest.mark.parametrize('kind', ['autocast', 'bfloat16'])
def test_half_precision_is_nearer_to_fp32_than_the_blocks_as_written(tiny, as_written, kind):
    net = model(tiny)
    with torch.no_grad():
        reference = net(IMAGE)[-1]
        half = copy.deepcopy(net).bfloat16() if kind == 'bfloat16' else net
        image = IMAGE.bfloat16() if kind == 'bfloat16' else IMAGE
        with torch.autocast('cpu', torch.bfloat16, enabled=kind == 'autocast'):
            (*_, out) = half(image)
            as_written()
            (*_, plain) = half(image)
    assert out.dtype == plain.dtype == half.blocks[0].gamma1.dtype
    rms, plain_rms = ((o.float() - reference).square().mean().sqrt() for o in (out, plain))
    # Autocast leaves the sums in fp32 in both.
    assert rms < (1.1 if kind == 'autocast' else 0.8) * plain_rms < 0.05 * reference.square().mean().sqrt()


def test_second_moments_of_many_large_values_do_not_overflow_half_precision():
    total = torch.zeros(1, 8, 8)
    tokenwise.add_gram(total, torch.full((1, 375_000, 8), 3.0, dtype=torch.float16))
    assert torch.equal(tokenwise.mirrored(total), torch.full((1, 8, 8), 9.0 * 375_000))
    assert total.half().isinf().any()  # what sums in fp16 come to


@pytest.mark.skipif(not hasattr(torch.library, 'opcheck'), reason='no operators of our own in this PyTorch')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_operator_of_compiled_models(dtype):
    tokens = torch.randn(2, 150, 24).to(dtype).requires_grad_()
    expected = tokens.detach().float().transpose(1, 2) @ tokens.detach().float()
    torch.testing.assert_close(torch.ops.xcit_mm.gram(tokens), expected, rtol=1e-5, atol=1e-4)
    torch.library.opcheck(torch.ops.xcit_mm.gram, (tokens,), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not hasattr(torch.library, 'opcheck'), reason='no operators of our own in this PyTorch')
def test_operators_of_compiled_inference():
    torch.manual_seed(0)
    tokens, norm = torch.randn(2, 150, 24), (torch.randn(24), torch.randn(24), 1e-6)
    affine = torch.randn(2, 24, 24), torch.randn(2, 1, 24), torch.randn(24)
    mlp = torch.randn(40, 24), torch.randn(40), torch.randn(24, 40), torch.randn(24), torch.randn(24)
    close = dict(atol=1e-4, rtol=1e-4)
    torch.library.opcheck(torch.ops.xcit_mm.normed_moments, (tokens, *norm), **close)
    torch.library.opcheck(torch.ops.xcit_mm.add_normed_affine, (tokens, *norm, *affine), **close)
    torch.library.opcheck(torch.ops.xcit_mm.add_normed_mlp, (tokens.flatten(0, 1), *norm, *mlp), **close)
    stem = [torch.randn(8, 3, 3, 3), torch.randn(24, 8, 3, 3)], [torch.randn(8), torch.randn(24)]
    torch.library.opcheck(torch.ops.xcit_mm.embed_patches, (torch.randn(2, 3, 37, 50), *stem), **close)
    conv, bn = (torch.randn(24, 1, 3, 3), torch.randn(24)), (*torch.randn(3, 24), torch.rand(24) + 0.5, 1e-5)
    lpi = *conv, *bn, *conv, torch.randn(24), 10
    torch.library.opcheck(torch.ops.xcit_mm.add_normed_lpi, (tokens, *norm, *lpi), **close)


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


@pytest.mark.parametrize('part', ['norm1', 'attn', 'attn.qkv', 'attn.proj', 'mlp.act', 'norm2'])
def test_hooks_on_the_layers_of_a_block_see_all_tokens(tiny, part):
    net, seen = model(tiny), []
    net.blocks[1].get_submodule(part).register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    with torch.no_grad():
        net(IMAGE)
    assert seen == [192]


@pytest.mark.parametrize('part', ['norm1', 'attn', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'lpi', 'lpi.conv2'])
def test_hooks_see_the_gradients_of_all_tokens(tiny, part):
    net, seen = model(tiny).train(), []
    watched = net.blocks[1].get_submodule(part)
    watched.register_full_backward_hook(lambda m, inputs, outputs: seen.append(outputs[0].numel()))
    net(IMAGE)[-1].sum().backward()
    channels = {'attn.qkv': 96, 'mlp.fc1': 128}.get(part, 32)
    assert seen == [2 * 192 * channels]


def test_training_keeps_less(tiny, as_written):
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
    as_written()
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

    def test_other_layers_are_called_as_they_are(self, tiny):
        for options in (dict(act_cfg=dict(type='ReLU')), dict(bn_norm_cfg=dict(type='GN', num_groups=2))):
            stem = randomise(build(arch=tiny, patch_size=8, out_type='featmap', **options)).patch_embed
            with torch.no_grad():
                assert deviation(stem(IMAGE)[0], stem.proj(IMAGE).flatten(2).transpose(1, 2)) < 1e-6

    @pytest.mark.parametrize('part', ['proj.0', 'proj.1', 'proj.2.0', 'proj.2.1'])
    def test_hooks_see_the_whole_image(self, tiny, part):
        net, seen = model(tiny), []
        net.patch_embed.get_submodule(part).register_forward_hook(lambda m, args, out: seen.append(len(out)))
        with torch.no_grad():
            net(IMAGE)
        assert seen == [len(IMAGE)]

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
    def test_the_sums_are_those_of_the_layers(self, tiny, batch, grid, kind, monkeypatch):
        monkeypatch.setitem(tokenwise.CHUNK_SIZES, 'cpu', 50 * 32)
        block = model(tiny).blocks[1]
        tokens = torch.randn(batch, grid[0] * grid[1], 32)
        if kind == 'bf16':
            block, tokens = block.bfloat16(), tokens.bfloat16()
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=kind == 'autocast'):
            expected = torch.addcmul(tokens, block.lpi(block.norm3(tokens), grid), block.gamma3)
            assert block._adds_lpi_in_place(tokens)
            norm = block.norm3.weight, block.norm3.bias, block.norm3.eps
            add_normed_lpi(tokens, *norm, *lpi_arguments(block.lpi), block.gamma3, grid[0])
        assert deviation(tokens.float(), expected.float()) < (1e-6 if kind == 'fp32' else 1e-2)

    @pytest.mark.parametrize('part', ['lpi', 'lpi.conv1', 'lpi.act', 'lpi.bn', 'norm3'])
    def test_hooks_see_the_whole_image(self, tiny, part):
        net, seen = model(tiny), []
        net.blocks[1].get_submodule(part).register_forward_hook(lambda m, args, out: seen.append(out.numel()))
        with torch.no_grad():
            net(IMAGE)
        assert seen == [len(IMAGE) * 192 * 32]

    def test_other_layers_are_called_as_they_are(self, tiny):
        for options in (dict(act_cfg=dict(type='ReLU')), dict(bn_norm_cfg=dict(type='GN', num_groups=4))):
            net = randomise(build(arch=tiny, patch_size=8, out_type='featmap', **options))
            block = net.blocks[0]
            with torch.no_grad():
                assert not block._adds_lpi_in_place(torch.randn(1, 192, 32))
                found = net(IMAGE)[-1]
            assert deviation(found, net(IMAGE)[-1].detach()) < 1e-5

    def test_a_batch_norm_that_trains_is_not_overwritten(self, tiny):
        net = model(tiny).train()
        with torch.no_grad():
            assert not net.blocks[0]._adds_lpi_in_place(torch.randn(1, 192, 32))


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
