"""The configs say what was published."""

import ast
import re
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from processes import ROOT
from torch import nn

from xcit_mm.engine.setup import build_runner
from xcit_mm.errors import UsageError

CONFIGS = ROOT / 'configs'
# Trainable parameters in millions, computed from the original modules.
MASK_RCNN = {
    't12_16': 26.18,
    't12_8': 25.87,
    's12_16': 44.39,
    's12_8': 43.17,
    's24_16': 65.80,
    's24_8': 64.58,
    'm24_16': 101.15,
    'm24_8': 98.98,
}
# The same for segmentation: Semantic FPN, UperNet with and without its auxiliary head.
SEGMENTATION = {
    't12_16': (8.90, 34.17, 33.69),
    't12_8': (8.59, 33.87, 33.38),
    's12_16': (32.22, 54.20, 53.28),
    's12_8': (31.00, 52.98, 52.05),
    's24_16': (53.64, 75.62, 74.69),
    's24_8': (52.42, 74.40, 73.47),
    'm24_16': (94.04, 112.18, 110.96),
    'm24_8': (91.86, 110.01, 108.79),
}
LONG = dict(t12='tiny_12', s12='small_12', s24='small_24', m24='medium_24')
DROP_PATH = dict(t12=0.0, s12=0.05, s24=0.1, m24=0.15)


def load(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def build_model(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda p: p.stem)
def test_every_config_opens_with_what_it_is_and_its_command(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f'configs/{path.name}' in text
    if re.fullmatch('xcit_.*_(inat|cifar|cars|flowers).*', path.stem):
        assert 'No number is published for this model' in ' '.join(text.split())
    elif path.stem.startswith('faster_rcnn') and not path.stem.endswith('digits'):
        assert 'No result is published' in text
    elif not path.stem.endswith('digits'):
        assert re.search(r'(box AP \d+\.\d+,? (and )?mask AP|mIoU|top-1) \d+\.\d+', ' '.join(text.split()))


@pytest.mark.parametrize('name', MASK_RCNN)
def test_mask_rcnn_has_the_published_parameters(name):
    cfg = load(f'mask_rcnn_xcit_{name}_3x_coco')
    with torch.device('meta'):
        model = build_model(cfg)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(count / 1e6, 2) == MASK_RCNN[name]


@pytest.mark.parametrize('name', ['s12_16', 's12_8'])
def test_faster_rcnn_is_the_mask_rcnn_without_masks(name):
    cfg, other = (load(f'{method}_rcnn_xcit_{name}_3x_coco') for method in ('faster', 'mask'))
    with torch.device('meta'):
        ours, theirs = ({n: p.shape for n, p in build_model(c).named_parameters()} for c in (cfg, other))
    assert ours == {n: shape for n, shape in theirs.items() if not n.startswith('roi_head.mask_head')}
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr', 'default_hooks', 'custom_hooks'):
        assert cfg[key] == other[key], key
    for split in ('train', 'val', 'test'):
        pipelines = [c[f'{split}_dataloader'].dataset.pipeline for c in (cfg, other)]
        load_boxes, load_masks = ([t for t in p if t.type == 'LoadAnnotations'] for p in pipelines)
        assert not load_boxes[0].get('with_mask') and load_masks[0].with_mask
        assert [t for t in pipelines[0] if t not in load_boxes] == [t for t in pipelines[1] if t not in load_masks]
    assert cfg.val_evaluator.metric == cfg.test_evaluator.metric == 'bbox'


@pytest.mark.parametrize('name', MASK_RCNN)
def test_mask_rcnn_recipe(name):
    arch, patch = name.split('_')
    cfg = load(f'mask_rcnn_xcit_{name}_3x_coco')
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.patch_size, backbone.drop_path_rate) == (arch, int(patch), DROP_PATH[arch])
    assert backbone.bn_norm_cfg.type == 'xcit_mm.SyncBN'
    assert backbone.init_cfg.checkpoint.endswith(f'/xcit/xcit_{LONG[arch]}_p{patch}_384_dist.pth')
    assert (cfg.model.neck.out_channels, cfg.model.neck.num_outs) == (256, 5)
    assert cfg.model.roi_head.bbox_roi_extractor.featmap_strides == [4, 8, 16, 32]
    assert cfg.model.data_preprocessor.pad_size_divisor == 32

    assert cfg.train_cfg.max_epochs == 36
    warmup, steps = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end, warmup.by_epoch) == ('LinearLR', 0.001, 500, False)
    assert (steps.milestones, steps.gamma) == ([27, 33], 0.1)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.betas, optimizer.weight_decay) == (
        'AdamW',
        1e-4,
        (0.9, 0.999),
        0.05,
    )
    assert cfg.auto_scale_lr.base_batch_size == 16 and cfg.train_dataloader.batch_size * 8 == 16

    flip, choice = cfg.train_pipeline[2:4]
    assert flip == dict(type='RandomFlip', prob=0.5)
    plain, cropped = choice.transforms
    short = [(s, 1333) for s in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
    assert [t.scales for t in plain] == [short]
    assert cropped[0].scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert cropped[1] == dict(
        type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True
    )
    assert cropped[2].scales == short
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (1333, 800)


@pytest.mark.parametrize(
    ('name', 'layer_decay'),
    [
        ('mask_rcnn_xcit_t12_16_3x_coco', False),
        ('mask_rcnn_xcit_t12_16_3x_coco', True),
        ('sem_fpn_xcit_t12_16_80k_ade20k', False),
        ('upernet_xcit_t12_8_160k_ade20k', False),
    ],
)
def test_layer_norms_alone_have_no_weight_decay(name, layer_decay):
    """Batch norms of the patch embedding, LPI, adapter and heads are decayed, as are temperature and LayerScale."""
    cfg = load(name)
    cfg.model.backbone.init_cfg = None
    if layer_decay:
        cfg.optim_wrapper.constructor = 'xcit_mm.LayerDecayOptimWrapperConstructor'
        cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = 0.9
    model = build_model(cfg)
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    decay = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    layer_norms = {
        f'{n}.{k}' for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) for k in ('weight', 'bias')
    }
    assert len(layer_norms) == 12 * 3 * 2
    for parameter_name, parameter in model.named_parameters():
        expected = 0.0 if parameter_name in layer_norms else cfg.optim_wrapper.optimizer.weight_decay
        assert decay[id(parameter)] == expected, parameter_name


