"""Classification: the published recipe, distillation, and the published ways of testing."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import build, official_names, randomise
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmpretrain.structures import DataSample
from PIL import Image
from processes import ROOT, run

from xcit_mm.checkpoint import CheckpointError
from xcit_mm.datasets.digits import FOLDERS
from xcit_mm.engine.classification import use_protocol
from xcit_mm.errors import UsageError

WIDTHS = dict(n12=128, t12=192, t24=192, s12=384, s24=384, m24=512, l24=768)
LONG = dict(
    n12='nano_12', t12='tiny_12', t24='tiny_24', s12='small_12', s24='small_24', m24='medium_24', l24='large_24'
)
DROP_PATH = dict(n12=0.0, t12=0.0, t24=0.05, s12=0.05, s24=0.1, m24=0.15, l24=0.25)
MODELS_42 = [(arch, patch, variant) for arch in WIDTHS for patch in (16, 8) for variant in ('', '_dist', '_dist_384')]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def load(arch='n12', patch=16, variant=''):
    return Config.fromfile(ROOT / 'configs' / f'xcit_{arch}_{patch}{variant}_in1k.py')


# The recipe.


@pytest.mark.parametrize('arch, patch, variant', MODELS_42)
def test_recipe(arch, patch, variant):
    cfg = load(arch, patch, variant)
    size = 384 if variant.endswith('384') else 224
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.patch_size, backbone.drop_path_rate) == (arch, patch, DROP_PATH[arch])
    assert backbone.bn_norm_cfg.type == 'xcit_mm.SyncBN'
    assert cfg.model.head.in_channels == WIDTHS[arch]
    assert (cfg.model.head.loss.type, cfg.model.head.loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    mixes = [(a.type.rpartition('.')[2], a.alpha) for a in cfg.model.train_cfg.augments]
    assert mixes == [('Mixup', 0.8), ('CutMix', 1.0)]

    crop, flip, augment, erase = cfg.train_dataloader.dataset.pipeline[1:5]
    assert (crop.scale, crop.interpolation, flip.prob, erase.erase_prob) == (size, 'bicubic', 0.5, 0.25)
    assert (augment.num_policies, augment.magnitude_level, augment.magnitude_std) == (2, 9, 0.5)
    assert augment.policies == 'timm_increasing'
    sampler = cfg.train_dataloader.sampler
    assert (sampler.type, sampler.num_repeats) == ('RepeatAugSampler', 3)
    average = [hook for hook in cfg.custom_hooks if hook.type == 'xcit_mm.EMAHook']
    assert [hook.momentum for hook in average] == [pytest.approx(1 - 0.99996)]

    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.betas) == ('AdamW', (0.9, 0.999))
    if size == 224:
        assert cfg.auto_scale_lr.base_batch_size == 1024 == 8 * cfg.train_dataloader.batch_size
        assert (optimizer.lr, optimizer.weight_decay) == (pytest.approx(5e-4 * 1024 / 512), 0.05)
        (schedule,) = cfg.param_scheduler  # its values are in test_recipe.py
        assert (schedule.warmup_lr, schedule.warmup_epochs, schedule.eta_min) == (1e-6, 5, 1e-5)
        assert schedule.T_max == schedule.end == cfg.train_cfg.max_epochs == 400
    else:
        assert cfg.train_cfg.max_epochs == 30
        assert cfg.load_from.endswith(f'/xcit_{LONG[arch]}_p{patch}_224_dist.pth')
    assert ('teacher' in cfg.model) == ('dist' in variant)
    if 'dist' in variant:
        assert (cfg.model.teacher.model_name, cfg.model.distillation, cfg.model.alpha) == (
            'regnety_160.deit_in1k',
            'hard',
            0.5,
        )


def test_norms_biases_layer_scale_and_class_token_have_no_decay():
    cfg = load()
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    decay = {id(p): group['weight_decay'] for group in wrapper.param_groups for p in group['params']}
    without = {name for name, p in model.named_parameters() if decay[id(p)] == 0}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 or name.endswith('cls_token')
        assert (name in without) == exempt, name
        assert exempt or decay[id(parameter)] == 0.05


def test_the_head_starts_like_the_other_linear_layers():
    torch.manual_seed(0)
    model = MODELS.build(load().model)
    model.init_weights()
    assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.02) and model.head.fc.bias.abs().max() == 0


def test_an_original_file_gives_the_classifier_its_head(tmp_path):
    reference = randomise(MODELS.build(load().model))
    state = {'head.weight': reference.head.fc.weight, 'head.bias': reference.head.fc.bias}
    torch.save({'model': {**official_names(reference.backbone.state_dict()), **state}}, tmp_path / 'xcit.pth')
    model = MODELS.build(load().model).eval()
    load_checkpoint(model, str(tmp_path / 'xcit.pth'), map_location='cpu')
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(image), reference(image))


# Distillation.


def distilled(teacher='resnet10t.c3_in1k', num_classes=10, **kwargs):
    """A small student on ten classes, and a teacher of timm with random weights."""
    cfg = Config.fromfile(ROOT / 'configs' / 'xcit_n12_16_dist_in1k.py').model
    cfg.data_preprocessor.num_classes = cfg.head.num_classes = 10
    cfg.backbone.arch, cfg.head.in_channels = dict(embed_dims=32, depth=2, num_heads=2), 32
    cfg.teacher.update(model_name=teacher, pretrained=False, num_classes=num_classes)
    cfg.update(kwargs)
    torch.manual_seed(0)
    return MODELS.build(cfg)


def batch(n=4):
    images = torch.randint(0, 256, (n, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    return images, [DataSample().set_gt_label(i % 10) for i in range(n)]


@pytest.mark.parametrize('distillation', ['hard', 'soft'])
def test_both_losses_act_on_the_same_logits(distillation):
    model = distilled(distillation=distillation, alpha=0.3, tau=2.0).train()
    images, samples = batch()
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    mixed, targets = data['inputs'], torch.stack([s.gt_score for s in data['data_samples']])
    losses = model.loss(**data)
    student, teacher = model(mixed), model.teacher()(mixed).detach()
    smooth = targets * 0.9 + 0.1 / 10
    truth = -(smooth * F.log_softmax(student, 1)).sum(1).mean()
    if distillation == 'hard':
        imitation = -F.log_softmax(student, 1)[range(4), teacher.argmax(1)].mean()
    else:
        p = F.softmax(teacher / 2, 1)
        # tau^2 = 4; divided by the 4 x 10 logits, not by the 4 images
        imitation = 4 * (p * (p.log() - F.log_softmax(student / 2, 1))).sum() / 40
    assert losses['loss'].item() == pytest.approx(0.7 * truth.item(), rel=1e-5)
    assert losses['loss_distill'].item() == pytest.approx(0.3 * imitation.item(), rel=1e-5)


def test_the_teacher_is_frozen_in_eval_mode_and_in_no_checkpoint():
    model = distilled().train()
    statistics = {k: v.clone() for k, v in model.teacher().state_dict().items()}
    names = set(model.state_dict())
    images, samples = batch()
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    sum(model.loss(**data).values()).backward()
    assert not model.teacher().training and not any(p.requires_grad for p in model.teacher().parameters())
    assert all(torch.equal(v, statistics[k]) for k, v in model.teacher().state_dict().items())
    assert set(model.state_dict()) == names
    assert all(name.startswith(('backbone.', 'head.')) for name in names)
    teachers = {id(p) for p in model.teacher().parameters()}
    assert not any(id(p) in teachers for p in model.parameters())
    # Its moving average is a copy, and shares the teacher instead of copying it.
    assert copy.deepcopy(model).teacher() is model.teacher()
    assert next(model.double().teacher().parameters()).dtype == torch.float64  # it moves along


def test_the_teacher_sees_the_same_view_in_its_own_normalisation():
    model = distilled(teacher='vit_tiny_patch16_224.augreg_in21k')  # mean and deviation 0.5
    model.teacher_cfg.update(img_size=64)
    assert model.teacher().model.default_cfg['mean'] == (0.5, 0.5, 0.5)
    images, samples = batch()
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=False)
    expected = model.teacher()((images.flip(1) / 255 - 0.5) / 0.5)  # images come as BGR
    assert torch.allclose(model.teacher_logits(data['inputs']), expected, atol=1e-5)


def test_only_training_needs_the_teacher():
    model = distilled(teacher='no_such_model')
    model.eval()(batch()[0])
    with pytest.raises(CheckpointError, match=r'no_such_model could not be loaded.*model\.teacher_checkpoint=FILE'):
        model.init_weights()


def test_the_teachers_weights_can_come_from_a_file(tmp_path):
    from safetensors.torch import save_file

    teacher = randomise(distilled().teacher())
    save_file({k: v.contiguous() for k, v in teacher.model.state_dict().items()}, tmp_path / 'teacher.safetensors')
    model = distilled(teacher_checkpoint=str(tmp_path / 'teacher.safetensors'))
    model.init_weights()
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in model.teacher().state_dict().items())
    torch.save({'conv1.weight': torch.zeros(1)}, tmp_path / 'half.pth')
    with pytest.raises(CheckpointError, match='could not be loaded'):
        distilled(teacher_checkpoint=str(tmp_path / 'half.pth')).init_weights()


def test_a_teacher_of_other_classes_is_refused():
    images, samples = batch()
    model = distilled(num_classes=7)
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    with pytest.raises(CheckpointError, match='7 classes and the student 10'):
        model.loss(**data)


@pytest.mark.parametrize('wrong', [dict(distillation='firm'), dict(alpha=1.5), dict(tau=0.0)])
def test_wrong_distillation_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f'got.*{next(iter(wrong.values()))}'):
        distilled(**wrong)


# Testing.


def crops(cfg, path):
    """The tested pixels of an image file, (3, h, w) BGR."""
    dataset = dict(
        type='CustomDataset', data_root=str(path.parent.parent), pipeline=cfg.test_dataloader.dataset.pipeline
    )
    return DATASETS.build(dataset)[0]['inputs'].numpy()


@pytest.mark.parametrize('variant', ['', '_dist_384'])
@pytest.mark.parametrize('protocol', [None, 'full-crop', 'mmpretrain', 'crop-0.875'])
def test_protocols(variant, protocol, tmp_path):
    """A picture of 500x400 gives the pixels that Pillow gives."""
    (tmp_path / 'class').mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    image = Image.fromarray(noise).resize((500, 400))
    image.save(tmp_path / 'class' / 'image.png')
    cfg = load(variant=variant)
    if protocol:
        use_protocol(cfg, protocol)
    size = 384 if variant else 224
    if protocol == 'mmpretrain' and size == 384:
        expected = image.resize((384, 384), Image.BICUBIC)
    else:
        # int(256 / 224 * 384) = 438
        short = {224: 256, 384: 438}[size] if protocol in ('mmpretrain', 'crop-0.875') else size
        expected = image.resize((short * 500 // 400, short), Image.BICUBIC)
        left, top = (round((extent - size) / 2) for extent in expected.size)
        expected = expected.crop((left, top, left + size, top + size))
    assert np.array_equal(
        crops(cfg, tmp_path / 'class' / 'image.png'), np.asarray(expected)[..., ::-1].transpose(2, 0, 1)
    )


def test_a_protocol_for_a_detector_is_refused():
    cfg = Config.fromfile(ROOT / 'configs' / 'mask_rcnn_xcit_s12_8_3x_coco.py')
    with pytest.raises(UsageError, match='--protocol is for classifiers'):
        use_protocol(cfg, 'mmpretrain')


def real_accuracy(labels, tmp_path, names=('b.jpg', 'a.jpg', 'c.jpg'), predictions=(1, 0, 2)):
    (tmp_path / 'real.json').write_text(json.dumps(labels))
    metric = METRICS.build(dict(type='xcit_mm.ReaLAccuracy', label_file=str(tmp_path / 'real.json')))
    scores = torch.eye(4)
    samples = [dict(img_path=f'/x/{n}', pred_score=scores[p]) for n, p in zip(names, predictions)]
    metric.process(None, samples)
    return metric.compute_metrics(metric.results)['top1']


@pytest.mark.parametrize(
    'labels, expected',
    [
        ([[0], [1], [3]], 100 * 2 / 3),  # in the order of the names: a, b, c
        ([[0, 3], [2, 1], []], 100),  # several answers; an image without one does not count
        ({'a.jpg': [1], 'b.jpg': [1], 'c.jpg': [2], 'd.jpg': [0]}, 100 * 2 / 3),
    ],
)
def test_reassessed_labels(labels, expected, tmp_path):
    assert real_accuracy(labels, tmp_path) == pytest.approx(expected)


@pytest.mark.parametrize(
    'labels, words',
    [
        ([[0], [1]], 'for 2 images and the data set has 3'),
        ({'a.jpg': [1]}, 'no entry for 2 images'),
        ([0, 1, 2], 'list of class indices'),
        ([[], [], []], 'no label for any image'),
    ],
)
def test_label_files_that_do_not_fit_are_refused(labels, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        real_accuracy(labels, tmp_path)


# The tools.


@pytest.fixture
def digits(small_digits):
    return small_digits / 'imagenet'


def options(**more):
    loaders = {
        f'{split}_dataloader.{key}': value
        for split in ('train', 'val', 'test')
        for key, value in (('num_workers', 0), ('persistent_workers', False))
    }
    return ['--cfg-options', *(f'{k}={v}' for k, v in {**loaders, **more}.items())]


def test_a_classifier_trains_and_tests_in_every_way(digits, tmp_path):
    config = ROOT / 'configs' / 'xcit_n12_8_digits.py'
    limits = options(**{'train_dataloader.dataset.indices': 64, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    limits += ['default_hooks.checkpoint.interval=1', 'model.backbone.patch_size=16']
    run('train.py', config, '--data-root', digits, '--work-dir', tmp_path / 'run', *limits, cwd=tmp_path)
    checkpoint = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)
    assert 'ema_state_dict' in checkpoint and 'head.fc.weight' in checkpoint['state_dict']

    # The same pictures in folders that are named by their label, and labels that call every answer right.
    numbered = tmp_path / 'numbered'
    (numbered / 'val').mkdir(parents=True)
    for label, name in enumerate(FOLDERS):
        (numbered / 'val' / str(label)).symlink_to(digits / 'val' / name)
    pictures = [p.name for p in (digits / 'val').glob('*/*.png')]
    (tmp_path / 'real.json').write_text(json.dumps({name: list(range(10)) for name in pictures}))
    test = [config, tmp_path / 'run' / 'epoch_1.pth', '--work-dir', tmp_path / 'test']
    test += ['--real-labels', tmp_path / 'real.json', *limits]
    plain = run('test.py', *test, '--data-root', digits, cwd=tmp_path)
    assert 'real/top1: 100.0' in plain
    more = ['--protocol', 'mmpretrain', '--show-dir', 'pictures']
    other = run('test.py', *test, '--data-root', numbered, *more, cwd=tmp_path)
    assert 'tested as ImageNet-V2' not in other and 'real/top1: 100.0' in other

    def accuracy(output):
        return output.split('accuracy/top1:')[-1].split()[0]

    assert accuracy(other) == accuracy(plain)  # square pictures of the model's size: both protocols see all of them


@pytest.mark.parametrize(
    ('config', 'launcher'),
    [
        ('xcit_n12_16_dist_in1k', None),
        pytest.param('xcit_n12_16_dist_in1k', 2, marks=pytest.mark.slow),
        ('xcit_n12_16_dist_384_in1k', None),
    ],
)
def test_a_distilled_classifier_trains_with_its_whole_recipe(config, launcher, digits, tmp_path):
    """The published config; another teacher, since its weights are not at hand, and other classes."""
    start = None
    if '384' in config:  # goes on from the 224-pixel model, here in the layout of its published file
        start = str(tmp_path / '224.pth')
        weights = official_names(build(arch='n12', patch_size=16).state_dict())
        torch.save({'model': {**weights, 'head.weight': torch.zeros(10, 128), 'head.bias': torch.zeros(10)}}, start)
    (tmp_path / 'own.py').write_text(f"""
