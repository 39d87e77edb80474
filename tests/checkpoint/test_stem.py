"""The patch embedding of a file and of a model: patches of 4, and images of other channels than RGB."""

import pickle

import numpy as np
import pytest
import timm
import torch
from backbones import build, deviation, randomise
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint, save_checkpoint
from processes import ROOT
from safetensors.torch import save_file
from timm.models.xcit import Xcit
from torch import nn

from xcit_mm.checkpoint import CheckpointError, load_checkpoint_file
from xcit_mm.conversion.convert import convert
from xcit_mm.engine.setup import check_model
from xcit_mm.errors import UsageError
from xcit_mm.ops import dispatch
from xcit_mm.visualization import load_backbone
from xcit_mm.visualization.attention import load_input

CIFAR_FILE = 'debenedetti2022light-xcit-s-cifar10-linf.pth.tar'


def tiny_timm(**more):
    return randomise(
        Xcit(**{**dict(patch_size=16, embed_dim=32, depth=4, num_heads=4, tokens_norm=True, num_classes=0), **more})
    )


def with_patches_of_4(model):
    """As RobustBench adapts timm's models: convolutions 0 and 2 of the sequence get stride 1."""
    for index in (0, 2):
        model.patch_embed.proj[index][0].stride = (1, 1)
    model.patch_embed.patch_size = 4
    return model


def pretrained(path, **kwargs):
    model = build(init_cfg=dict(type='Pretrained', checkpoint=str(path)), **kwargs)
    model.init_weights()
    return model.eval()


@pytest.fixture
def logged(monkeypatch):
    """What is printed about checkpoints."""
    messages = []
    monkeypatch.setattr('xcit_mm.checkpoint.stem.print_log', lambda message, *_: messages.append(message))
    return messages


@pytest.fixture
def state(tiny):
    return randomise(build(arch=tiny, patch_size=4)).state_dict()


# Patches of 4.


@pytest.mark.parametrize('size', [(32, 32), (33, 45), (4, 5)])
@pytest.mark.parametrize('out_type', ['cls_token', 'featmap'])
def test_patches_of_4_compute_what_robustbench_computes(size, out_type, tiny, tmp_path):
    theirs = with_patches_of_4(tiny_timm())
    torch.save({'state_dict': theirs.state_dict()}, tmp_path / CIFAR_FILE)
    ours = pretrained(tmp_path / CIFAR_FILE, arch=tiny, patch_size=4, out_type=out_type)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        if out_type == 'cls_token':
            expected = theirs(image)
        else:
            (expected,) = theirs.forward_intermediates(image, indices=[3], intermediates_only=True)
        assert deviation(ours(image)[0], expected) < 1e-5


def test_large_images_with_patches_of_4_are_not_halved_in_bands(tiny, one_thread, monkeypatch):
    model = randomise(build(arch=tiny, patch_size=4, out_type='featmap'))
    image = torch.randn(1, 3, 400, 420)
    monkeypatch.setattr(dispatch, 'LEAST_VALUES_OF_STEM', 0)
    with torch.no_grad():
        tokens, grid = model.patch_embed(image)
        assert grid == (100, 105)
        assert deviation(tokens, model.patch_embed.proj(image).flatten(2).transpose(1, 2)) < 1e-5


def test_patches_of_4_have_no_pyramid(tiny):
    with pytest.raises(ValueError, match='stride'):
        build(arch=tiny, patch_size=4, out_type='pyramid')
    with pytest.raises(ValueError, match='patch_size must be 4, 8 or 16, got 2'):
        build(arch=tiny, patch_size=2)


