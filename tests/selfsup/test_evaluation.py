"""k-NN and linear evaluation of self-supervised features, and DINO's commands between two processes."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import build, randomise
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from processes import ROOT, run, run_group

from xcit_mm.engine.setup import check_model
from xcit_mm.selfsup.knn import gather_in_order, knn_accuracy

ARCH = dict(embed_dims=32, depth=2, num_heads=4)


def features(seed=0, train=60, test=23, classes=7):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 5, generator=generator)
    labels = torch.arange(train + test) % classes
    found = F.normalize(centres[labels] + 1.5 * torch.randn(train + test, 5, generator=generator), dim=1)
    return found[:train], labels[:train], found[train:], labels[train:]


def plain_knn(train, train_labels, test, test_labels, k, temperature, classes=7):
    """One image after the other, with Python's own sums."""
    top1 = top5 = 0
    for query, label in zip(test, test_labels.tolist()):
        neighbours = sorted(((float(query @ x), int(y)) for x, y in zip(train, train_labels)), reverse=True)[:k]
        votes = {c: sum(np.exp(s / temperature) for s, y in neighbours if y == c) for c in range(classes)}
        ranking = sorted((c for c in votes if votes[c]), key=lambda c: (-votes[c], c))
        top1 += ranking[0] == label
        top5 += label in ranking[:5]
    return 100 * top1 / len(test), 100 * top5 / len(test)


def test_knn_is_the_plain_vote():
    data = features()
    found = knn_accuracy(*data, ks=(1, 5, 20, 200), temperature=0.2, chunk_size=10)
    for k, accuracies in found.items():
        assert accuracies == pytest.approx(plain_knn(*data, k, 0.2)), k
    assert 30 < found[5][0] < 100


@pytest.mark.parametrize('temperature', [0.07, 0.002])
def test_only_classes_with_a_vote_are_counted(temperature):
    """Neighbours of one class alone: another class is never among the best five, whatever its number."""
    train = torch.eye(6).repeat_interleave(30, 0)
    labels = torch.arange(6).repeat_interleave(30)
    for wrong in range(6):
        found = knn_accuracy(train, labels, train, torch.full_like(labels, wrong), (1, 3, 30), temperature)
        assert all(accuracy == pytest.approx((100 / 6, 100 / 6)) for accuracy in found.values())
    # Each of three classes is one of the three neighbours.
    three = F.normalize(
        torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [-1.0, 0.0], [-1.0, 0.1], [-1.0, 0.2]]), dim=1
    )
    found = knn_accuracy(three, torch.arange(6), three[:1], torch.tensor([2]), (1, 2, 3, 6), temperature)
    assert found == {1: (0, 0), 2: (0, 0), 3: (0, 100), 6: (0, 100)}


@pytest.mark.parametrize('classes', [2, 5])
def test_of_five_classes_or_fewer_there_is_no_top5(classes):
    data = features(classes=classes)
    found = knn_accuracy(*data, ks=(1, 5), temperature=0.2)
    assert {k: len(accuracy) for k, accuracy in found.items()} == {1: 1, 5: 1}
    assert found[5][0] == pytest.approx(plain_knn(*data, 5, 0.2, classes)[0])


def _process(rank, world, folder):
    train, train_labels, test, test_labels = features(train=61)
    # As the sampler deals them out: in turn, the last share filled up with the first image, which does not count.
    rows = torch.arange(62)[rank::world]
    labels = torch.where(rows < 61, train_labels[rows % 61], -1)
    mine = torch.arange(24)[rank::world] % 23
    test, test_labels = (gather_in_order(t[mine], 23) for t in (test, test_labels))
    found = knn_accuracy(train[rows % 61], labels, test, test_labels, ks=(5, 20, 200), chunk_size=10)
    if rank == 0:
        torch.save(found, f'{folder}/found.pth')


@pytest.mark.slow
def test_knn_on_two_processes_is_that_of_one(tmp_path):
    run_group(_process, tmp_path)
    assert torch.load(tmp_path / 'found.pth') == knn_accuracy(*features(train=61), ks=(5, 20, 200))


def linear_probe(path=None, blocks=1, average=False):
    cfg = Config.fromfile(ROOT / 'configs/linear_xcit_s12_8_in1k.py').model
    cfg.backbone.update(arch=ARCH, init_cfg=path and dict(type='Pretrained', checkpoint=str(path)))
    cfg.head.in_channels = 32 * (blocks + average)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(cfg, num_last_blocks=blocks, average_patches=average))


