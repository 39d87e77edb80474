"""Files as the other implementations write them, in whole models here: the same logits, and the same maps.

(An original classification file with its head is in test_agreement.py, an original detector in test_tools.py.)
"""

import pytest
import timm
import torch
from backbones import PUBLISHED, build, deviation, official_names, randomise, without_start_values
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint, save_checkpoint
from processes import ROOT
from safetensors.torch import save_file

from xcit_mm.models.xcit import ARCHS

TOLERANCE = 1e-4
TIMM_NAMES = dict(
    n12='nano_12', t12='tiny_12', t24='tiny_24', s12='small_12', s24='small_24', m24='medium_24', l24='large_24'
)
SIZE = (57, 44)  # no multiple of a patch
CLASSES = 1000


pytestmark = pytest.mark.usefixtures('one_thread')


def classifier(backbone, embed_dims):
    head = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=embed_dims)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head)).eval()


def pyramid_indices(arch):
    return [3, 5, 7, 11] if ARCHS[arch]['depth'] == 12 else [7, 11, 15, 23]


@torch.no_grad()
def assert_same_numbers(path, arch, patch_size, image, logits, maps, out_types):
    """The file as ``load_from`` of a classifier, and as ``init_cfg`` of the backbones of detectors."""
    whole = classifier(dict(type='xcit_mm.XCiT', arch=arch, patch_size=patch_size), ARCHS[arch]['embed_dims'])
    load_checkpoint(whole, str(path), strict=True)
    assert deviation(whole(image, mode='tensor'), logits) < TOLERANCE
    del whole
    start = dict(type='Pretrained', checkpoint=str(path))
    for out_type in out_types:
        model = build(
            arch=arch, patch_size=patch_size, out_type=out_type, out_indices=pyramid_indices(arch), init_cfg=start
        )
        model.init_weights()
        model.eval()
        # The pyramid is not in the file; its start values turn their maps into what it should return.
        expected = model.pyramid(maps) if out_type == 'pyramid' else maps
        outputs = model(image)
        assert len(outputs) == len(expected) == 4
        for ours, theirs in zip(outputs, expected):
            assert ours.shape == theirs.shape and deviation(ours, theirs) < TOLERANCE


@pytest.mark.parametrize('arch, patch_size', PUBLISHED)
def test_files_of_timm(arch, patch_size, tmp_path):
    """Saved as safetensors, as timm publishes its weights, and by torch.save (but m24 and l24 only once, for time)."""
    theirs = randomise(without_start_values(lambda: timm.create_model(f'xcit_{TIMM_NAMES[arch]}_p{patch_size}_224')))
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        logits = theirs(image)
        maps = theirs.forward_intermediates(image, indices=pyramid_indices(arch), intermediates_only=True)
    path = tmp_path / 'timm.safetensors'
    save_file(theirs.state_dict(), path)
    assert_same_numbers(path, arch, patch_size, image, logits, maps, ['pyramid', 'featmap'])
    path.unlink()
    if arch not in ('m24', 'l24'):
        path = tmp_path / 'timm.pth'
        torch.save(theirs.state_dict(), path)
        assert_same_numbers(path, arch, patch_size, image, logits, maps, ['featmap'])
        path.unlink()


@pytest.mark.parametrize('arch, patch_size', PUBLISHED)
def test_files_of_mmpretrain(arch, patch_size, tmp_path):
    """Its own classifier, saved by MMEngine."""
    settings = dict(ARCHS[arch], type='XCiT', patch_size=patch_size)
    settings.setdefault('tokens_norm', True)
    theirs = randomise(without_start_values(lambda: classifier(settings, settings['embed_dims'])))
    path = tmp_path / 'mmpretrain.pth'
    save_checkpoint({'meta': {'epoch': 400}, 'state_dict': theirs.state_dict()}, str(path))
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        logits = theirs(image, mode='tensor')
        theirs.backbone.out_type, theirs.backbone.out_indices = 'featmap', pyramid_indices(arch)
        maps = theirs.backbone(image)
    assert_same_numbers(path, arch, patch_size, image, logits, maps, ['pyramid'])
    path.unlink()


@pytest.mark.parametrize('name', ['sem_fpn_xcit_n6_8_digits', 'upernet_xcit_t12_16_160k_ade20k'])
def test_a_whole_segmentor_of_the_original_release(name, tmp_path):
    """Its own names in the backbone and MMSegmentation's elsewhere, as in the published ADE20K files."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmseg'):
        source = randomise(MODELS.build(cfg.model))
        target = MODELS.build(cfg.model).eval()
    state = source.state_dict()
    backbone = {key[len('backbone.') :]: value for key, value in state.items() if key.startswith('backbone.')}
    published = {key: value for key, value in state.items() if not key.startswith('backbone.')}
    published.update({f'backbone.{key}': value for key, value in official_names(backbone).items()})
    assert 'backbone.fpn1.0.weight' in published and 'decode_head.conv_seg.weight' in published
    torch.save({'meta': {'CLASSES': ['wall', 'sky']}, 'state_dict': published}, tmp_path / 'published.pth')
    load_checkpoint(target, str(tmp_path / 'published.pth'), strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(target(image, mode='tensor'), source(image, mode='tensor'))