@pytest.mark.parametrize('kind', ['our backbone', 'our classifier', 'by MMEngine', "RobustBench's name", 'safetensors'])
def test_a_file_for_patches_of_4_is_not_taken_for_16(kind, tiny, state, tmp_path):
    path = tmp_path / (CIFAR_FILE if kind == "RobustBench's name" else 'file.pth')
    if kind == 'our backbone':
        torch.save({'state_dict': state}, path)
    elif kind == 'safetensors':
        torch.save({'state_dict': state}, path)
        convert(str(path), str(tmp_path / 'file.safetensors'), 'timm')
        path = tmp_path / 'file.safetensors'
    elif kind == "RobustBench's name":
        torch.save({'model': tiny_timm().state_dict()}, path)
    else:
        whole = nn.Module()
        whole.backbone = build(arch=tiny, patch_size=4)
        content = {'state_dict': whole.state_dict(), 'meta': {}}
        (torch.save if kind == 'our classifier' else save_checkpoint)(content, str(path))
    with pytest.raises(CheckpointError, match='trained with patches of 4, and the model has patch_size=16'):
        pretrained(path, arch=tiny)
    with pytest.raises(CheckpointError, match='patches of 4'):
        whole = nn.Module()
        whole.backbone = build(arch=tiny)
        load_checkpoint(whole, str(path))
    pretrained(path, arch=tiny, patch_size=4)
    assert load_backbone(str(path)).patch_size == 4


def test_a_file_for_patches_of_16_starts_a_model_of_4_with_a_word(tiny, tmp_path, logged):
    """As RobustBench's CIFAR models started from ImageNet's; but not if the file states its patch size."""
    torch.save(tiny_timm().state_dict(), tmp_path / 'timm.pth')
    pretrained(tmp_path / 'timm.pth', arch=tiny, patch_size=4)
    assert 'taken for patch_size=4' in logged[0]
    torch.save({'state_dict': build(arch=tiny).state_dict()}, tmp_path / 'ours.pth')
    with pytest.raises(CheckpointError, match='trained with patches of 16, and the model has patch_size=4'):
        pretrained(tmp_path / 'ours.pth', arch=tiny, patch_size=4)
    del logged[:]
    pretrained(tmp_path / 'ours.pth', arch=tiny)
    assert not logged


@pytest.mark.parametrize('to', ['timm', 'mmpretrain', 'official', 'xcit_mm'])
def test_patches_of_4_are_converted(to, tmp_path):
    torch.save({'state_dict': tiny_timm(num_classes=10).state_dict()}, tmp_path / CIFAR_FILE)
    done = convert(str(tmp_path / CIFAR_FILE), str(tmp_path / 'new.pth'), to)
    assert done.arch.patch_size == 4 and max(done.deviations.values()) < 1e-5
    if to == 'xcit_mm':
        assert load_checkpoint_file(str(tmp_path / 'new.pth'))['state_dict']._metadata.source['patch_size'] == 4


def test_another_number_of_convolutions_is_refused_by_name(tiny, tmp_path):
    torch.save(tiny_timm(patch_size=8).state_dict(), tmp_path / 'timm.pth')
    with pytest.raises(CheckpointError, match=r'patch_size=8; the model has .*patch_size=16'):
        pretrained(tmp_path / 'timm.pth', arch=tiny)


# Images of other channels.


@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_a_model_for_other_channels_starts_from_weights_for_rgb_as_timm_does(channels, tiny, tmp_path, logged):
    rgb = tiny_timm()
    save_file(rgb.state_dict(), tmp_path / 'rgb.safetensors')
    ours = pretrained(tmp_path / 'rgb.safetensors', arch=tiny, in_channels=channels)
    theirs = tiny_timm(in_chans=channels)
    expected = timm.models.adapt_input_conv(channels, rgb.state_dict()['patch_embed.proj.0.0.weight'])
    theirs.load_state_dict({**rgb.state_dict(), 'patch_embed.proj.0.0.weight': expected})
    image = torch.randn(2, channels, 48, 64)
    with torch.no_grad():
        assert deviation(ours(image)[0], theirs(image)) < 1e-5
    assert len(logged) == 1 and f'in_channels={channels}' in logged[0]


