"""The same numbers as the original code and as the two other implementations, from their own checkpoint layouts."""

import pytest
import timm
import torch
from backbones import PUBLISHED, build, deviation, randomise, without_start_values
from mmpretrain.models.backbones.xcit import XCiT as MMPretrainXCiT
from processes import ROOT

from xcit_mm import ops
from xcit_mm.models.xcit import ARCHS
from xcit_mm.ops import dispatch

GOLDEN = sorted((ROOT / 'tests' / 'golden').glob('official_*.pth'))
TOLERANCE = 1e-4
TIMM_NAMES = dict(
    n12='nano_12', t12='tiny_12', t24='tiny_24', s12='small_12', s24='small_24', m24='medium_24', l24='large_24'
)
SIZES = [(96, 64), (57, 83)]


def pretrained(path, **kwargs):
    model = build(init_cfg=dict(type='Pretrained', checkpoint=str(path)), **kwargs)
    model.init_weights()
    return model.eval()


@pytest.fixture(params=['reference', 'token form', 'covariance form'])
def way(request, monkeypatch):
    """Those by which a model may be computed, whatever its size."""
    for name in ('LEAST_VALUES', 'LEAST_VALUES_OF_STEM'):
        monkeypatch.setattr(dispatch, name, 0)
    monkeypatch.setattr(dispatch, 'prefers_covariance', lambda *_: request.param == 'covariance form')
    with ops.use('reference' if request.param == 'reference' else 'auto'):
        yield


@pytest.mark.parametrize('path', GOLDEN, ids=lambda p: p.stem)
def test_original_code(path, tmp_path, way):
    golden = torch.load(path, weights_only=True)
    torch.save(golden['checkpoint'], tmp_path / 'published.pth')
    kwargs = golden['kwargs']
    arch = dict(embed_dims=kwargs['embed_dim'], depth=kwargs['depth'], num_heads=kwargs['num_heads'])
    if 'features' in golden:
        options = dict(out_type='pyramid', out_indices=kwargs['out_indices'])
        expected = golden['features']
    else:
        options = dict(out_type='cls_token', tokens_norm=kwargs['tokens_norm'])
        expected = [golden['cls_token']]
    model = pretrained(
        tmp_path / 'published.pth',
        arch=arch,
        patch_size=kwargs['patch_size'],
        layer_scale_init_value=kwargs['eta'],
        **options,
    )
    with torch.no_grad():
        outputs = model(golden['input'])
    assert len(outputs) == len(expected)
    for ours, theirs in zip(outputs, expected):
        assert ours.shape == theirs.shape
        assert deviation(ours, theirs) < TOLERANCE


@pytest.mark.parametrize('path', [p for p in GOLDEN if 'cls_p' in p.stem], ids=lambda p: p.stem)
def test_original_classifier_with_its_head(path, tmp_path):
    """A published classification file as ``load_from`` of a whole MMPretrain classifier gives its logits."""
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.runner import load_checkpoint

    golden = torch.load(path, weights_only=True)
    torch.save(golden['checkpoint'], tmp_path / 'published.pth')
    kwargs = golden['kwargs']
    arch = dict(embed_dims=kwargs['embed_dim'], depth=kwargs['depth'], num_heads=kwargs['num_heads'])
    backbone = dict(type='xcit_mm.XCiT', arch=arch, patch_size=kwargs['patch_size'], tokens_norm=kwargs['tokens_norm'])
    head = dict(type='LinearClsHead', num_classes=kwargs['num_classes'], in_channels=kwargs['embed_dim'])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head)).eval()
    load_checkpoint(model, str(tmp_path / 'published.pth'), strict=True)
    with torch.no_grad():
        logits = model(golden['input'], mode='tensor')
        logits = model.head.fc(logits[-1]) if isinstance(logits, tuple) else logits
    assert deviation(logits, golden['logits']) < TOLERANCE


@pytest.mark.parametrize('arch, patch_size', PUBLISHED)
def test_timm(arch, patch_size, tmp_path):
    """Saved by timm as it saves, loaded as it is: class token and tokens, at an odd and non-square size too."""
    name = f'xcit_{TIMM_NAMES[arch]}_p{patch_size}_224'
    theirs = randomise(without_start_values(lambda: timm.create_model(name, num_classes=0)))
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    ours = pretrained(tmp_path / 'timm.pth', arch=arch, patch_size=patch_size, out_type='raw')
    for size in SIZES:
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert deviation(ours(image)[0], theirs.forward_features(image)) < TOLERANCE


@pytest.mark.parametrize('arch, patch_size', PUBLISHED)
def test_mmpretrain(arch, patch_size, tmp_path):
    """Saved as MMPretrain saves a classifier, loaded as it is: every block's map and the class token."""
    settings = ARCHS[arch]
    depth = settings['depth']
    shared = dict(
        patch_size=patch_size, num_heads=settings['num_heads'], depth=depth, embed_dims=settings['embed_dims']
    )
    indices = [depth // 2, depth - 1, depth + 1]
    shared.update(tokens_norm=settings.get('tokens_norm', True), out_type='raw', out_indices=indices)
    theirs = randomise(without_start_values(lambda: MMPretrainXCiT(**shared)))
    torch.save(
        {'meta': {}, 'state_dict': {f'backbone.{k}': v for k, v in theirs.state_dict().items()}}, tmp_path / 'mm.pth'
    )
    ours = pretrained(
        tmp_path / 'mm.pth', arch=arch, patch_size=patch_size, out_type='raw', out_indices=[depth // 2, depth - 1, -1]
    )
    for size in SIZES:
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            outputs, expected = ours(image), theirs(image)
        assert len(outputs) == len(expected) == 3
        for a, b in zip(outputs, expected):
            assert deviation(a, b) < TOLERANCE
