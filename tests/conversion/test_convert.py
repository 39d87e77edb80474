"""tools/convert_checkpoint.py: the same bits in every layout, and the same numbers in every implementation."""

import argparse
import json
import os
import resource
import shutil
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from backbones import build, deviation, official_names, randomise
from mmengine.registry import MODELS, DefaultScope
from processes import ROOT, call
from safetensors.torch import load_file
from timm.models.xcit import Xcit

from xcit_mm.checkpoint import CheckpointError, load_checkpoint_file
from xcit_mm.conversion import convert as convert_module
from xcit_mm.conversion.arch import infer_arch
from xcit_mm.conversion.convert import TARGETS, TEST_SIZES, TOLERANCE, convert
from xcit_mm.errors import UsageError
from xcit_mm.models.xcit import ARCHS

GOLDEN = ROOT / 'tests' / 'golden'


pytestmark = pytest.mark.usefixtures('one_thread')


def tiny_timm(num_classes=5, **more):
    """timm's model of the small arch of the fixture ``tiny``."""
    kwargs = dict(patch_size=16, embed_dim=32, depth=4, num_heads=4, tokens_norm=True)
    return randomise(Xcit(num_classes=num_classes, **{**kwargs, **more}))


def mmpretrain_classifier(arch, num_classes):
    backbone = dict(arch, type='XCiT')
    head = dict(type='LinearClsHead', num_classes=num_classes, in_channels=arch['embed_dims'])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head)).eval()


def tensors(path):
    """A file's tensors by their own names, and where it keeps them."""
    if path.suffix == '.safetensors':
        return load_file(path), 'safetensors'
    content = torch.load(path, weights_only=True)
    place = next((key for key in ('model', 'state_dict') if key in content), None)
    return (content if place is None else content[place]), place


def assert_same_bits(a, b):
    assert list(a) == list(b) or set(a) == set(b)
    for key in a:
        assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key


def published_detector(tiny):
    """A file of the original release with more than a backbone."""
    backbone = official_names(randomise(build(arch=tiny, out_type='pyramid')).state_dict())
    others = {'neck.fpn_convs.0.conv.weight': torch.randn(8, 8, 3, 3), 'roi_head.bbox_head.fc_cls.bias': torch.ones(3)}
    state = {**{f'backbone.{key}': value for key, value in backbone.items()}, **others}
    return {'meta': {'epoch': 36, 'CLASSES': ('cat', 'dog')}, 'state_dict': state, 'optimizer': {'state': {}}}


# What the files of each layout look like.
LOOKS = {
    'xcit_mm': ('state_dict', 'backbone.blocks.0.lpi.conv1.weight', 'backbone.cls_attn_blocks.1.attn.qkv.bias'),
    'official': ('model', 'pos_embeder.token_projection.bias', 'cls_attn_blocks.1.attn.qkv.bias'),
    'mmpretrain': ('state_dict', 'backbone.xca_layers.0.local_mp.conv1.bn.weight', 'backbone.ca_layers.1.attn.k.bias'),
    'timm': (None, 'pos_embed.token_projection.bias', 'cls_attn_blocks.1.attn.k.bias'),
}


@pytest.fixture(scope='module')
def classifiers(tmp_path_factory):
    """The same classifier in every layout; the first is as timm saved it."""
    folder = tmp_path_factory.mktemp('classifiers')
    paths = {to: folder / f'{to}.pth' for to in TARGETS}
    torch.save(tiny_timm().state_dict(), paths['timm'])
    for to in TARGETS:
        if to != 'timm':
            convert(str(paths['timm']), str(paths[to]), to)
    return paths


