"""Checkpoints: every layout loads untouched, nothing half-fitting loads at all, no code is run."""

import argparse
import os
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from backbones import build, official_names, randomise
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, load_checkpoint
from processes import ROOT
from safetensors.torch import save_file
from torch import nn

from xcit_mm.checkpoint import CheckpointError, load_checkpoint_file


@pytest.fixture
def source(tiny):
    """A model with all of a backbone's parts."""
    return randomise(build(arch=tiny))


@pytest.fixture
def dense(tiny):
    return randomise(build(arch=tiny, out_type='pyramid'))


def pretrained(path, **kwargs):
    model = build(init_cfg=dict(type='Pretrained', checkpoint=str(path)), **kwargs)
    model.init_weights()
    return model


def assert_same(model, reference):
    expected = reference.state_dict()
    state = model.state_dict()
    shared = [key for key in state if key in expected]
    assert shared
    for key in shared:
        assert torch.equal(state[key], expected[key]), key


def prefixed(state, prefix='backbone.'):
    return {prefix + key: value for key, value in state.items()}


def published(kind, model):
    """The content of a file of each layout."""
    state = official_names(model.state_dict())
    head = {'head.weight': torch.zeros(10, 32), 'head.bias': torch.zeros(10)}
    return {
        'classification': {'model': {**state, **head}},
        'self-supervised': state,
        'self-supervised full run': {
            'student': {f'module.backbone.{k}': v + 1 for k, v in state.items()},
            'teacher': {**prefixed(state), 'head.mlp.0.weight': torch.zeros(3)},
            'args': argparse.Namespace(arch='xcit_small_12_p16', lr=0.1),
            'epoch': 300,
        },
        'detection': {'meta': {'epoch': 36}, 'state_dict': {**prefixed(state), 'neck.x': torch.zeros(1)}},
        'detection, parallel': {'state_dict': {f'module.backbone.{k}': v for k, v in state.items()}},
        'ours': {'meta': {}, 'state_dict': prefixed(model.state_dict())},
        'ours, backbone alone': {'state_dict': model.state_dict()},
        'plain state dict': dict(model.state_dict()),
    }[kind]


KINDS = [
    'classification',
    'self-supervised',
    'self-supervised full run',
    'detection',
    'detection, parallel',
    'ours',
    'ours, backbone alone',
    'plain state dict',
]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('out_type', ['cls_token', 'pyramid'])
def test_every_layout_starts_a_backbone(kind, out_type, source, tiny, tmp_path):
    torch.save(published(kind, source), tmp_path / 'file.pth')
    assert_same(pretrained(tmp_path / 'file.pth', arch=tiny, out_type=out_type), source)


@pytest.mark.parametrize('kind', KINDS)
def test_every_layout_loads_into_a_whole_model(kind, source, tiny, tmp_path):
    """As ``load_from`` does: the backbone sits in a larger model."""
    torch.save(published(kind, source), tmp_path / 'file.pth')
    whole = nn.ModuleDict(dict(backbone=build(arch=tiny)))
    load_checkpoint(whole, str(tmp_path / 'file.pth'))
    assert_same(whole['backbone'], source)


def test_a_dense_file_brings_its_adapter(dense, tiny, tmp_path):
    torch.save(published('detection', dense), tmp_path / 'file.pth')
    assert_same(pretrained(tmp_path / 'file.pth', arch=tiny, out_type='pyramid'), dense)


def test_safetensors(source, tiny, tmp_path):
    save_file(official_names(source.state_dict()), tmp_path / 'file.safetensors')
    assert_same(pretrained(tmp_path / 'file.safetensors', arch=tiny), source)


def test_the_prefix_of_pretrained_works_as_in_mmengine(source, tiny, tmp_path):
    torch.save(published('detection', source), tmp_path / 'file.pth')
    model = build(
        arch=tiny, init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=str(tmp_path / 'file.pth'))
    )
    model.init_weights()
    assert_same(model, source)


def test_plain_pytorch_loading_takes_published_names(source, tiny):
    model = build(arch=tiny)
    model.load_state_dict(official_names(source.state_dict()))
    assert_same(model, source)