def test_one_grey_channel_gives_what_three_equal_ones_gave(tiny, tmp_path):
    torch.save(tiny_timm().state_dict(), tmp_path / 'rgb.pth')
    grey = torch.randn(1, 1, 48, 64)
    ours = pretrained(tmp_path / 'rgb.pth', arch=tiny, in_channels=1)
    rgb = pretrained(tmp_path / 'rgb.pth', arch=tiny)
    with torch.no_grad():
        assert deviation(ours(grey)[0], rgb(grey.expand(-1, 3, -1, -1))[0]) < 1e-5


def test_weights_for_other_channels_are_never_adapted_in_silence(tiny, tmp_path):
    """Only init_cfg starts a model; testing, load_from and resuming ask for the model of the file."""
    torch.save(tiny_timm().state_dict(), tmp_path / 'rgb.pth')
    torch.save(tiny_timm(in_chans=4).state_dict(), tmp_path / 'four.pth')
    whole = nn.Module()
    whole.backbone = build(arch=tiny, in_channels=4)
    before = whole.backbone.patch_embed.proj[0][0].weight.clone()
    with pytest.raises(CheckpointError, match="has in_channels=4, so nothing was loaded.*in the backbone's init_cfg="):
        load_checkpoint(whole, str(tmp_path / 'rgb.pth'))
    assert torch.equal(whole.backbone.patch_embed.proj[0][0].weight, before)
    for channels in (1, 3, 6):
        with pytest.raises(CheckpointError, match='images of 4 channels.*Only weights for RGB are adapted'):
            pretrained(tmp_path / 'four.pth', arch=tiny, in_channels=channels)
    pretrained(tmp_path / 'four.pth', arch=tiny, in_channels=4)


def test_the_check_before_a_training_knows_it_too(tiny, tmp_path):
    torch.save(tiny_timm().state_dict(), tmp_path / 'rgb.pth')
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'rgb.pth'))
    backbone = dict(type='xcit_mm.XCiT', arch=tiny, in_channels=4, init_cfg=start)
    check_model(Config(dict(model=dict(backbone=backbone))))
    with pytest.raises(CheckpointError, match='rgb.pth.*in_channels=4'):
        check_model(Config(dict(model=dict(backbone=dict(backbone, init_cfg=None)))), str(tmp_path / 'rgb.pth'))


# The published models.


def robustbench(arch, dataset):
    """RobustBench's own definitions, as its source has them, with random weights."""
    sizes = dict(
        s12=dict(embed_dim=384, depth=12, num_heads=8),
        m12=dict(embed_dim=512, depth=12, num_heads=8),
        l12=dict(embed_dim=768, depth=12, num_heads=16),
    )[arch]
    classes = dict(cifar10=10, cifar100=100, imagenet=1000)[dataset]
    with torch.device('meta'):
        model = Xcit(patch_size=16, eta=1.0, tokens_norm=True, num_classes=classes, **sizes)
    model = randomise(model.to_empty(device='cpu'))
    # What is no weight, and lies in no file.
    model.pos_embed.eps, model.patch_embed.img_size = 1e-6, None
    if dataset == 'imagenet':
        return model, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    means = dict(cifar10=(0.4914, 0.4822, 0.4465), cifar100=(0.5071, 0.4867, 0.4408))
    deviations = dict(cifar10=(0.2471, 0.2435, 0.2616), cifar100=(0.2675, 0.2565, 0.2761))
    return with_patches_of_4(model), means[dataset], deviations[dataset]