@pytest.mark.parametrize('there', TARGETS)
@pytest.mark.parametrize('here', TARGETS)
def test_there_and_back_every_bit_is_the_same(here, there, classifiers, tmp_path):
    done = convert(str(classifiers[here]), str(tmp_path / 'there.pth'), there)
    assert set(done.deviations) == set(TEST_SIZES) and all(value <= TOLERANCE for value in done.deviations.values())
    state, place = tensors(tmp_path / 'there.pth')
    assert place == LOOKS[there][0] and set(LOOKS[there][1:]) <= set(state)
    convert(str(tmp_path / 'there.pth'), str(tmp_path / 'back.pth'), here)
    assert_same_bits(tensors(tmp_path / 'back.pth')[0], tensors(classifiers[here])[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['back.pth', 'there.pth']


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_types_stay_through_all_layouts(dtype, tmp_path):
    start = tmp_path / 'start.pth'
    torch.save(tiny_timm().to(dtype).state_dict(), start)
    path = start
    for i, to in enumerate(['mmpretrain', 'official', 'xcit_mm', 'timm']):
        target = tmp_path / f'{i}.{"pth" if to == "mmpretrain" else "safetensors"}'
        convert(str(path), str(target), to)
        path = target
    state = tensors(path)[0]
    assert_same_bits(state, tensors(start)[0])
    assert {value.dtype for value in state.values()} == {dtype, torch.int64}


@pytest.mark.parametrize('path', sorted(GOLDEN.glob('official_cls_*.pth')), ids=lambda p: p.stem)
@pytest.mark.parametrize('to', ['timm', 'mmpretrain'])
def test_an_original_file_gives_the_original_logits_in_another_implementation(path, to, tmp_path):
    golden = torch.load(path, weights_only=True)
    torch.save(golden['checkpoint'], tmp_path / 'original.pth')
    convert(str(tmp_path / 'original.pth'), str(tmp_path / 'new.pth'), to)
    kwargs = golden['kwargs']
    shared = dict(
        depth=kwargs['depth'],
        num_heads=kwargs['num_heads'],
        patch_size=kwargs['patch_size'],
        tokens_norm=kwargs['tokens_norm'],
    )
    if to == 'timm':
        model = Xcit(num_classes=kwargs['num_classes'], embed_dim=kwargs['embed_dim'], **shared).eval()
        forward = model
    else:
        model = mmpretrain_classifier(dict(shared, embed_dims=kwargs['embed_dim']), kwargs['num_classes'])
        forward = partial(model, mode='tensor')
    model.load_state_dict(tensors(tmp_path / 'new.pth')[0], strict=True)
    with torch.no_grad():
        assert deviation(forward(golden['input']), golden['logits']) < TOLERANCE


def test_timm_takes_a_published_arch_in_its_own_ways(tmp_path):
    """Its own layout as a local checkpoint; the original release's as pretrained weights, through its own filter."""
    ours = randomise(build(arch='n12', patch_size=8, out_type='raw'))
    state = {f'backbone.{key}': value for key, value in ours.state_dict().items()}
    head = torch.nn.Linear(128, 1000)
    state.update({f'head.fc.{key}': value for key, value in head.state_dict().items()})
    torch.save({'meta': {}, 'state_dict': state}, tmp_path / 'ours.pth')
    image = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        logits = head(ours(image)[0][:, 0])
    name = 'xcit_nano_12_p8_224'
    for to, file in (('timm', 'new.safetensors'), ('timm', 'new.pth'), ('official', 'official.pth')):
        convert(str(tmp_path / 'ours.pth'), str(tmp_path / file), to)
        path = str(tmp_path / file)
        if to == 'timm':
            model = timm.create_model(name, checkpoint_path=path)
        else:
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=path))
        with torch.no_grad():
            assert deviation(model.eval()(image), logits) < TOLERANCE


@pytest.mark.parametrize('to', TARGETS)
def test_a_backbone_without_a_head_stays_one(to, tmp_path):
    torch.save(tiny_timm(num_classes=0).state_dict(), tmp_path / 'timm.pth')
    done = convert(str(tmp_path / 'timm.pth'), str(tmp_path / 'new.pth'), to)
    state, place = tensors(tmp_path / 'new.pth')
    assert done.num_classes == 0 and not any(key.startswith('head') for key in state)
    assert place == (None if to == 'official' else LOOKS[to][0])
    convert(str(tmp_path / 'new.pth'), str(tmp_path / 'back.pth'), 'timm')
    assert_same_bits(tensors(tmp_path / 'back.pth')[0], tensors(tmp_path / 'timm.pth')[0])


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_whole_detector_keeps_all_of_its_parts(suffix, tiny, tmp_path):
    content = published_detector(tiny)
    torch.save(content, tmp_path / 'published.pth')
    done = convert(str(tmp_path / 'published.pth'), str(tmp_path / f'ours{suffix}'), 'xcit_mm')
    assert done.source_layout == 'original detection or segmentation' and 'optimizer' in done.left_out
    loaded = load_checkpoint_file(str(tmp_path / f'ours{suffix}'))['state_dict']
    assert torch.equal(loaded['neck.fpn_convs.0.conv.weight'], content['state_dict']['neck.fpn_convs.0.conv.weight'])
    convert(str(tmp_path / f'ours{suffix}'), str(tmp_path / 'back.pth'), 'official')
    back = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert_same_bits(back['state_dict'], content['state_dict'])
    assert back['meta'] == (content['meta'] if suffix == '.pth' else {})
    assert any('epoch' in words for words in done.left_out) == (suffix == '.safetensors')