def wrapped(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def two_models(kind, raw, average):
    """Files with two models, as other people's training writes them; the names of timm, which it shares with DeiT."""
    run = dict(epoch=3, args=argparse.Namespace(lr=0.1), optimizer={'state': {0: {'exp_avg': torch.zeros(2)}}})
    return {
        'timm': dict(run, arch='xcit', state_dict=raw, state_dict_ema=average),
        'timm, compiled, parallel': dict(
            run, state_dict=wrapped(raw, 'module._orig_mod.'), state_dict_ema=wrapped(average, '_orig_mod.module.')
        ),
        'DeiT': dict(run, model=raw, model_ema=average),
        'average of another name': dict(run, state_dict=raw, model_ema=average),
        'student and teacher': dict(run, student=wrapped(raw, 'module.'), teacher=average),
        'student and teacher in one dict': {
            'state_dict': {**wrapped(raw, 'student.'), **wrapped(average, 'teacher.backbone.')}
        },
        'MMEngine': {
            'meta': {},
            'state_dict': prefixed(raw),
            'ema_state_dict': {'steps': torch.tensor(3), **wrapped(raw, 'module.backbone.')},
        },
    }[kind]


@pytest.mark.parametrize(
    'kind, taken, left',
    [
        ('timm', 'average', "'state_dict_ema' is taken, 'state_dict' not"),
        ('timm, compiled, parallel', 'average', "'state_dict_ema' is taken, 'state_dict' not"),
        ('DeiT', 'raw', "'model' is taken, 'model_ema' not"),
        ('average of another name', 'average', "'model_ema' is taken, 'state_dict' not"),
        ('student and teacher', 'average', "'teacher' is taken, 'student' not"),
        ('student and teacher in one dict', 'average', "'state_dict' teacher.… is taken, 'state_dict' student.… not"),
        ('MMEngine', 'raw', "'state_dict' is taken, 'ema_state_dict' not"),
    ],
)
def test_of_several_models_that_of_its_writers_loader_is_taken_and_said(kind, taken, left, tiny, tmp_path, logged):
    models = {name: randomise(build(arch=tiny), seed) for seed, name in enumerate(('raw', 'average'))}
    raw, average = (official_names(model.state_dict()) for model in models.values())
    content = two_models(kind, raw, average)
    torch.save(content, tmp_path / 'run.pth.tar')
    assert_same(pretrained(tmp_path / 'run.pth.tar', arch=tiny), models[taken])
    assert any('run.pth.tar holds several models: ' + left in line for line in logged)
    if kind.startswith('timm') and torch.__version__ >= torch.torch_version.TorchVersion('2.6'):  # for timm to read it
        from timm.models import load_state_dict

        theirs = load_state_dict(str(tmp_path / 'run.pth.tar'))
        key = 'blocks.0.attn.qkv.weight'
        assert torch.equal(theirs[key], models['average'].state_dict()[key])


@pytest.fixture
def logged(monkeypatch):
    """What the loaders say."""
    from xcit_mm.checkpoint import loading, matching

    lines = []
    for module in (loading, matching):
        monkeypatch.setattr(module, 'print_log', lambda message, *_: lines.append(message))
    return lines


@pytest.mark.parametrize(
    'content',
    [
        lambda a, b: {'net': a, 'net_ema': b},
        lambda a, b: {'state_dict': {**wrapped(a, 'model.'), **wrapped(b, 'ema.module.')}},
        lambda a, b: {'run': {'params': a, 'params_ema': b}},
    ],
)
def test_of_several_models_nobody_guesses(content, source, tiny, tmp_path):
    torch.save(content(source.state_dict(), source.state_dict()), tmp_path / 'two.pth')
    with pytest.raises(CheckpointError, match=r'two\.pth: it holds several models \(.*ema.*cannot be told.*torch.save'):
        pretrained(tmp_path / 'two.pth', arch=tiny)


@pytest.mark.parametrize(
    'content',
    [
        lambda state: {'state_dict': wrapped(state, '_orig_mod.')},
        lambda state: wrapped(state, 'module._orig_mod.'),
        lambda state: {'state_dict': wrapped(state, 'model.'), 'pytorch-lightning_version': '2.1', 'callbacks': {}},
        lambda state: {**wrapped(state, 'model.'), 'normalize.mean': torch.zeros(3)},
        lambda state: {'state_dict': wrapped(state, 'net.backbone.'), 'hyper_parameters': {'lr': 0.1}},
        lambda state: {'whatever': state, 'epoch': 3},
        lambda state: {'state': {'model': wrapped(state, 'module.')}, 'rng': [torch.zeros(3)]},
    ],
    ids=['compiled', 'compiled, bare', 'Lightning', 'RobustBench', 'Lightning, deeper', 'another key', 'two keys'],
)
@pytest.mark.parametrize('names', ['official', 'ours'])
def test_wrappings_of_other_peoples_training_are_taken_off(content, names, source, tiny, tmp_path):
    state = source.state_dict()
    torch.save(content(official_names(state) if names == 'official' else dict(state)), tmp_path / 'run.ckpt')
    assert_same(pretrained(tmp_path / 'run.ckpt', arch=tiny), source)
    whole = nn.ModuleDict(dict(backbone=build(arch=tiny)))
    load_checkpoint(whole, str(tmp_path / 'run.ckpt'))
    assert_same(whole['backbone'], source)


def test_a_whole_model_of_mmengine_keeps_its_names(tiny, tmp_path):
    """A model with a teacher gets both; its backbone alone starts from the teacher, said."""
    whole = nn.ModuleDict({name: nn.ModuleDict(dict(backbone=build(arch=tiny))) for name in ('student', 'teacher')})
    randomise(whole)
    torch.save({'meta': {}, 'state_dict': wrapped(whole.state_dict(), '_orig_mod.')}, tmp_path / 'run.pth')
    other = nn.ModuleDict({name: nn.ModuleDict(dict(backbone=build(arch=tiny))) for name in ('student', 'teacher')})
    load_checkpoint(other, str(tmp_path / 'run.pth'), strict=True)
    assert_same(other, whole)
    assert_same(pretrained(tmp_path / 'run.pth', arch=tiny), whole['teacher']['backbone'])


def test_a_part_of_the_model_is_loaded_on_purpose(source, tiny):
    """By its own names, as PyTorch does it: what is missing stays, and ``strict`` names it."""
    part = {name: value for name, value in source.state_dict().items() if name.startswith('blocks.1.')}
    model = build(arch=tiny)
    with pytest.raises(RuntimeError, match='Missing key.*cls_token'):
        model.load_state_dict(part)
    missing, unexpected = model.load_state_dict({'norm.weight': part['blocks.1.gamma1']}, strict=False)
    assert 'cls_token' in missing and not unexpected
    before = model.blocks[0].attn.qkv.weight.clone()
    model.load_state_dict(part, strict=False)
    assert_same(model.blocks[1], source.blocks[1])
    assert torch.equal(model.blocks[0].attn.qkv.weight, before)
    published = {k: v for k, v in official_names(source.state_dict()).items() if not k.startswith('patch_embed.proj.0')}
    missing, unexpected = model.load_state_dict(published, strict=False)
    assert {'.'.join(key.split('.')[:3]) for key in missing} == {'patch_embed.proj.0'} and not unexpected
    assert_same(model.blocks, source.blocks)
    with pytest.raises(RuntimeError, match='Missing key.*patch_embed.proj.0.0.weight'):
        build(arch=tiny).load_state_dict(published)


def test_loras_adapters_alone_are_loaded(tiny, tmp_path, logged):
    """MMPretrain's LoRAModel saves and loads nothing else; in a whole classifier too."""
    from mmengine.runner import save_checkpoint

    from xcit_mm.checkpoint.fit import fit_state_dict

    def adapted():
        lora = dict(type='mmpretrain.LoRAModel', alpha=2, rank=2, targets=[dict(type='.*mlp.fc1')])
        backbone = dict(lora, module=dict(type='xcit_mm.XCiT', arch=tiny))
        head = dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=32)
        return MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head))

    def adapters(model):
        return {name: value for name, value in model.named_parameters() if '.lora_' in name}

    trained, other = adapted(), adapted()
    assert set(trained.backbone.state_dict()) and all('.lora_' in name for name in trained.backbone.state_dict())
    with torch.no_grad():
        for value in adapters(trained).values():
            value.normal_()
    other.backbone.load_state_dict(trained.backbone.state_dict())
    assert all(torch.equal(value, adapters(other)[name]) for name, value in adapters(trained).items())
    path = str(tmp_path / 'lora.pth')
    save_checkpoint({'state_dict': trained.state_dict(), 'meta': {}}, path)
    again = adapted()
    assert fit_state_dict(again, load_checkpoint_file(path)['state_dict'], 'test') is None
    load_checkpoint(again, path, strict=True)
    assert all(torch.equal(value, adapters(again)[name]) for name, value in adapters(trained).items())
    assert any('lora.pth: holds 12 of the' in line for line in logged)