@pytest.fixture
def checkpoint(tmp_path):
    backbone = randomise(build(arch=ARCH, patch_size=8))
    torch.save(dict(state_dict=backbone.state_dict()), tmp_path / 'backbone.pth')
    return backbone, tmp_path / 'backbone.pth'


def test_linear_probe_puts_class_tokens_and_the_mean_patch_side_by_side(checkpoint):
    backbone, path = checkpoint
    model = linear_probe(path, blocks=2, average=True).train()
    images = torch.randn(2, 3, 32, 32)
    (found,) = model.extract_feat(images)
    raw = build(arch=ARCH, patch_size=8, out_type='raw', out_indices=(-2, -1)).eval()
    raw.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        first, last = raw(images)
        expected = torch.cat([raw.norm(first[:, 0]), last[:, 0], last[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(found, expected)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {'head.fc.weight', 'head.fc.bias'}
    assert not model.backbone.training and model.head.training


@pytest.mark.parametrize('names', [('head.fc.weight', 'head.fc.bias'), ('module.linear.weight', 'module.linear.bias')])
def test_a_file_of_the_head_alone_is_enough(checkpoint, tmp_path, names):
    """Ours, and those of the original release."""
    backbone, path = checkpoint
    model = linear_probe(path)
    tensors = torch.randn(1000, 32), torch.randn(1000)
    torch.save(dict(state_dict=dict(zip(names, tensors))), tmp_path / 'head.pth')
    load_checkpoint(model, str(tmp_path / 'head.pth'))
    assert torch.equal(model.head.fc.weight, tensors[0]) and torch.equal(model.head.fc.bias, tensors[1])
    assert torch.equal(model.backbone.norm.weight, backbone.norm.weight)
    # The tools compare the file with a model without memory first.
    cfg = Config.fromfile(ROOT / 'configs/linear_xcit_s12_8_in1k.py')
    cfg.model.backbone.update(arch=ARCH, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    cfg.model.head.in_channels = 32
    check_model(cfg, str(tmp_path / 'head.pth'), 'test')


def test_a_head_of_another_width_is_refused():
    with pytest.raises(ValueError, match='head.in_channels must be 64 .*2 class tokens'):
        cfg = Config.fromfile(ROOT / 'configs/linear_xcit_s12_8_in1k.py').model
        cfg.backbone.update(arch=ARCH, init_cfg=None)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            MODELS.build(dict(cfg, num_last_blocks=2))


@pytest.mark.slow
def test_training_and_knn_on_two_processes(tmp_path):
    def few(split, number):
        loader = f'{split}_dataloader'
        workers = [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
        return [*workers, f'{loader}.dataset.indices={number}']

    small = ['model.backbone.arch.embed_dims=32', 'model.backbone.arch.depth=2']
    options = [*few('train', 31), *small, 'train_dataloader.batch_size=5', 'model.neck.in_channels=32']
    config = ROOT / 'configs/dino_xcit_digits.py'
    arguments = (config, '--work-dir', 'dino', '--cfg-options', *options, 'train_cfg.max_epochs=1')
    log = run('train.py', *arguments, cwd=tmp_path, launcher=2)
    assert 'teacher_entropy' in log and 'teacher_momentum' in log

    arguments = (ROOT / 'configs/knn_xcit_digits.py', 'dino/epoch_1.pth', '--k', 1, 3, '--baselines')
    options = [*few('train', 301), *few('test', 101), *small]
    run('knn.py', *arguments, '--out', 'knn.json', '--cfg-options', *options, cwd=tmp_path, launcher=2)
    found = json.loads((tmp_path / 'knn.json').read_text())
    assert set(found) == {'checkpoint', 'random weights', 'pixels'}
    assert set(found['pixels']) == {'1', '3'} and 20 < found['pixels']['1']['top1'] < 80


@pytest.mark.parametrize('name', ['s12_16', 's12_8', 'm24_16', 'm24_8'])
def test_the_evaluation_configs(name):
    arch, patch = name.split('_')
    for kind in ('knn', 'linear'):
        cfg = Config.fromfile(ROOT / f'configs/{kind}_xcit_{name}_in1k.py')
        assert (cfg.model.backbone.arch, cfg.model.backbone.patch_size) == (arch, int(patch))
        resize, crop = cfg.test_dataloader.dataset.pipeline[1:3]
        assert (resize.scale, resize.edge, crop.crop_size) == (256, 'short', 224)
    assert cfg.model.head.in_channels == {'s12': 384, 'm24': 512}[arch]
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.004, momentum=0.9, weight_decay=0.0)
    assert cfg.train_dataloader.sampler.type == 'DefaultSampler' and cfg.train_cfg.max_epochs == 100
