"""Checkpoints: every layout loads untouched, nothing half-fitting loads at all, no code is run."""

import argparse
import os
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT, build, official_names, randomise
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, load_checkpoint
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
