"""The backbone as a part of other people's models: outputs, options, freezing, memory, errors."""

import warnings

import pytest
import torch
import torch.fx.experimental.optimization
from backbones import build, deviation, randomise
from mmcv.cnn import fuse_conv_bn
from mmengine.registry import MODELS
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn

from xcit_mm import ops
from xcit_mm.errors import UsageError
from xcit_mm.models.xcit import ARCHS, XCiT

pytestmark = pytest.mark.usefixtures('covariance_of_few_tokens')


@pytest.mark.parametrize('patch_size', [8, 16])
@pytest.mark.parametrize('size', [(64, 96), (65, 47), (100, 33)])
def test_shapes_of_every_output(tiny, patch_size, size):
    image = torch.randn(2, 3, *size)
    grid = tuple(-(-n // patch_size) for n in size)
    tokens = grid[0] * grid[1]
    expected = dict(cls_token=(2, 32), avg_featmap=(2, 32), raw=(2, 1 + tokens, 32), featmap=(2, 32, *grid))
    for out_type, shape in expected.items():
        (output,) = build(arch=tiny, patch_size=patch_size, out_type=out_type)(image)
        assert output.shape == shape, out_type


@pytest.mark.parametrize('patch_size', [8, 16])
def test_pyramid_has_strides_4_8_16_32(tiny, patch_size):
    maps = build(arch=tiny, patch_size=patch_size, out_type='pyramid')(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[-2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize('patch_size', [8, 16])
def test_an_image_of_one_patch_still_has_four_levels(tiny, patch_size):
    maps = build(arch=tiny, patch_size=patch_size, out_type='pyramid').eval()(torch.randn(1, 3, patch_size, patch_size))
    assert len(maps) == 4 and all(torch.isfinite(m).all() and m.numel() for m in maps)


@pytest.mark.parametrize('patch_size', [8, 16])
@pytest.mark.parametrize('strides', [(8, 16, 32), (16, 32), (4, 8), (16,), (4, 32)])
def test_only_the_strides_asked_for_are_made(tiny, patch_size, strides):
    """As a choice of all four maps, with a gradient for every trained parameter and no layer too many."""
    whole = randomise(build(arch=tiny, patch_size=patch_size, out_type='pyramid'))
    part = build(arch=tiny, patch_size=patch_size, out_type='pyramid', out_strides=strides).eval()
    assert part.state_dict().keys() <= whole.state_dict().keys()
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    image = torch.randn(2, 3, 64, 96)
    maps = dict(zip((4, 8, 16, 32), whole(image)))
    found = part(image)
    assert len(found) == len(strides) and all(torch.equal(x, maps[stride]) for x, stride in zip(found, strides))
    sum((x * torch.randn_like(x)).sum() for x in found).backward()
    assert not [name for name, p in part.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert ('pyramid.fpn1.0.weight' in part.state_dict()) == (4 in strides)
    assert ('pyramid.fpn2.0.weight' in part.state_dict()) == (8 in strides and patch_size == 16)


def test_default_pyramid_indices_are_the_published_ones():
    with torch.device('meta'):
        assert XCiT('s12', out_type='pyramid').out_indices == (3, 5, 7, 11)
        assert XCiT('m24', out_type='pyramid').out_indices == (7, 11, 15, 23)
        assert XCiT('s12', out_type='pyramid', out_strides=(8, 16, 32)).out_indices == (5, 7, 11)
        assert XCiT('s24', out_type='pyramid', out_strides=[4, 32]).out_indices == (7, 23)


@pytest.mark.parametrize(
    'options',
    [
        dict(out_type='avg_featmap'),
        dict(out_type='avg_featmap', tokens_norm=False),
        dict(out_type='featmap', out_indices=(3, 5)),
        dict(out_type='featmap', out_indices=(4,)),
        dict(out_type='featmap', out_indices=(1,)),
        dict(out_type='cls_token', out_indices=(4,)),
        dict(out_type='raw', out_indices=(0, 1)),
        dict(out_type='raw', out_indices=(2, 4)),
        dict(out_type='pyramid', out_indices=(0, 0, 1, 2)),
    ],
)
def test_what_no_output_depends_on_is_not_trained(tiny, options):
    """Data-parallel training would wait for its gradients."""
    torch.manual_seed(0)
    model = build(arch=tiny, **options).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sum((x * torch.randn_like(x)).sum() for x in model(torch.randn(2, 3, 32, 48))).backward()
    wrong = [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert not wrong and before.keys() == model.state_dict().keys()
    means = {name: value for name, value in model.state_dict().items() if 'lpi.bn.running_mean' in name}
    moved = {name.split('.')[1] for name, value in means.items() if not torch.equal(value, before[name])}
    assert moved == {str(i) for i in range(min(model.out_indices[-1] + 1, 4))}


def test_maps_after_class_attention_are_mmpretrains(tiny, tmp_path):
    """Its default map is the last of these; all its indices mean the same here."""
    options = dict(patch_size=16, out_type='featmap', out_indices=[1, 3, 4, 5])
    theirs = randomise(MODELS.build(dict(tiny, type='mmpretrain.XCiT', tokens_norm=True, **options)))
    torch.save({'state_dict': theirs.state_dict()}, tmp_path / 'mmpretrain.pth')
    image = torch.randn(2, 3, 64, 96)
    checkpoint = dict(type='Pretrained', checkpoint=str(tmp_path / 'mmpretrain.pth'))
    ours = build(arch=tiny, **options, init_cfg=checkpoint).eval()
    ours.init_weights()
    with torch.no_grad():
        expected, found = theirs(image), ours(image)
    assert len(found) == 4 and max(map(deviation, found, expected)) < 2e-6
    alone = build(arch=tiny, out_type='featmap', out_indices=5, init_cfg=checkpoint).eval()
    alone.init_weights()
    theirs.out_indices = [5]
    with torch.no_grad():
        assert deviation(alone(image)[0], theirs(image)[0]) < 2e-6


@pytest.mark.parametrize('out_type', ['pyramid', 'featmap'])
@pytest.mark.parametrize('patch_size', [8, 16])
def test_maps_suit_operators_that_read_memory_as_it_lies(tiny, patch_size, out_type):
    """mmcv's RoIAlign gives garbage for a channels-last map, which is what the tokens naturally are."""
    from mmcv.ops import roi_align

    boxes = torch.tensor([[0.0, 1.0, 1.0, 2.0, 2.0]])
    for level in build(arch=tiny, patch_size=patch_size, out_type=out_type).eval()(torch.randn(1, 3, 96, 128)):
        assert level.is_contiguous()
        pooled = [
            roi_align(x, boxes, (2, 2), 1.0, 2) for x in (level, level.clone(memory_format=torch.contiguous_format))
        ]
        assert torch.equal(*pooled)


@pytest.mark.parametrize('assign', [False, True])
def test_a_backbone_built_without_memory_is_whole_after_loading(tiny, assign):
    """What is in no file must not be left as the memory happens to be."""
    whole = randomise(build(arch=tiny))
    with torch.device('meta'):
        empty = build(arch=tiny).eval()
    if not assign:
        empty.to_empty(device='cpu')
        for value in (*empty.parameters(), *(b for b in empty.buffers() if b.is_floating_point())):
            value.data.fill_(torch.nan)
    empty.load_state_dict(whole.state_dict(), assign=assign)
    image = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(empty(image)[0], whole(image)[0])


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_the_default_type_of_pytorch_is_the_models(tiny, dtype):
    image = torch.randn(1, 3, 64, 48)
    model = randomise(build(arch=tiny, out_type='pyramid'))
    kept = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        built = build(arch=tiny, out_type='pyramid').eval()
    finally:
        torch.set_default_dtype(kept)
    built.load_state_dict(model.state_dict())
    with torch.no_grad():
        for ours, converted in zip(built(image.to(dtype)), model.to(dtype)(image.to(dtype))):
            assert ours.dtype == dtype and torch.equal(ours, converted)


def test_folding_of_batch_norms_is_right_or_refused(tiny):
    """mmcv's takes LPI's first convolution and batch norm for neighbours, and there is GELU between them."""
    model, image = randomise(build(arch=tiny, out_type='pyramid')), torch.randn(1, 3, 64, 48)
    if torch.__version__ >= torch.torch_version.TorchVersion('2.4'):  # from which on torch.fx follows promote_types
        with torch.no_grad():
            for ours, expected in zip(torch.fx.experimental.optimization.fuse(model)(image), model(image)):
                assert deviation(ours, expected) < 1e-5
    with pytest.raises(UsageError, match='fuse_conv_bn.*GELU.*optimization.fuse'):
        fuse_conv_bn(model)(image)


def test_several_and_negative_indices(tiny):
    maps = build(arch=tiny, out_type='featmap', out_indices=(0, -1)).eval()(torch.randn(1, 3, 32, 32))
    assert len(maps) == 2
    assert not torch.equal(*maps)


@pytest.mark.parametrize('out_type', ['pyramid', 'featmap'])
def test_dense_models_have_no_classification_parts(tiny, out_type):
    names = build(arch=tiny, out_type=out_type).state_dict()
    assert not any(name.startswith(('cls_token', 'cls_attn_blocks', 'norm.')) for name in names)


@pytest.mark.parametrize('arch', ARCHS)
def test_start_values(arch):
    model = build(arch=arch)
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Linear)])
    assert abs(linear.std().item() - 0.02) < 2e-4
    assert abs(model.cls_token.std().item() - 0.02) < 4e-3
    assert all(m.bias.abs().max() == 0 for m in model.modules() if isinstance(m, nn.Linear))
    assert model.blocks[0].gamma1.unique().tolist() == pytest.approx([1.0 if '12' in arch else 1e-5])
    assert model.cls_attn_blocks[0].tokens_norm == (arch != 'n12')


@pytest.mark.parametrize('out_type', ['cls_token', 'raw', 'pyramid'])
@pytest.mark.parametrize('patch_size', [8, 16])
def test_gradients_reach_every_parameter(tiny, out_type, patch_size):
    model = build(arch=tiny, patch_size=patch_size, out_type=out_type, drop_path_rate=0.0)
    torch.manual_seed(0)
    sum((o * torch.randn_like(o)).sum() for o in model(torch.randn(2, 3, 64, 64))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@pytest.mark.parametrize('rates', [{}, dict(drop_path_rate=0.3, drop_rate=0.1, attn_drop_rate=0.1)])
def test_activation_checkpointing_changes_nothing_but_memory(tiny, rates):
    image = torch.randn(2, 3, 64, 48)
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = build(arch=tiny, out_type='raw', with_cp=with_cp, **rates).train()
        torch.manual_seed(1)
        outputs = model(image)
        sum(o.square().sum() for o in outputs).backward()
        results.append((outputs, [p.grad for p in model.parameters()], list(model.buffers())))
    for plain, recomputed in zip(*results):
        for a, b in zip(plain, recomputed):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('out_type', ['cls_token', 'pyramid'])
def test_mixed_precision_stays_close_to_fp32(tiny, out_type):
    """bfloat16 autocast, forward and backward, with both forms of XCA (4 and 96 tokens at 32 channels)."""
    torch.manual_seed(0)
    model = build(arch=tiny, patch_size=8, out_type=out_type, norm_eval=True)
    for size in (16, 80):
        image = torch.randn(2, 3, size, size)
        results = []
        for enabled in (False, True):
            model.zero_grad()
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                outputs = model(image)
            # No sum of squares: of layer-normed values that is the same for any weights.
            sum((o.float() * torch.linspace(-1, 1, o.numel()).view_as(o)).mean() for o in outputs).backward()
            results.append([*outputs, *(p.grad for p in model.parameters())])
        for exact, half in zip(*results):
            assert torch.isfinite(half).all()
            assert (half - exact).norm() < 0.1 * exact.norm() + 1e-6


def test_drop_path_drops_whole_samples_at_the_given_rate(tiny):
    torch.manual_seed(0)
    block = build(arch=dict(tiny, depth=1), drop_path_rate=0.5).blocks[0].train()
    x = torch.randn(400, 4, 32)
    block.gamma1.data.zero_()
    block.gamma3.data.zero_()
    for mode in ops.MODES:
        with ops.use(mode):
            out = block(x, (2, 2))
        dropped = (out == x).flatten(1)
        assert (dropped.all(1) | ~dropped.any(1)).all()
        assert 0.4 < dropped.all(1).float().mean() < 0.6
        stays = ~dropped.all(1)
        branch = block.mlp(block.norm2(x[stays])) * block.gamma2
        torch.testing.assert_close(out[stays], x[stays] + 2 * branch)


@pytest.mark.parametrize('stages', [-1, 0, 2, 6])
def test_frozen_stages_stay_frozen_and_in_eval_mode(tiny, stages):
    model = build(arch=tiny, frozen_stages=stages).train()
    parts = [nn.ModuleList([model.patch_embed, model.pos_embed]), *model.blocks, *model.cls_attn_blocks]
    for i, part in enumerate(parts):
        frozen = i <= stages
        assert all(p.requires_grad != frozen for p in part.parameters())
        assert all(m.training != frozen for m in part.modules() if isinstance(m, _BatchNorm))
    before = {k: v.clone() for k, v in model.state_dict().items() if 'running' in k}
    model(torch.randn(2, 3, 32, 32))
    moved = {
        k.split('.lpi')[0] for k, v in model.state_dict().items() if 'running' in k and not torch.equal(v, before[k])
    }
    assert any('patch_embed' in k for k in moved) == (stages < 0)
    assert {f'blocks.{i}' for i in range(4) if i + 1 > stages} <= moved
    assert not {f'blocks.{i}' for i in range(4) if i + 1 <= stages} & moved


def test_norm_eval_keeps_all_batch_norms_in_eval_mode(tiny):
    model = build(arch=tiny, norm_eval=True, out_type='pyramid').train()
    assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))
    assert model.blocks[0].norm1.training


def test_layer_depth_follows_the_data(tiny):
    model = build(arch=tiny)
    depths = [model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()]
    assert {total for _, total in depths} == {8}
    assert model.get_layer_depth('backbone.cls_token', 'backbone.')[0] == 0
    assert model.get_layer_depth('backbone.blocks.3.attn.qkv.weight', 'backbone.')[0] == 4
    assert model.get_layer_depth('backbone.cls_attn_blocks.1.gamma1', 'backbone.')[0] == 6
    assert model.get_layer_depth('head.fc.weight', 'backbone.')[0] == 7


def test_the_adapter_serves_other_backbones():
    for stride in (8, 16):
        adapter = MODELS.build(dict(type='xcit_mm.MultiScaleAdapter', in_channels=24, stride=stride))
        maps = adapter([torch.randn(1, 24, 64 // stride, 96 // stride)] * 4)
        assert [tuple(m.shape) for m in maps] == [(1, 24, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
        some = MODELS.build(dict(type='xcit_mm.MultiScaleAdapter', in_channels=24, stride=stride, out_strides=(8, 32)))
        some.load_state_dict({name: adapter.state_dict()[name] for name in some.state_dict()})
        assert all(map(torch.equal, some([torch.ones(1, 24, 4, 4)] * 2), adapter([torch.ones(1, 24, 4, 4)] * 4)[1::2]))


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(arch='s13'), ['s13', 's12', 'm24']),
        (dict(arch=3), ['int', 's12']),
        (dict(arch=dict(embed_dims=64, depth=2)), ['num_heads', 'missing']),
        (dict(arch=dict(embed_dims=64, depth=2, num_heads=4, width=3)), ['unknown', 'width']),
        (dict(arch=dict(embed_dims=64, depth=2, num_heads=5)), ['num_heads=5', 'embed_dims=64']),
        (dict(arch=dict(embed_dims=60, depth=2, num_heads=4)), ['multiple of 8', '60']),
        (dict(patch_size=12), ['patch_size', '8 or 16', '12']),
        (dict(out_type='maps'), ['maps', 'pyramid', 'featmap']),
        (dict(out_type='pyramid', out_indices=(3, 5, 7, 12)), ['out_indices', '12', '11']),
        (dict(out_type='pyramid', out_indices=(3, 5, 7)), ['one out_index', '(4, 8, 16, 32)']),
        (dict(out_type='pyramid', out_strides=(8, 16), out_indices=(3, 5, 7)), ['one out_index', '(8, 16)']),
        (dict(out_type='pyramid', out_strides=(16, 8)), ['out_strides', '(4, 8, 16, 32)', '(16, 8)']),
        (dict(out_type='pyramid', out_strides=(8, 64)), ['out_strides', '64']),
        (dict(out_type='pyramid', out_strides=()), ['out_strides']),
        (dict(out_type='featmap', out_strides=(8,)), ['out_strides', 'pyramid', 'featmap']),
        (dict(out_type='featmap', out_indices=(14,)), ['-12 to 13', '14']),
        (dict(out_type='featmap', out_indices=(-13,)), ['-12 to 13', '-13']),
        (dict(out_type='featmap', out_indices=(5, 3)), ['descend']),
        (dict(out_type='cls_token', out_indices=(3,)), ['cls_token', '12 to 13']),
        (dict(drop_path_rate=1.0), ['drop_path_rate', '1.0']),
        (dict(frozen_stages=15), ['frozen_stages', '15', '14']),
    ],
)
def test_wrong_arguments_are_named_with_what_is_allowed(kwargs, words):
    with pytest.raises(ValueError) as error:
        build(**kwargs)
    for word in words:
        assert word in str(error.value)


def test_names_of_models_take_strides_too():
    from xcit_mm import create_backbone

    maps = create_backbone('xcit_n12_8', out_type='pyramid', out_strides=(8, 16, 32))(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [(128, 8, 12), (128, 4, 6), (128, 2, 3)]
    for name, channels in (('xcit_m12_8', 512), ('xcit_large_12_p16_224', 768)):
        with torch.device('meta'):
            assert (create_backbone(name).embed_dims, create_backbone(name).depth) == (channels, 12)


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(embed_dims=384, depth=12, num_heads=8), ["arch='s12'"]),
        (dict(embed_dims=96, depth=6, num_heads=4, mlp_ratio=2.0), ['arch=dict(embed_dims=96, depth=6, num_heads=4']),
        (dict(depth=12), ['arch=dict(depth=12', 'num_heads=...', 's12']),
        (dict(embed_dim=384), ['embed_dims=384']),
        (dict(arch='s12', depth=50, num_stages=4), ['num_stages', '_delete_=True']),
        (dict(arch='s12', depth=50), ['depth', '_delete_=True']),
        (dict(arch='s12', deepen_factor=0.33, widen_factor=0.5), ['deepen_factor, widen_factor', '_delete_=True']),
        (dict(arch='s12', in_chans=1), ['in_chans is in_channels']),
        (dict(arch='s12', features_only=True), ["out_type='featmap'"]),
        (dict(arch='s12', pretrained=True), ['init_cfg=', 'create_backbone(NAME, True)']),
        (dict(arch='s12', cls_attn_layers=2), ['cls_attn_layers', 'always 2', 'leave']),
    ],
)
def test_arguments_of_other_implementations_get_the_way_to_write_them(kwargs, words):
    with pytest.raises(TypeError) as error:
        build(**kwargs)
    for word in words:
        assert word in str(error.value)


def test_indices_of_stages_are_noticed(tiny):
    """The habit from ResNet and Swin would leave out most blocks without a word."""
    with pytest.warns(UserWarning, match=r'blocks, not stages, and those after block 2 of 0 to 3 are never run'):
        build(arch=tiny, out_type='pyramid', out_indices=(0, 1, 2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build(arch=tiny, out_type='pyramid', out_indices=(0, 1, 2, 3))


def test_a_subclass_may_have_arguments_of_such_names(tiny):
    class Classifier(XCiT):
        def __init__(self, num_classes, depth=1, **kwargs):
            super().__init__(**kwargs)
            self.numbers = num_classes, depth

    assert Classifier(num_classes=3, depth=2, arch=tiny).numbers == (3, 2)
    with pytest.raises(TypeError, match='in_channels'):
        Classifier(num_classes=3, in_chans=1)


def test_an_image_smaller_than_a_patch_is_refused(tiny):
    with pytest.raises(ValueError, match='15x40.*16x16'):
        build(arch=tiny)(torch.randn(1, 3, 15, 40))


def test_the_adapter_refuses_other_strides_and_counts():
    from xcit_mm.models import MultiScaleAdapter

    with pytest.raises(ValueError, match='8 or 16'):
        MultiScaleAdapter(8, stride=4)
    with pytest.raises(ValueError, match='one map for each of out_strides=.4, 8, 16, 32.; got 3'):
        MultiScaleAdapter(8)([torch.randn(1, 8, 4, 4)] * 3)
    with pytest.raises(ValueError, match='out_strides must be some of'):
        MultiScaleAdapter(8, out_strides=(2, 4))
