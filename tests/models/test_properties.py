"""Properties of the backbone for any size, type, memory layout and choice of blocks, searched by hypothesis."""

import copy
from functools import lru_cache

import pytest
import torch
from backbones import build, deviation, randomise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xcit_mm import ops

pytestmark = pytest.mark.usefixtures('one_thread', 'covariance_of_few_tokens')

DEPTH = 3
ARCH = dict(embed_dims=16, depth=DEPTH, num_heads=2)
OUT_TYPES = ('cls_token', 'featmap', 'avg_featmap', 'raw', 'pyramid')
# In order, so that a failure is found again; the time of one example says nothing on a shared machine.
search = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
sides = st.integers(1, 70)
patch_sizes = st.sampled_from([8, 16])
batches = st.integers(1, 3)


@lru_cache
def backbone(patch_size, out_type='featmap', out_indices=None, dtype=torch.float32):
    model = randomise(build(arch=ARCH, patch_size=patch_size, out_type=out_type, out_indices=out_indices), seed=1)
    return model.to(dtype)


def image_of(batch, height, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(height * 97 + width)
    return torch.randn(batch, 3, height, width, generator=generator).to(dtype)


def tokens(side, patch_size):
    return -(-side // patch_size)


@search
@given(batches, sides, sides, patch_sizes, st.sampled_from(OUT_TYPES))
def test_shapes_follow_from_the_image(batch, height, width, patch_size, out_type):
    model = backbone(patch_size, out_type)
    if min(height, width) < patch_size:
        with pytest.raises(ValueError, match=f'{height}x{width} pixels'):
            model(image_of(batch, height, width))
        return
    with torch.no_grad():
        outs = model(image_of(batch, height, width))
    rows, columns = tokens(height, patch_size), tokens(width, patch_size)
    if out_type == 'pyramid':
        scales = {16: (4, 2, 1, 0.5), 8: (2, 1, 0.5, 0.25)}[patch_size]
        assert len(outs) == 4
        for out, scale in zip(outs, scales):
            expected = [max(int(n * scale), 1) if scale < 1 else int(n * scale) for n in (rows, columns)]
            assert list(out.shape) == [batch, 16, *expected] and out.is_contiguous()
    else:
        shapes = {
            'cls_token': (batch, 16),
            'avg_featmap': (batch, 16),
            'featmap': (batch, 16, rows, columns),
            'raw': (batch, 1 + rows * columns, 16),
        }
        assert [tuple(out.shape) for out in outs] == [shapes[out_type]]
    assert all(out.isfinite().all() and out.dtype == torch.float32 for out in outs)


@search
@given(batches, st.integers(16, 70), st.integers(16, 70), patch_sizes, st.sampled_from(OUT_TYPES[:4]))
def test_every_image_of_a_batch_is_computed_alone(batch, height, width, patch_size, out_type):
    model, images = backbone(patch_size, out_type), image_of(batch, height, width)
    with torch.no_grad():
        (together,) = model(images)
        apart = torch.cat([model(image[None])[0] for image in images])
    assert deviation(together, apart) < 1e-4


KINDS = {  # type of the weights and of autocast, and how far gradients may be from those of the reference
    'fp64': (torch.float64, None, 1e-6),
    'fp32': (torch.float32, None, 1e-4),
    'bf16': (torch.bfloat16, None, 0.3),
    'autocast bf16': (torch.float32, torch.bfloat16, 0.2),
    'autocast fp16': (torch.float32, torch.float16, 0.04),
}
if torch.__version__ < torch.torch_version.TorchVersion('2.4'):
    del KINDS['autocast fp16']
rates = st.sampled_from([0.0, 0.3])
flags = st.booleans()


@search
@given(st.sampled_from(list(KINDS)), st.sampled_from(OUT_TYPES), batches, rates, rates, flags, flags, flags, flags)
def test_settings_of_training_work_together(kind, out_type, batch, drop_path, attn_drop, cp, norm_eval, freeze, large):
    dtype, autocast, bound = KINDS[kind]
    settings = dict(drop_path_rate=drop_path, attn_drop_rate=attn_drop, with_cp=cp, norm_eval=norm_eval)
    model = build(arch=ARCH, patch_size=8, out_type=out_type, frozen_stages=int(freeze), **settings)
    model = randomise(model).to(dtype).train()
    image = image_of(batch, 60 if large else 24, 75, dtype)  # the covariance form and the token form
    gradients = []
    for mode in ops.MODES:
        model.zero_grad()
        torch.manual_seed(0)  # of what is dropped
        with ops.use(mode), torch.autocast('cpu', autocast, enabled=autocast is not None):
            outs = model(image)
            sum(out.float().square().mean() for out in outs).backward()
        gradients.append(torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None]))
    ours, reference = gradients
    assert (ours - reference).norm() < bound * reference.norm()