_base_ = {str(ROOT / 'configs' / f'{config}.py')!r}
load_from = {start!r}
model = dict(
    data_preprocessor=dict(num_classes=10),
    head=dict(num_classes=10),
    teacher=dict(model_name='resnet10t.c3_in1k', pretrained=False, num_classes=10))
loader = dict(num_workers=0, persistent_workers=False, batch_size=4)
dataset = dict(data_root={str(digits)!r}, metainfo=dict(classes={FOLDERS!r}), indices=16)
train_dataloader = dict(dataset=dataset, **loader)
val_dataloader = dict(dataset=dataset, **loader)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
""")
    output = run('train.py', 'own.py', cwd=tmp_path, launcher=launcher)
    assert not start or f'Load checkpoint from {start}' in output
    assert 'loss_distill' in output and 'accuracy/top1' in output and 'nan' not in output
    state = torch.load(tmp_path / 'work_dirs' / 'own' / 'epoch_1.pth', weights_only=False)
    names = [*state['state_dict'], *state['ema_state_dict']]
    assert not any('teacher' in name or 'stem' in name or 'layer1' in name for name in names)
    weights = [n for n in state['state_dict'] if not n.endswith(('running_mean', 'running_var', 'num_batches_tracked'))]
    assert len(state['optimizer']['state']) == len(weights)  # none of the teacher's