@pytest.mark.parametrize('patch_size', [8, 16])
def test_the_original_dense_files_go_there_and_back(patch_size, tmp_path):
    content = torch.load(GOLDEN / f'official_dense_p{patch_size}.pth', weights_only=True)['checkpoint']
    torch.save(content, tmp_path / 'original.pth')
    convert(str(tmp_path / 'original.pth'), str(tmp_path / 'ours.pth'), 'xcit_mm')
    convert(str(tmp_path / 'ours.pth'), str(tmp_path / 'back.pth'), 'official')
    assert_same_bits(tensors(tmp_path / 'back.pth')[0], content['state_dict'])


@pytest.mark.parametrize('to', ['timm', 'mmpretrain'])
def test_a_detector_does_not_fit_the_layouts_of_classifiers(to, tiny, tmp_path):
    torch.save(published_detector(tiny), tmp_path / 'published.pth')
    with pytest.raises(CheckpointError) as error:
        convert(str(tmp_path / 'published.pth'), str(tmp_path / 'new.pth'), to)
    for words in ('published.pth', 'neck (1 tensors)', 'roi_head', 'the pyramid', 'no class token', '--to xcit_mm'):
        assert words in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['published.pth']


def test_of_a_self_supervised_run_the_teacher_is_taken_and_the_rest_is_named(tiny, tmp_path):
    state = official_names(randomise(build(arch=tiny)).state_dict())
    content = {
        'student': {f'module.backbone.{key}': value + 1 for key, value in state.items()},
        'teacher': {**{f'backbone.{key}': value for key, value in state.items()}, 'head.mlp.0.bias': torch.ones(3)},
        'optimizer': {'state': {0: {'exp_avg': torch.ones(2)}}},
        'args': argparse.Namespace(arch='xcit_small_12_p16'),
        'epoch': 300,
    }
    torch.save(content, tmp_path / 'run.pth')
    done = convert(str(tmp_path / 'run.pth'), str(tmp_path / 'new.pth'), 'official')
    assert_same_bits(tensors(tmp_path / 'new.pth')[0], state)
    left_out = ', '.join(done.left_out)
    for words in (f'student ({len(state)} tensors)', 'optimizer', 'args', 'epoch=300', 'head of the teacher'):
        assert words in left_out


def test_a_training_run_of_this_project_keeps_its_classes(classifiers, tmp_path):
    content = torch.load(classifiers['xcit_mm'], weights_only=True)
    content.update(
        meta={'epoch': 4, 'dataset_meta': {'classes': ('a', 'b')}}, optimizer={}, message_hub={'log_scalars': {}}
    )
    torch.save(content, tmp_path / 'epoch_4.pth')
    done = convert(str(tmp_path / 'epoch_4.pth'), str(tmp_path / 'mm.pth'), 'mmpretrain')
    assert torch.load(tmp_path / 'mm.pth', weights_only=True)['meta'] == content['meta']
    assert done.left_out == ['optimizer', 'message_hub']
    done = convert(str(tmp_path / 'epoch_4.pth'), str(tmp_path / 'timm.pth'), 'timm')
    assert done.left_out == ['optimizer', 'message_hub', 'meta (epoch, dataset_meta)']


