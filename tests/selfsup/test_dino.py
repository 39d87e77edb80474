"""DINO: the loss and the steps of training are those of the paper's equations; what it writes and reads."""

import argparse
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from backbones import build, official_names, randomise
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from mmpretrain.structures import DataSample
from processes import ROOT
from torch import nn

ARCH = dict(embed_dims=32, depth=2, num_heads=4)
OUTPUTS, IMAGES, STEPS, EPOCHS = 24, 4, 2, 3
LR, DECAY = 1e-2, 0.1
EPS = 1e-3  # Adam's own, 1e-8, would make rounding of the smallest gradients as large as a step
BACKBONE = dict(type='xcit_mm.XCiT', arch=ARCH, patch_size=8, drop_path_rate=0.0)
MODEL = dict(
    type='xcit_mm.DINO',
    backbone=BACKBONE,
    neck=dict(
        type='xcit_mm.DINONeck',
        in_channels=32,
        out_channels=OUTPUTS,
        hidden_channels=16,
        bottleneck_channels=8,
        norm_last_layer=False,
    ),
    head=dict(type='xcit_mm.DINOHead', out_channels=OUTPUTS),
)
HOOK = dict(type='xcit_mm.DINOHook', momentum=0.9, warmup_teacher_temp_epochs=2, clip_grad=0.02)


def build_dino(seed=0):
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(copy.deepcopy(MODEL))


class Views(torch.utils.data.Dataset):
    """Two large and three small views of random images."""

    def __len__(self):
        return STEPS * IMAGES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        inputs = [torch.randn(3, side, side, generator=generator) for side in (32, 32, 16, 16, 16)]
        return dict(inputs=inputs, data_samples=DataSample())


def batches():
    views = Views()
    for first in range(0, len(views), IMAGES):
        items = [views[first + i]['inputs'] for i in range(IMAGES)]
        yield [torch.stack(view) for view in zip(*items)]


class Reference:
    """DINO written down from the paper: equations 1 to 4 and appendix C, without a library but for the backbone."""

    def __init__(self, model):
        self.networks = {}
        for name, backbone, neck in (
            ('student', model.student['backbone'], model.student['neck']),
            ('teacher', model.backbone, model.neck),
        ):
            head = {key: nn.Parameter(value.clone()) for key, value in neck.state_dict().items()}
            self.networks[name] = (copy.deepcopy(backbone).train().requires_grad_(True), head)
        self.center = torch.zeros(OUTPUTS)
        decayed, others = [], []
        for key, parameter in self.parameters('student').items():
            plain = key.endswith('.bias') or parameter.dim() == 1
            (others if plain else decayed).append(parameter)
        groups = [dict(params=decayed), dict(params=others, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, eps=EPS, weight_decay=DECAY)
        self.iteration = 0

    def parameters(self, name):
        backbone, head = self.networks[name]
        named = {f'backbone.{key}': value for key, value in backbone.named_parameters()}
        return {**named, **{f'neck.{key}': value for key, value in head.items()}}

    def logits(self, name, images):
        backbone, head = self.networks[name]
        x = backbone(images)[0]
        for i in (0, 2, 4):
            x = x @ head[f'mlp.{i}.weight'].T + head[f'mlp.{i}.bias']
            x = F.gelu(x) if i < 4 else x / x.norm(dim=1, keepdim=True)
        direction = head['last_layer.weight_v'] / head['last_layer.weight_v'].norm(dim=1, keepdim=True)
        return x @ (head['last_layer.weight_g'] * direction).T

    def step(self, views, epoch):
        student_temp, teacher_temp = 0.1, [0.04, 0.07, 0.07][epoch]
        with torch.no_grad():
            teacher = self.logits('teacher', torch.cat(views[:2])).chunk(2)
        # Batch norm sees all views of one size together.
        student = [*self.logits('student', torch.cat(views[:2])).chunk(2)]
        student += self.logits('student', torch.cat(views[2:])).chunk(3)
        terms = []
        for i, t in enumerate(teacher):
            p_t = torch.exp((t - self.center) / teacher_temp)
            p_t = p_t / p_t.sum(1, keepdim=True)
            for j, s in enumerate(student):
                if j != i:
                    log_p_s = s / student_temp - torch.logsumexp(s / student_temp, 1, keepdim=True)
                    terms.append(-(p_t * log_p_s).sum(1).mean())
        loss = sum(terms) / len(terms)
        self.center = 0.9 * self.center + 0.1 * torch.cat(teacher).mean(0)

        self.optimizer.zero_grad()
        loss.backward()
        for key, parameter in self.parameters('student').items():
            norm = parameter.grad.norm()
            if norm > HOOK['clip_grad']:
                parameter.grad *= HOOK['clip_grad'] / norm
            if epoch == 0 and 'last_layer' in key:
                parameter.grad = None
        self.optimizer.step()

        total = STEPS * EPOCHS
        momentum = 1 - (1 - HOOK['momentum']) * (math.cos(math.pi * self.iteration / total) + 1) / 2
        ours, theirs = self.parameters('teacher'), self.parameters('student')
        with torch.no_grad():
            for key in ours:
                ours[key].copy_(momentum * ours[key] + (1 - momentum) * theirs[key])
        self.iteration += 1
        return loss.item()


def train(model, tmp_path, **kwargs):
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=IMAGES,
            num_workers=0,
            dataset=Views(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=EPOCHS),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=LR, eps=EPS, weight_decay=DECAY),
            paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
        ),
        custom_hooks=[HOOK],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        default_scope='mmpretrain',
        experiment_name=str(tmp_path).replace('/', '_'),
        log_level='ERROR',
        **kwargs,
    )
    runner.train()
    return runner.message_hub.log_scalars['train/loss'].data[0].tolist()


