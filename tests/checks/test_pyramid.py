"""Necks and heads against the maps of the backbone: what nothing reads is named, what cannot be read is refused."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from backbones import build
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm as replace_sync_bn
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from processes import ROOT

from xcit_mm.checks.pyramid import check_pyramid
from xcit_mm.errors import UsageError

CHANNELS = 32


def config(scope, launcher='none', strides=None, **parts):
    arch = dict(embed_dims=CHANNELS, depth=4, num_heads=4)
    backbone = dict(type='xcit_mm.XCiT', arch=arch, out_type='pyramid')
    if strides:
        backbone['out_strides'] = strides
    return Config(dict(default_scope=scope, launcher=launcher, model=dict(type='X', backbone=backbone, **parts)))


def fpn(count, **options):
    return dict(type='FPN', in_channels=[CHANNELS] * count, out_channels=8, num_outs=5, **options)


def head(index, **options):
    return dict(type='FCNHead', in_channels=CHANNELS, in_index=index, channels=8, num_classes=3, **options)


ALL_READ = [
    config('mmdet', neck=fpn(4)),
    config('mmdet', neck=fpn(3, start_level=0), strides=(8, 16, 32)),
    config('mmdet', neck=[fpn(4), dict(type='BFP', in_channels=8, num_levels=5)]),
    config('mmdet', bbox_head=dict(type='SomeHead')),
    config('mmdet', neck=dict(type='SomebodysNeck', in_channels=[1, 2])),
    config('mmdet', neck=dict(type='DilatedEncoder', in_channels=CHANNELS), strides=(32,)),
    config('mmseg', decode_head=head(0), auxiliary_head=[head(1), head(-1)], strides=(8, 16, 32)),
    config('mmseg', decode_head=head((0, 1, 2, 3), input_transform='resize_concat') | dict(in_channels=[CHANNELS] * 4)),
    config('mmseg', neck=fpn(4), decode_head=head(0)),
]
PARTLY_READ = {
    'start level': (config('mmdet', neck=fpn(4, start_level=1)), '4', '(8, 16, 32)'),
    'end level': (config('mmdet', neck=fpn(4, end_level=1)), '16, 32', '(4, 8)'),
    'start by default': (config('mmdet', neck=dict(fpn(4), type='NASFCOS_FPN')), '4', '(8, 16, 32)'),
    'the last alone': (
        config('mmdet', neck=dict(type='DilatedEncoder', in_channels=CHANNELS)), '4, 8, 16', '(32,)'
    ),
    'heads': (config('mmseg', decode_head=head(3), auxiliary_head=head(2)), '4, 8', '(16, 32)'),
    'the adapter as a neck': (
        Config(dict(default_scope='mmdet', model=dict(
            backbone=dict(type='VisionTransformer'),
            neck=[dict(type='xcit_mm.MultiScaleAdapter', in_channels=CHANNELS), fpn(4, start_level=2)],
        ))), '4, 8', '(16, 32)',
    ),
}  # fmt: skip


@pytest.mark.parametrize('cfg', ALL_READ, ids=range(len(ALL_READ)))
def test_pyramids_that_are_read_whole_pass_without_a_word(cfg, capsys):
    before = cfg.to_dict()
    check_pyramid(cfg)
    assert cfg.to_dict() == before and not capsys.readouterr().out


@pytest.mark.parametrize('name', PARTLY_READ)
@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
def test_maps_that_nothing_reads_are_named(name, launcher, capsys):
    cfg, unused, kept = PARTLY_READ[name]
    cfg = Config(dict(cfg.to_dict(), launcher=launcher))
    check_pyramid(cfg, training=False)
    assert not capsys.readouterr().out and 'find_unused_parameters' not in cfg
    check_pyramid(cfg)
    said = capsys.readouterr().out
    assert f'of stride {unused}. Set model.' in said and f'.out_strides={kept}' in said
    assert cfg.get('find_unused_parameters', False) == (launcher != 'none') == ('find_unused' in said)


def test_a_wrapper_of_the_config_looks_for_unused_layers_too():
    cfg = config('mmdet', 'pytorch', neck=fpn(4, start_level=1))
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel')
    check_pyramid(cfg)
    assert cfg.model_wrapper_cfg.find_unused_parameters
    cfg.model_wrapper_cfg = dict(type='MMFullyShardedDataParallel')
    check_pyramid(cfg)
    assert cfg.model_wrapper_cfg == dict(type='MMFullyShardedDataParallel')


@pytest.mark.parametrize(
    'cfg, words',
    [
        (config('mmdet', neck=fpn(3)), ['FPN', 'is for 3', '4, 8, 16, 32', 'model.backbone.out_strides=(8, 16, 32)']),
        (config('mmdet', neck=fpn(4), strides=(8, 16)), ['is for 4', 'makes 2', 'give in_channels 2 numbers']),
        (
            config('mmdet', neck=dict(fpn(4), in_channels=[256, 512, 1024, 2048])),
            ['256', f'set it to {[CHANNELS] * 4}'],
        ),
        (
            config('mmseg', decode_head=head(3), strides=(8, 16, 32)),
            ['decode_head.in_index is 3', '3 maps', '8, 16, 32'],
        ),
        (
            config('mmseg', decode_head=[head(0), dict(head(1), in_channels=64)]),
            ['decode_head.1.in_channels is 64', '32'],
        ),
    ],
)
def test_maps_that_do_not_fit_are_refused_before_anything_is_built(cfg, words):
    with pytest.raises(UsageError) as error:
        check_pyramid(cfg, training=False)
    assert all(word in str(error.value) for word in words), error.value


def test_shipped_configs_read_all_they_make(capsys):
    paths = [path for path in (ROOT / 'examples/downstream/configs').glob('*.py') if 'pure' not in path.name]
    paths += [ROOT / f'configs/{name}.py' for name in ('mask_rcnn_xcit_n12_8_digits', 'sem_fpn_xcit_t12_8_80k_ade20k')]
    paths += [ROOT / 'configs/upernet_xcit_t12_16_160k_ade20k.py']
    for path in paths:
        check_pyramid(Config.fromfile(path))
    assert not capsys.readouterr().out


NECKS = {
    'CSPNeXtPAFPN': dict(type='mmdet.CSPNeXtPAFPN', out_channels=16, num_csp_blocks=1),
    'YOLOXPAFPN': dict(type='mmdet.YOLOXPAFPN', out_channels=16, num_csp_blocks=1),
    'ChannelMapper': dict(type='mmdet.ChannelMapper', out_channels=16, num_outs=4),
    'FPN': dict(type='mmdet.FPN', out_channels=16, num_outs=5, add_extra_convs='on_output'),
    'JPU': dict(type='mmseg.JPU', mid_channels=16),
}


@pytest.mark.parametrize('name', NECKS)
@pytest.mark.parametrize('patch_size', [8, 16])
def test_necks_for_three_maps(name, patch_size):
    """Every trained parameter of backbone and neck gets a gradient."""
    arch = dict(embed_dims=CHANNELS, depth=4, num_heads=4)
    backbone = build(arch=arch, patch_size=patch_size, out_type='pyramid', out_strides=(8, 16, 32))
    counts = (tuple if name == 'JPU' else list)([CHANNELS] * 3)
    neck = MODELS.build(dict(NECKS[name], in_channels=counts))
    maps = neck(backbone(torch.randn(2, 3, 128, 96)))
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    without = [n for m in (backbone, neck) for n, p in m.named_parameters() if p.requires_grad and p.grad is None]
    assert not without and maps[0].shape[-2:] == (16, 12)


def library_config(path):
    library, name = path.split('::')
    return Config.fromfile(Path(find_spec(library).submodule_search_locations[0]) / '.mim/configs' / name).model


DETECTORS = {
    'RTMDet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'YOLOX': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'FCOS': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_without_the_finest_map_take_a_step(name):
    """Every trained parameter gets a gradient, as data-parallel training wants it."""
    from mmdet.testing import demo_mm_inputs

    cfg = library_config(DETECTORS[name])
    cfg.backbone = config('mmdet', strides=(8, 16, 32)).model.backbone
    cfg.neck.in_channels = [CHANNELS] * 3
    if 'start_level' in cfg.neck:
        cfg.neck.start_level = 0
    cfg.data_preprocessor.batch_augments = None
    check_pyramid(Config(dict(default_scope='mmdet', model=cfg)))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = replace_sync_bn(MODELS.build(cfg)).train()
    data = model.data_preprocessor(demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=5), True)
    losses = model.loss(data['inputs'], data['data_samples'])
    sum(sum(loss) if isinstance(loss, list) else loss for loss in losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.slow
def test_a_segmentor_with_jpu_takes_a_step():
    cfg = library_config('mmseg::_base_/models/fastfcn_r50-d32_jpu_psp.py')
    cfg.pretrained, cfg.backbone = None, config('mmseg', strides=(8, 16, 32)).model.backbone
    cfg.neck.update(in_channels=(CHANNELS,) * 3, mid_channels=16)
    cfg.decode_head.update(in_channels=64)  # four dilations of 16 channels
    cfg.auxiliary_head.update(in_channels=CHANNELS)
    check_pyramid(Config(dict(default_scope='mmseg', model=cfg)))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = replace_sync_bn(MODELS.build(cfg)).train()
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, 64, 64)))) for _ in range(2)]
    losses = model.loss(torch.randn(2, 3, 64, 64), samples)
    sum(loss for name, loss in losses.items() if 'loss' in name).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