def test_files_come_from_addresses_too(classifiers, tmp_path, monkeypatch):
    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=str(classifiers['official'].parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    try:
        convert(f'http://127.0.0.1:{server.server_port}/official.pth', str(tmp_path / 'new.pth'), 'timm')
    finally:
        server.shutdown()
    assert_same_bits(tensors(tmp_path / 'new.pth')[0], tensors(classifiers['timm'])[0])


@pytest.mark.parametrize('patch_size', [8, 16])
@pytest.mark.parametrize('name', ARCHS)
def test_the_arch_is_told_from_the_tensors(name, patch_size):
    with torch.device('meta'):
        state = build(arch=name, patch_size=patch_size).state_dict()
    arch = infer_arch(state)
    assert str(arch) == f'XCiT-{name.upper()}/{patch_size}'
    assert (arch.tokens_norm, arch.mlp_ratio, arch.in_channels) == (name != 'n12', 4.0, 3)


def test_other_channels_and_widths_of_the_mlp_are_told_too(tmp_path):
    torch.save(tiny_timm(in_chans=4, mlp_ratio=3).state_dict(), tmp_path / 'timm.pth')
    done = convert(str(tmp_path / 'timm.pth'), str(tmp_path / 'new.pth'), 'mmpretrain')
    assert (done.arch.in_channels, done.arch.mlp_ratio) == (4, 3)
    assert str(done.arch) == 'XCiT-(embed_dims=32, depth=4, num_heads=4)/16'


# A folder for timm's create_model and the hub.


@pytest.mark.parametrize('kind', ['published', 'with its config', 'of another size', 'backbone'])
def test_a_folder_for_timm_and_the_hub(kind, tmp_path, monkeypatch):
    """Loaded by timm as a folder and as a repository of the hub, and by this project."""
    from huggingface_hub import constants

    kwargs = dict(embed_dim=128, depth=12, num_heads=4, tokens_norm=False)
    kwargs.update(dict(embed_dim=64, depth=3, num_heads=2, tokens_norm=True) if kind == 'of another size' else {})
    num_classes = {'published': 1000, 'with its config': 3, 'of another size': 7, 'backbone': 0}[kind]
    theirs = randomise(Xcit(patch_size=8, num_classes=num_classes, in_chans=4 if num_classes == 7 else 3, **kwargs))
    source = tmp_path / ('xcit_nano_12_p8_384_dist.pth' if kind == 'published' else 'mine.pth')
    if kind == 'with its config':
        torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
        convert(str(tmp_path / 'timm.pth'), str(source), 'xcit_mm')
        text = """
model = dict(data_preprocessor=dict(mean=[127.5, 0.0, 51], std=[51.0, 51.0, 255.0], to_rgb=True))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='ResizeEdge', scale=200, edge='short'), dict(type='CenterCrop', crop_size=160)]))
__import__('os').abort()
"""
        content = torch.load(source, weights_only=True)
        torch.save({**content, 'meta': {'cfg': text, 'dataset_meta': {'classes': ('a', 'b', 'c')}}}, source)
    else:
        torch.save(theirs.state_dict(), source)
    target = tmp_path / 'repo'
    done = convert(str(source), str(target), 'hf')
    assert max(done.deviations.values()) < 1e-5 and 'local-dir' in done.compared
    assert sorted(path.name for path in target.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    assert_same_bits(load_file(target / 'model.safetensors'), theirs.state_dict())

    config = json.loads((target / 'config.json').read_text())
    expected = {
        'published': ('xcit_nano_12_p8_224', [3, 384, 384], [0.485, 0.456, 0.406], 1.0),
        'with its config': ('xcit_nano_12_p8_224', [3, 160, 160], [0.5, 0.0, 0.2], 0.8),
        'of another size': ('xcit_small_12_p8_224', [4, 224, 224], [0.5] * 4, 1.0),
        'backbone': ('xcit_nano_12_p8_224', [3, 224, 224], [0.485, 0.456, 0.406], 1.0),
    }[kind]
    images = config['pretrained_cfg']
    assert (config['architecture'], images['input_size'], images['mean'], images['crop_pct']) == expected
    assert config.get('label_names') == (['a', 'b', 'c'] if kind == 'with its config' else None)
    card = (target / 'README.md').read_text()
    assert ('license: apache-2.0' in card) == ('top-1' in card) == (kind == 'published')
    assert all(f'## {section}\n' in card for section in ('Use', 'Evaluation', 'Data', 'Licence'))
    assert ('TODO' in card) == (kind != 'published')  # nothing is made up of what only the user knows
    assert ('- Classes: a, b, c\n' in card) == (kind == 'with its config')
    assert ('(assumed)' in card) == (kind in ('of another size', 'backbone'))

    snapshot = tmp_path / 'hub' / 'models--me--repo' / 'snapshots' / ('f' * 40)
    shutil.copytree(target, snapshot)
    (snapshot.parents[1] / 'refs').mkdir()
    (snapshot.parents[1] / 'refs' / 'main').write_text('f' * 40)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    image = torch.randn(1, config['pretrained_cfg']['input_size'][0], 48, 64)
    with torch.no_grad():
        for name in (f'local-dir:{target}', 'hf-hub:me/repo'):
            assert torch.equal(timm.create_model(name, pretrained=True).eval()(image), theirs(image))
    done = convert('hf-hub:me/repo', str(tmp_path / 'back.pth'), 'timm')
    assert_same_bits(tensors(tmp_path / 'back.pth')[0], theirs.state_dict())


def test_images_of_robust_models_are_not_normalised(tmp_path):
    model = Xcit(patch_size=16, embed_dim=384, depth=12, num_heads=8, tokens_norm=True)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'debenedetti2022light-xcit-s-imagenet-linf.pth.tar')
    convert(str(next(tmp_path.iterdir())), str(tmp_path / 'repo'), 'hf')
    images = json.loads((tmp_path / 'repo' / 'config.json').read_text())['pretrained_cfg']
    assert images['mean'] == [0.0] * 3 and images['std'] == [1.0] * 3
    assert 'license: mit' in (tmp_path / 'repo' / 'README.md').read_text()


def test_what_a_folder_cannot_say_is_refused(tmp_path):
    source, target = tmp_path / 'source.pth', tmp_path / 'repo'
    torch.save(tiny_timm().state_dict(), source)
    torch.save({'state_dict': tiny_timm(num_classes=10).state_dict()}, tmp_path / 'cifar.pth')
    named = tmp_path / 'debenedetti2022light-xcit-s-cifar10-linf.pth.tar'
    (tmp_path / 'cifar.pth').rename(named)
    with pytest.raises(CheckpointError, match='timm has no patches of 4'):
        convert(str(named), str(target), 'hf')
    with pytest.raises(UsageError, match='is a file; --to hf writes a folder'):
        convert(str(source), str(named), 'hf')
    convert(str(source), str(tmp_path / 'bgr.pth'), 'xcit_mm')
    content = torch.load(tmp_path / 'bgr.pth', weights_only=True)
    cfg = 'model = dict(data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0]))\ntest_dataloader = dict()'
    torch.save({**content, 'meta': {'cfg': cfg}}, tmp_path / 'bgr.pth')
    with pytest.raises(UsageError, match='in BGR .* timm feeds RGB'):
        convert(str(tmp_path / 'bgr.pth'), str(target), 'hf')
    assert not target.exists() and not [path for path in tmp_path.iterdir() if path.name.startswith('.')]
    target.mkdir()
    (target / 'mine.txt').write_text('kept')
    with pytest.raises(UsageError, match='exists already'):
        convert(str(source), str(target), 'hf')
    convert(str(source), str(target), 'hf', force=True)
    assert len(list(target.iterdir())) == 4 and (target / 'mine.txt').read_text() == 'kept'


def refused(error, *words, source, target, to='timm', force=False):
    """The conversion ends with one line that has these words, and leaves the folder as it was."""
    before = {path: path.read_bytes() for path in source.parent.iterdir() if path.is_file()}
    with pytest.raises(error) as caught:
        convert(str(source), str(target), to, force)
    for word in words:
        assert word in str(caught.value)
    assert '\n' not in str(caught.value)
    assert {path: path.read_bytes() for path in source.parent.iterdir() if path.is_file()} == before


BROKEN = {
    'another model': (lambda state: {'layer1.0.conv1.weight': torch.ones(1)}, ['holds no XCiT', 'layer1.0.conv1']),
    'no tensors': (lambda state: {'epoch': 3}, ['holds no XCiT', 'none']),
    'a block missing': (lambda state: _without(state, 'blocks.1.attn'), ['missing', 'blocks.1.attn']),
    'the first block missing': (lambda state: _without(state, 'blocks.0.gamma1'), ['arch cannot be inferred']),
    'half a head': (lambda state: _without(state, 'head.bias'), ['head.fc.bias']),
    'weights that are not a number': (
        lambda state: dict(state, cls_token=state['cls_token'] / 0),
        ['not finite', 'cls_token'],
    ),
    'a tensor twice': (lambda state: dict(state, **{'head.fc.weight': torch.ones(5, 32)}), ['without loss']),
    'a convolution missing': (lambda state: _without(state, 'patch_embed.proj.6'), ['misshapen', 'patch_embed']),
}


def _without(state, start):
    return {key: value for key, value in state.items() if not key.startswith(start)}


@pytest.mark.parametrize('case', BROKEN)
@pytest.mark.parametrize('force', [False, True])
def test_what_cannot_be_converted_is_explained_and_leaves_nothing(case, force, classifiers, tmp_path):
    change, words = BROKEN[case]
    torch.save(change(tensors(classifiers['timm'])[0]), tmp_path / 'broken.pth')
    if force:
        (tmp_path / 'new.pth').write_text('somebody needs this')
    refused(
        CheckpointError,
        'broken.pth',
        *words,
        source=tmp_path / 'broken.pth',
        target=tmp_path / 'new.pth',
        force=force,
    )


def test_a_mapping_that_swaps_two_tensors_is_found_by_the_other_model(classifiers, tmp_path, monkeypatch):
    """The same mistake there and back: names and shapes fit and every bit returns, so that only running it can tell."""
    layout = next(layout for layout in convert_module.LAYOUTS if layout.name == 'timm')

    swap = ((r'^(blocks\.0\.norm)([12])\.', lambda m: f'{m[1]}{3 - int(m[2])}.'),)
    wrong = replace(layout, renames=swap + layout.renames, inverse=layout.inverse + swap)
    monkeypatch.setattr(convert_module, 'LAYOUTS', (wrong,))
    source = classifiers['xcit_mm']
    refused(CheckpointError, 'was not converted', "timm's XCiT", source=source, target=tmp_path / 'new.pth')
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_replaced_only_by_force(classifiers, tmp_path):
    source = tmp_path / 'model.pth'
    source.write_bytes(classifiers['official'].read_bytes())
    refused(UsageError, 'model.pth exists already', '--force', source=source, target=source)
    convert(str(source), str(source), 'timm', force=True)  # onto itself, too
    assert_same_bits(tensors(source)[0], tensors(classifiers['timm'])[0])


def test_places_that_cannot_be_written_to_are_explained(classifiers, tmp_path):
    source = classifiers['timm']
    refused(UsageError, 'there is no folder', 'gone', source=source, target=tmp_path / 'gone' / 'new.pth')
    refused(UsageError, 'is a folder', source=source, target=tmp_path)
    refused(UsageError, '/proc cannot be written to', source=source, target='/proc/new.pth')
    refused(UsageError, 'no .safetensors', source=source, target=tmp_path / 'x.safetensors', to='mmpretrain')
    refused(UsageError, 'no layout', 'mmpretrain, timm', source=source, target=tmp_path / 'x.pth', to='keras')
    refused(CheckpointError, 'no checkpoint file', source=tmp_path / 'gone.pth', target=tmp_path / 'x.pth')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_full_disk_is_explained_and_leaves_nothing(suffix, classifiers, tmp_path):
    """The operating system refuses to write more than some bytes, as it does then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UsageError, match=f'new{suffix} could not be written'):
            convert(str(classifiers['timm']), str(tmp_path / f'new{suffix}'), 'xcit_mm')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('to, module', [('timm', 'timm.models.xcit'), ('mmpretrain', 'mmpretrain.models')])
def test_without_the_other_implementation_nothing_is_converted_unproven(to, module, classifiers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as Python marks what cannot be imported
    refused(
        UsageError,
        f'{to} cannot be imported',
        'pip install',
        source=classifiers['xcit_mm'],
        target=tmp_path / 'x',
        to=to,
    )
    assert not list(tmp_path.iterdir())
    convert(str(classifiers[to]), str(tmp_path / 'new.pth'), 'xcit_mm')  # needs neither


def test_the_tool_tells_what_it_did(classifiers, run_tool, tmp_path, capsys):
    command = [ROOT / 'tools' / 'convert_checkpoint.py', classifiers['official'], 'new.safetensors', '--to', 'timm']
    done = call([sys.executable, *command], cwd=tmp_path, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr
    for words in ('original classification', 'head of 5 classes', 'timm', 'same bits', 'deviation', '57x83'):
        assert words in done.stdout
    assert 'Warning' not in done.stderr
    assert_same_bits(tensors(tmp_path / 'new.safetensors')[0], tensors(classifiers['timm'])[0])
    with pytest.raises(SystemExit, match='1'):
        run_tool(*command)
    assert 'exists already' in capsys.readouterr().err