@pytest.mark.parametrize(
    'arch, dataset, container',
    [
        ('s12', 'cifar10', 'state_dict'),
        ('s12', 'cifar100', 'model'),
        ('s12', 'imagenet', 'model'),
        ('l12', 'cifar10', 'state_dict'),
        ('l12', 'imagenet', 'state_dict'),
        pytest.param('m12', 'cifar10', 'state_dict', marks=pytest.mark.slow),
        pytest.param('m12', 'imagenet', 'model', marks=pytest.mark.slow),
    ],
)
def test_the_robust_models_are_robustbenchs(arch, dataset, container, tmp_path, one_thread):
    """From the bytes of an image to the logits: the config's normalisation, stem and head."""
    theirs, mean, std = robustbench(arch, dataset)
    prefix = 'module.' if container == 'model' else ''
    path = tmp_path / f'debenedetti2022light-xcit-{arch[0]}-{dataset}-linf.pth.tar'
    torch.save({container: {prefix + key: value for key, value in theirs.state_dict().items()}, 'epoch': 1}, path)
    cfg = Config.fromfile(ROOT / 'configs' / f'debenedetti2022light_xcit_{arch}_{dataset}_linf.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        ours = MODELS.build(dict(cfg.model, data_preprocessor=None))
    ours = ours.to_empty(device='cpu').eval()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        preprocess = MODELS.build(dict(cfg.model.data_preprocessor, type='ClsDataPreprocessor'))
    load_checkpoint(ours, str(path), strict=True)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)  # BGR, as files are read
    given = preprocess(dict(inputs=pixels))['inputs']
    unit = pixels.flip(1).float() / 255
    with torch.no_grad():
        expected = theirs((unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        assert deviation(ours(given, mode='tensor'), expected) < 1e-5


@pytest.mark.parametrize('name, classes', [('cifar10', 10), ('cifar100', 100)])
def test_cifar_reaches_the_model_as_in_robustbench(name, classes, tmp_path, monkeypatch):
    """Red stays red: MMPretrain keeps CIFAR in RGB, image files are read in BGR, and the model takes RGB."""
    cfg = Config.fromfile(ROOT / 'configs' / f'debenedetti2022light_xcit_s12_{name}_linf.py')
    dataset = dict(cfg.test_dataloader.dataset, data_root=str(tmp_path))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        kind = DATASETS.get(dataset['type'])
        preprocess = MODELS.build(dict(cfg.model.data_preprocessor, type='ClsDataPreprocessor'))
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    red = np.zeros((2, 3, 32, 32), np.uint8)
    red[:, 0] = 255
    labels = 'labels' if name == 'cifar10' else 'fine_labels'
    (folder / 'part').write_bytes(pickle.dumps({'data': red.reshape(2, -1), labels: [1, classes - 1]}))
    for part in ('train_list', 'test_list'):
        monkeypatch.setattr(kind, part, [['part', None]])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        items = DATASETS.build(dataset)
    assert len(items.metainfo['classes']) == classes == cfg.model.head.num_classes
    sample = items[1]
    assert sample['data_samples'].gt_label.item() == classes - 1
    (image,) = preprocess(dict(inputs=[sample['inputs']]))['inputs']
    monkeypatch.setattr(kind, 'test_list', [['none', None]])
    monkeypatch.setattr(kind, 'url', (tmp_path / 'none.tar.gz').as_uri())
    scope = DefaultScope.overwrite_default_scope('mmpretrain')
    with scope, pytest.raises(UsageError, match='could not be downloaded.*none.tar.gz'):
        DATASETS.build(dataset)
    _, mean, std = robustbench('s12', name)
    expected = [(1 - mean[0]) / std[0], -mean[1] / std[1], -mean[2] / std[2]]
    assert image.shape == (3, 32, 32) and image[:, 5, 5].tolist() == pytest.approx(expected, abs=1e-5)


def test_attention_maps_of_robust_models_see_their_own_normalisation(tmp_path):
    for name, mean in (('imagenet', (0, 0, 0)), ('cifar100', (129.3105, 124.1085, 112.404))):
        model, *_ = robustbench('s12', name)
        path = tmp_path / f'debenedetti2022light-xcit-s-{name}-linf.pth.tar'
        torch.save({'state_dict': model.state_dict()}, path)
        images = load_input(str(path), load_backbone(str(path)))
        assert images.mean == pytest.approx(mean, abs=1e-3)
        path.rename(tmp_path / 'mine.pth')
        images = load_input(str(tmp_path / 'mine.pth'), load_backbone(str(tmp_path / 'mine.pth')))
        assert images.mean == pytest.approx((123.675, 116.28, 103.53))