def test_files_of_other_models_pass_unchanged(tmp_path):
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for content in ({'state_dict': other.state_dict(), 'meta': {'a': 1}}, other.state_dict()):
        torch.save(content, tmp_path / 'other.pth')
        target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        load_checkpoint(target, str(tmp_path / 'other.pth'), strict=True)
        assert_same(target, other)


REFUSED = {
    'another width': (dict(embed_dims=64, depth=4, num_heads=4), {}, ['misshapen', 'embed_dims=32', 'embed_dims=64']),
    'another depth': (dict(embed_dims=32, depth=6, num_heads=4), {}, ['missing', 'depth=4', 'depth=6']),
    'fewer blocks': (dict(embed_dims=32, depth=3, num_heads=4), {}, ['not in the model', 'blocks.3']),
    'other heads': (dict(embed_dims=32, depth=4, num_heads=8), {}, ['num_heads=4', 'num_heads=8', 'temperature']),
    'another patch size': (
        dict(embed_dims=32, depth=4, num_heads=4),
        dict(patch_size=8),
        ['patch_size=16', 'patch_size=8'],
    ),
}


@pytest.mark.parametrize('case', REFUSED)
@pytest.mark.parametrize('kind', ['classification', 'detection'])
def test_a_file_of_another_arch_is_refused_before_anything_is_loaded(case, kind, source, tmp_path):
    arch, options, words = REFUSED[case]
    torch.save(published(kind, source), tmp_path / 'file.pth')
    model = build(arch=arch, **options, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth')))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        model.init_weights()
    for word in [*words, 'file.pth', f'original {kind}']:
        assert word in str(error.value)
    assert str(error.value).count('\n') == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('lost', ['blocks.2.attn.qkv.weight', 'pos_embeder.token_projection.bias', 'cls_token'])
def test_a_file_with_missing_tensors_is_refused_by_name(lost, source, tiny, tmp_path):
    content = published('classification', source)
    del content['model'][lost]
    torch.save(content, tmp_path / 'file.pth')
    whole = nn.ModuleDict(dict(backbone=build(arch=tiny)))
    with pytest.raises(CheckpointError, match=r'file\.pth.*missing \(1\): ' + lost.split('.')[-1].join(['.*', ''])):
        load_checkpoint(whole, str(tmp_path / 'file.pth'))


@pytest.mark.parametrize('patch_size', [8, 16])
def test_a_pyramid_of_fewer_strides_takes_whole_files(patch_size, tiny, tmp_path, logged):
    dense = randomise(build(arch=tiny, patch_size=patch_size, out_type='pyramid'))
    for kind in ('detection', 'ours'):
        torch.save(published(kind, dense), tmp_path / 'file.pth')
        options = dict(arch=tiny, patch_size=patch_size, out_type='pyramid', out_strides=(8, 16, 32))
        assert_same(pretrained(tmp_path / 'file.pth', **options), dense)
        whole = nn.ModuleDict(dict(backbone=build(**options)))
        missing, unexpected = whole.load_state_dict(
            load_checkpoint_file(str(tmp_path / 'file.pth'))['state_dict'], strict=False
        )
        assert not missing and unexpected == (['neck.x'] if kind == 'detection' else [])
        assert_same(whole['backbone'], dense)
        assert any(line.endswith('not used by this model: pyramid.fpn1') for line in logged)
    torch.save({'state_dict': whole.state_dict()}, tmp_path / 'part.pth')
    whole = nn.ModuleDict(dict(backbone=build(arch=tiny, patch_size=patch_size, out_type='pyramid')))
    if patch_size == 16:  # where a level of the adapter is in the file, all have to be
        with pytest.raises(CheckpointError, match='missing.*pyramid.fpn1'):
            load_checkpoint(whole, str(tmp_path / 'part.pth'))


def test_half_an_adapter_is_refused(dense, tiny, tmp_path):
    content = published('detection', dense)
    del content['state_dict']['backbone.fpn2.0.weight']
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match='pyramid.fpn2.0.weight'):
        pretrained(tmp_path / 'file.pth', arch=tiny, out_type='pyramid')