def laid_out(image, layout):
    """The same numbers with other strides."""
    if layout == 'channels last':
        return image.to(memory_format=torch.channels_last)
    if layout == 'transposed':
        return image.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == 'every second':
        wide = image.new_full((*image.shape[:2], 2 * image.shape[2], 2 * image.shape[3]), torch.nan)
        wide[..., ::2, ::2] = image
        return wide[..., ::2, ::2]
    if layout == 'part of a larger':
        wide = image.new_full((len(image), 5, image.shape[2] + 3, image.shape[3] + 2), torch.nan)
        wide[:, 1:4, 2:-1, 1:-1] = image
        return wide[:, 1:4, 2:-1, 1:-1]
    return image[:1].expand_as(image) if layout == 'expanded' else image.flip(3).flip(3)


LAYOUTS = ('channels last', 'transposed', 'every second', 'part of a larger', 'expanded', 'flipped')


@search
@given(
    batches, st.integers(16, 60), st.integers(16, 60), patch_sizes, st.sampled_from(OUT_TYPES), st.sampled_from(LAYOUTS)
)
def test_the_memory_layout_makes_no_difference(batch, height, width, patch_size, out_type, layout):
    model = backbone(patch_size, out_type)
    image = laid_out(image_of(batch, height, width), layout)
    kept = image.clone()
    with torch.no_grad():
        for out, expected in zip(model(image), model(image.contiguous())):
            assert deviation(out, expected) < 1e-5
    assert torch.equal(image, kept)


@search
@given(st.integers(16, 60), st.integers(16, 60), patch_sizes, st.sampled_from([torch.float64, torch.bfloat16]))
def test_other_types_compute_the_same_to_their_precision(height, width, patch_size, dtype):
    image = image_of(2, height, width)
    with torch.no_grad():
        (reference,) = backbone(patch_size, 'featmap')(image)
        (out,) = backbone(patch_size, 'featmap', None, dtype)(image.to(dtype))
    assert out.dtype == dtype and out.isfinite().all()
    assert deviation(out.float(), reference) < (1e-4 if dtype == torch.float64 else 0.2)


@search
@given(st.data())
def test_indices_choose_among_the_blocks(data):
    out_type = data.draw(st.sampled_from(['featmap', 'raw']))
    layers, end = DEPTH + 2, DEPTH + 2 * (out_type == 'raw')
    chosen = tuple(sorted(data.draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=4))))
    # Any of them counted from the end.
    given_as = tuple(i - end if i < end and data.draw(st.booleans()) else i for i in chosen)
    image = image_of(1, 33, 40)
    with torch.no_grad():
        whole, part = (backbone(16, out_type, indices) for indices in (tuple(range(layers)), given_as))
        part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
        everything, outs = whole(image), part(image)
    assert len(outs) == len(chosen)
    assert all(torch.equal(out, everything[i]) for out, i in zip(outs, chosen))


@search
@given(
    st.lists(st.one_of(st.integers(-9, 9), st.none(), st.text(max_size=2), st.floats(-2, 2)), max_size=5),
    st.sampled_from(OUT_TYPES),
)
def test_indices_that_cannot_be_are_refused_by_name(indices, out_type):
    layers = DEPTH + 2 * (out_type != 'pyramid')
    end = DEPTH if out_type == 'featmap' else layers  # from which negative ones are counted
    possible = indices and all(type(i) is int and -end <= i < layers for i in indices)
    resolved = [i + end if i < 0 else i for i in indices] if possible else []
    possible = possible and resolved == sorted(resolved)
    possible = possible and (out_type != 'pyramid' or len(indices) == 4)
    possible = possible and (out_type != 'cls_token' or resolved[0] >= DEPTH)
    with torch.device('meta'):
        if possible:
            assert build(arch=ARCH, out_type=out_type, out_indices=indices).out_indices == tuple(resolved)
        else:
            with pytest.raises(ValueError, match='indices'):
                build(arch=ARCH, out_type=out_type, out_indices=indices)


@search
@given(batches, st.integers(8, 40), st.integers(8, 40), st.booleans())
def test_training_gives_finite_gradients_and_leaves_the_image_alone(batch, height, width, with_cp):
    if batch * tokens(height, 8) * tokens(width, 8) == 1:
        return  # a batch norm has nothing to compare
    model = copy.deepcopy(backbone(8, 'featmap')).train()
    model.with_cp = with_cp
    image = image_of(batch, height, width).requires_grad_()
    kept = image.detach().clone()
    model(image)[0].square().mean().backward()
    assert torch.equal(image.detach(), kept) and image.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