def test_losses_and_weights_are_those_of_the_papers_equations(tmp_path, one_thread):
    model = build_dino()
    reference = Reference(model)
    start = copy.deepcopy(model.state_dict())
    losses = train(model, tmp_path)
    expected = [reference.step(views, epoch) for epoch in range(EPOCHS) for views in batches()]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert model.head.center.squeeze() == pytest.approx(reference.center, rel=1e-4, abs=1e-6)
    for name, of_model in (('student', model.student), ('teacher', model)):
        wanted = reference.parameters(name)
        found = {key: value for key, value in of_model.named_parameters() if key in wanted}
        assert len(found) == len(wanted) > 60
        moved = 0
        for key, value in found.items():
            deviation = (value - wanted[key]).abs().max()
            assert deviation <= 1e-5 + 1e-4 * wanted[key].abs().max(), (name, key, deviation)
            moved += not torch.equal(value, start[key])
        assert moved > 60


def test_views_of_one_size_go_through_the_student_together():
    model = build_dino().train()
    seen = []
    for name, backbone in (('student', model.student['backbone']), ('teacher', model.backbone)):
        backbone.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, *args[0].shape)))
    model.loss(next(batches()))
    assert seen == [('teacher', 8, 3, 32, 32), ('student', 8, 3, 32, 32), ('student', 12, 3, 16, 16)]


def test_only_the_student_learns_and_has_stochastic_depth():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(MODEL, backbone=dict(BACKBONE, drop_path_rate=0.3)))
    assert {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad} == {'student'}
    assert (model.student['backbone'].blocks[0].drop_path, model.backbone.blocks[0].drop_path) == (0.3, 0.0)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, model.student['backbone'].state_dict()[key])


def test_batch_norm_in_the_head_has_the_published_names():
    neck = MODELS.build(dict(MODEL['neck'], batch_norm=True))
    assert [type(layer).__name__ for layer in neck.mlp] == ['Linear', 'SyncBN', 'GELU'] * 2 + ['Linear']
    assert neck(torch.randn(4, 32)).shape == (4, OUTPUTS)


def test_fewer_than_two_large_views_are_refused():
    with pytest.raises(ValueError, match='num_global_crops must be at least 2, got 1'):
        MODELS.build(dict(MODEL, num_global_crops=1))


@pytest.mark.parametrize('name', ['s12_16', 's12_8', 'm24_16', 'm24_8'])
def test_the_published_recipe(name):
    arch, patch = name.split('_')
    cfg = Config.fromfile(ROOT / f'configs/dino_xcit_{name}_300e_in1k.py')
    assert (cfg.model.backbone.arch, cfg.model.backbone.patch_size) == (arch, int(patch))
    views = cfg.train_pipeline[1]
    assert sum(views.num_views[:2]) == 2 and views.num_views[2] == 10
    crops = [(view[0].scale, view[0].crop_ratio_range) for view in views.transforms]
    assert crops == [(224, (0.25, 1.0)), (224, (0.25, 1.0)), (96, (0.05, 0.25))]
    assert cfg.model.neck.out_channels == cfg.model.head.out_channels == 65536
    assert cfg.auto_scale_lr.base_batch_size == 1024 and cfg.optim_wrapper.optimizer.lr == 5e-4 * 1024 / 256
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmpretrain'):
        assert MODELS.build(cfg.model).neck.mlp[0].in_features == {'s12': 384, 'm24': 512}[arch]