def test_a_detector_does_not_start_a_classifier(dense, tiny, tmp_path):
    torch.save(published('detection', dense), tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match='cls_token'):
        pretrained(tmp_path / 'file.pth', arch=tiny, out_type='cls_token')


@pytest.mark.parametrize('whole', [False, True])
def test_a_file_of_another_model_is_refused(whole, tiny, tmp_path):
    state = {'layer1.0.conv1.weight': torch.zeros(4, 4, 1, 1), 'fc.bias': torch.zeros(4)}
    torch.save({'state_dict': prefixed(state) if whole else state}, tmp_path / 'resnet.pth')
    model = build(arch=tiny)
    with pytest.raises(CheckpointError, match=r'resnet\.pth.*no XCiT weights'):
        load_checkpoint(nn.ModuleDict(dict(backbone=model)) if whole else model, str(tmp_path / 'resnet.pth'))


def test_with_a_prefix_the_error_names_the_file_too(tiny, tmp_path):
    torch.save({'state_dict': {'backbone.layer1.weight': torch.zeros(4)}}, tmp_path / 'resnet.pth')
    model = build(
        arch=tiny, init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=str(tmp_path / 'resnet.pth'))
    )
    with pytest.raises(CheckpointError, match='resnet.pth'):
        model.init_weights()