def count(model, without=()):
    return round(sum(p.numel() for name, p in model.named_parameters() if not name.startswith(without or '-')) / 1e6, 2)


@pytest.mark.parametrize('name', SEGMENTATION)
def test_segmentation_has_the_published_parameters(name):
    with torch.device('meta'):
        sem_fpn = build_model(load(f'sem_fpn_xcit_{name}_80k_ade20k'))
        upernet = build_model(load(f'upernet_xcit_{name}_160k_ade20k'))
    assert (count(sem_fpn), count(upernet), count(upernet, 'auxiliary_head')) == SEGMENTATION[name]


@pytest.mark.parametrize('name', SEGMENTATION)
@pytest.mark.parametrize('method, iterations', [('sem_fpn', 80), ('upernet', 160)])
def test_segmentation_recipe(name, method, iterations):
    arch, patch = name.split('_')
    cfg = load(f'{method}_xcit_{name}_{iterations}k_ade20k')
    backbone = cfg.model.backbone
    drop_path = 0.2 if (arch, method) == ('m24', 'sem_fpn') else DROP_PATH[arch]
    assert (backbone.arch, backbone.patch_size, backbone.drop_path_rate) == (arch, int(patch), drop_path)
    assert backbone.init_cfg.checkpoint.endswith(f'/xcit/xcit_{LONG[arch]}_p{patch}_384_dist.pth')
    assert cfg.model.decode_head.num_classes == 150 and cfg.model.test_cfg.mode == 'whole'
    assert {backbone.bn_norm_cfg.type, cfg.model.decode_head.norm_cfg.type} == {'xcit_mm.SyncBN'}
    assert cfg.train_cfg.max_iters == iterations * 1000 and cfg.train_dataloader.batch_size * 8 == 16
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    # A test and a checkpoint every 8,000 iterations, every 16,000 for UperNet.
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == iterations * 100
    resize, crop, flip, distortion = cfg.train_dataloader.dataset.pipeline[2:6]
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert (crop.crop_size, crop.cat_max_ratio, flip.prob) == ((512, 512), 0.75, 0.5)
    assert distortion.type == 'PhotoMetricDistortion'


def test_segmentation_learning_rate_is_the_published_curve():
    """A linear decay over the whole run, multiplied by a linear warm-up of 1500 iterations from 1e-6."""
    from mmengine.registry import PARAM_SCHEDULERS

    cfg = load('sem_fpn_xcit_s12_8_80k_ade20k')
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=6e-5)
    schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in cfg.param_scheduler]
    rates = []
    for _ in range(80000):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    for k in (0, 1, 700, 1499, 1500, 1501, 40000, 79999):
        warmup = 1 - max(0, 1 - k / 1500) * (1 - 1e-6)
        assert rates[k] == pytest.approx(6e-5 * (1 - k / 80000) * warmup, rel=2e-3, abs=1e-9), k


def test_digits_config_inherits_the_published_one():
    cfg = load('mask_rcnn_xcit_n12_8_digits')
    assert cfg.model.backbone.arch == 'n12' and cfg.model.backbone.init_cfg is None
    assert cfg.model.type == 'MaskRCNN' and cfg.optim_wrapper.optimizer.weight_decay == 0.05


@pytest.mark.parametrize('model', ['mask_rcnn_xcit_m24_8_3x_coco', 'upernet_xcit_s12_8_160k_ade20k', 'xcit_s12_8_in1k'])
def test_engines_for_large_models_are_inherited_beside_a_model(model, tmp_path, monkeypatch):
    def inherit(engine, rest=''):
        bases = [f'{ROOT}/configs/{model}.py', f'{ROOT}/configs/_base_/strategies/{engine}.py']
        (tmp_path / 'cfg.py').write_text(f'_base_ = {bases}\n{rest}')
        return Config.fromfile(tmp_path / 'cfg.py')

    assert inherit('fsdp').runner_type == 'FlexibleRunner'
    cfg = inherit('deepspeed', "optim_wrapper = dict(type='DeepSpeedOptimWrapper')")
    assert cfg.runner_type == 'FlexibleRunner' and cfg.optim_wrapper.optimizer.type == 'AdamW'
    monkeypatch.setitem(sys.modules, 'deepspeed', None)
    with pytest.raises(UsageError, match="pip install 'deepspeed<0.17'"):
        build_runner(cfg)
    with pytest.raises(UsageError, match="optim_wrapper.type='DeepSpeedOptimWrapper'"):
        build_runner(inherit('deepspeed'))