def test_schedules_are_the_published_curves():
    cfg = Config.fromfile(ROOT / 'configs/dino_xcit_s12_16_300e_in1k.py')
    epoch_length, epochs, warmup = 4, 300, 40
    parameters = [dict(params=[nn.Parameter(torch.zeros(1))], weight_decay=decay) for decay in (0.04, 0.0)]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        schedulers = [
            PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer, epoch_length=epoch_length)) for s in cfg.param_scheduler
        ]
    hook = HOOKS.build(next(h for h in cfg.custom_hooks if h['type'] == 'xcit_mm.DINOHook'))
    total = epochs * epoch_length
    for t in range(total):
        group, plain = optimizer.param_groups
        cosine = (1 + math.cos(math.pi * t / total)) / 2
        if t < warmup:
            rate = 2e-3 * t / (warmup - 1)
        else:
            rate = 1e-5 + (2e-3 - 1e-5) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2
        assert group['lr'] == pytest.approx(rate, rel=1e-3, abs=1e-8), t
        assert group['weight_decay'] == pytest.approx(0.4 + (0.04 - 0.4) * cosine, rel=1e-6)
        assert plain['weight_decay'] == 0
        assert hook.momentum_at(t, total) == pytest.approx(1 + (0.996 - 1) * cosine)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert [hook.teacher_temp_at(epoch) for epoch in (0, 29, 30, 299)] == pytest.approx([0.04, 0.07, 0.07, 0.07])
    assert hook.teacher_temp_at(10) == pytest.approx(0.04 + 0.03 * 10 / 29)


def published_run(teacher, student, path):
    """A full run as the original code writes it."""
    torch.save(
        dict(
            teacher={f'backbone.{k}': v for k, v in official_names(teacher.state_dict()).items()},
            student={f'module.backbone.{k}': v for k, v in official_names(student.state_dict()).items()},
            optimizer=dict(state={}, param_groups=[]),
            epoch=300,
            args=argparse.Namespace(arch='xcit_small_12_p16', lr=5e-4),
            dino_loss=dict(center=torch.zeros(1, OUTPUTS)),
        ),
        path,
    )
    return str(path)


def test_a_published_run_starts_teacher_and_student_from_its_teacher(tmp_path):
    teacher, student = (randomise(build(arch=ARCH, patch_size=8), seed) for seed in (1, 2))
    path = published_run(teacher, student, tmp_path / 'full.pth')
    model = build_dino()
    load_checkpoint(model, path)
    for key, value in teacher.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value)
        assert torch.equal(model.student['backbone'].state_dict()[key], value)


@pytest.mark.parametrize('out_type', ['pyramid', 'cls_token'])
def test_what_dino_writes_starts_other_models_from_the_teacher(tmp_path, out_type):
    model = randomise(build_dino())
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'epoch_1.pth')
    backbone = build(
        arch=ARCH,
        patch_size=8,
        out_type=out_type,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'epoch_1.pth')),
    )
    backbone.init_weights()
    ours, theirs = backbone.state_dict(), model.backbone.state_dict()
    common = [key for key in ours if not key.startswith('pyramid.')]
    assert len(common) > 60
    assert all(torch.equal(ours[key], theirs[key]) for key in common)
    student = model.student['backbone'].state_dict()
    assert not all(torch.equal(ours[key], student[key]) for key in common)


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_a_published_run_starts_detectors_and_segmentors(tmp_path, kind):
    teacher, student = (randomise(build(arch=ARCH, patch_size=8), seed) for seed in (1, 2))
    path = published_run(teacher, student, tmp_path / 'full.pth')
    name = dict(detector='mask_rcnn_xcit_s12_8_3x_coco', segmentor='sem_fpn_xcit_s12_8_80k_ade20k')[kind]
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    cfg.model.backbone.update(arch=ARCH, init_cfg=dict(type='Pretrained', checkpoint=path))
    cfg.model.neck.in_channels = [32] * 4
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build(cfg.model.backbone)
        backbone.init_weights()
    assert torch.equal(backbone.blocks[1].attn.qkv.weight, teacher.blocks[1].attn.qkv.weight)