class Canary:
    """Unpickled without care it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(params=['2.10', '2.1'] if hasattr(torch.serialization, 'safe_globals') else ['2.1'])
def torch_version(request, monkeypatch):
    """Both ways of reading: PyTorch's own allow-list, and ours for versions that have none."""
    monkeypatch.setattr(torch, '__version__', request.param)


@pytest.mark.parametrize('legacy', [False, True])
def test_no_code_is_run(legacy, torch_version, source, tiny, tmp_path):
    content = {**published('classification', source), 'extra': Canary(tmp_path / 'canary')}
    torch.save(content, tmp_path / 'evil.pth', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r'evil\.pth was refused.*mkdir'):
        pretrained(tmp_path / 'evil.pth', arch=tiny)
    with pytest.raises(CheckpointError, match='refused'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'evil.pth'), 'cpu')
    assert not (tmp_path / 'canary').exists()


def test_getattr_is_not_a_way_out(torch_version, tmp_path):
    class Getattr:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__class__')

    torch.save({'x': Getattr()}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='refused'):
        load_checkpoint_file(str(tmp_path / 'evil.pth'))


def test_plain_data_of_training_runs_is_read(torch_version, tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        'message_hub': {'log_scalars': {'loss': history}, 'runtime_info': {'iter': 3}},
        'meta': {'time': np.float64(1.5), 'sizes': np.arange(3), 'args': argparse.Namespace(a=[1])},
        'param_schedulers': [{'milestones': Counter({27: 1, 33: 1})}],
    }
    torch.save(content, tmp_path / 'run.pth')
    read = load_checkpoint_file(str(tmp_path / 'run.pth'))
    assert read['message_hub']['log_scalars']['loss'].mean() == 1.5
    assert read['meta']['sizes'].tolist() == [0, 1, 2]
    assert read['meta']['args'].a == [1]
    assert read['param_schedulers'][0]['milestones'][33] == 1


@pytest.mark.parametrize(
    'content', [b'', b'<!DOCTYPE html><html>Not found</html>', pickle.dumps(3), b'PK\x03\x04 cut off'], ids=repr
)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_what_is_no_checkpoint_is_named(content, suffix, tmp_path):
    path = tmp_path / f'broken{suffix}'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'broken'):
        load_checkpoint_file(str(path))


def test_a_truncated_file_is_named(source, tmp_path):
    path = tmp_path / 'whole.pth'
    torch.save(published('classification', source), path)
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match='whole.pth is not a checkpoint'):
            load_checkpoint_file(str(path))


def test_a_missing_file_is_named(tiny):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        pretrained('nowhere.pth', arch=tiny)


def test_golden_files_are_the_layouts_they_claim(tmp_path):
    for path in sorted((ROOT / 'tests' / 'golden').glob('*.pth')):
        torch.save(torch.load(path, weights_only=True)['checkpoint'], tmp_path / 'file.pth')
        state = load_checkpoint_file(str(tmp_path / 'file.pth'))['state_dict']
        assert state._metadata.source['layout'].startswith('original')
        assert all(key.startswith(('backbone.', 'head.fc.')) for key in state)


def test_mmpretrains_own_xcit_still_loads_its_files(tmp_path):
    """The loader serves the whole process, and so other models too."""
    from mmengine.runner import save_checkpoint

    def original():
        backbone = dict(type='mmpretrain.XCiT', embed_dims=32, depth=2, num_heads=2, patch_size=16)
        return MODELS.build(
            dict(
                type='mmpretrain.ImageClassifier',
                backbone=backbone,
                head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=32),
            )
        )

    saved, loaded = randomise(original()), original()
    save_checkpoint({'state_dict': saved.state_dict(), 'meta': {}}, str(tmp_path / 'own.pth'))
    load_checkpoint(loaded, str(tmp_path / 'own.pth'), strict=True)
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in loaded.state_dict().items())
