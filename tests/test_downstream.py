"""A project of somebody else: examples/downstream copied away, the package installed from its wheel, and the
libraries' own tools."""

import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from processes import ROOT, call
from processes import run as run_tool

from xcit_mm.errors import UsageError

CONFIGS = {
    'mmdet': [
        'cascade_mask_rcnn',
        'mask2former',
        'mask_rcnn',
        'mask_rcnn_published',
        'mask_rcnn_pure_python',
        'retinanet',
    ],
    'mmseg': ['segformer', 'semantic_fpn', 'upernet'],
    'mmpretrain': ['classifier'],
}
LIBRARY = {name: library for library, names in CONFIGS.items() for name in names}
# Much like others; their turn is with the slow tests.
LONG = ('cascade_mask_rcnn', 'mask_rcnn', 'mask_rcnn_published', 'retinanet', 'semantic_fpn')
# One process, no download, one step.
QUICK = {'model.backbone.init_cfg': None}
for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
    QUICK.update({f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False})


def limits(name):
    """Options that end the training of a config after one step."""
    if LIBRARY[name] == 'mmseg' or name == 'mask2former':
        interval = {'train_cfg.val_interval': 1, 'default_hooks.checkpoint.interval': 1}
        return {**QUICK, 'train_cfg.max_iters': 1, 'train_dataloader.batch_size': 2, **interval}
    images = 16 if name == 'classifier' else 2
    # After a step RetinaNet's scores are still at their start of 0.01, and without boxes there is no mAP.
    every_box = {'model.test_cfg.score_thr': 0.0} if name == 'retinanet' else {}
    return {**QUICK, **every_box, 'train_cfg.max_epochs': 1, 'train_dataloader.dataset.indices': images}


def mim(library):
    return Path(find_spec(library).submodule_search_locations[0]) / '.mim'


@pytest.fixture(scope='module')
def project(small_digits, tmp_path_factory):
    """The copied project with its data."""
    folder = tmp_path_factory.mktemp('downstream') / 'project'
    shutil.copytree(ROOT / 'examples/downstream', folder)
    (folder / 'data').mkdir(exist_ok=True)
    (folder / 'data/digits').symlink_to(small_digits)
    return folder


def run(command, project, installed):
    env = dict(os.environ, PYTHONPATH=str(installed))
    done = call([sys.executable, *command], cwd=project, env=env)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def last_json(output):
    """What code printed, among the messages of the libraries."""
    return json.loads([line for line in output.splitlines() if line.startswith('{')][-1])


def own_tools(name, project, installed):
    """Train for a step and test, with the library's own tools; the output of both."""
    tools, config, work = mim(LIBRARY[name]) / 'tools', f'configs/{name}.py', f'work_dirs/{name}'
    options = ['--work-dir', work, '--cfg-options', *(f'{key}={value}' for key, value in limits(name).items())]
    trained = run([tools / 'train.py', config, *options], project, installed)
    checkpoint = (project / work / 'last_checkpoint').read_text()
    return trained, run([tools / 'test.py', config, checkpoint, *options], project, installed)


def test_all_configs_of_the_example_are_tested():
    assert sorted(LIBRARY) == sorted(path.stem for path in (ROOT / 'examples/downstream/configs').glob('*.py'))


def test_configs_build_and_train(project, installed):
    """A step of training of each, in one process."""
    names = [name for name in LIBRARY if name not in LONG]
    options = {name: limits(name) for name in names}
    code = f"""
import json, torch, xcit_mm
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
assert xcit_mm.__file__.startswith({str(installed)!r})
found = {{}}
for name, options in {options!r}.items():
    cfg = Config.fromfile(f'configs/{{name}}.py')
    cfg.merge_from_dict(options)
    cfg.update(work_dir=f'work_dirs/steps/{{name}}', experiment_name=name, log_level='ERROR')
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator', 'test_cfg', 'test_dataloader', 'test_evaluator'):
        cfg[key] = None
    cfg.default_hooks.checkpoint = None
    runner = Runner.from_cfg(cfg)
    backbone = runner.model.backbone
    before = backbone.blocks[0].attn.qkv.weight.detach().clone()
    runner.train()
    found[name] = [type(backbone).__module__, bool((backbone.blocks[0].attn.qkv.weight != before).any())]
print(json.dumps(found))
"""
    found = last_json(run(['-c', code], project, installed))
    assert found == {name: ['xcit_mm.models.xcit', True] for name in names}


@pytest.mark.slow
def test_a_published_config_under_mmdets_own_tools(project, installed):
    trained, tested = own_tools('mask_rcnn_published', project, installed)
    assert 'coco/segm_mAP' in tested
    config = (project / 'work_dirs/mask_rcnn_published/mask_rcnn_published.py').read_text()
    assert re.search(r'num_classes=10', config) and "'nine'" in config and 'max_epochs=1' in config


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(LIBRARY) - {'mask_rcnn_published'}))
def test_every_config_under_the_librarys_own_tools(name, project, installed):
    metric = {'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU', 'mmpretrain': 'accuracy/top1'}[LIBRARY[name]]
    assert metric in own_tools(name, project, installed)[1]


@pytest.mark.slow
@pytest.mark.parametrize('strides', [None, (4, 8, 16, 32)])
def test_a_detector_without_the_finest_map_trains_on_two_processes(strides, project):
    """Data-parallel training ends at the second iteration if a layer gets no gradient."""
    options = {**QUICK, 'train_dataloader.batch_size': 1, 'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 9}
    options.update(
        {'train_dataloader.dataset.indices': 4, 'model.backbone.arch': 'n12', 'default_hooks.logger.interval': 1}
    )
    if strides:  # as it would be written for a ResNet
        options.update(
            {
                'model.backbone.out_strides': '"(4,8,16,32)"',
                'model.neck.in_channels': '"[128,128,128,128]"',
                'model.neck.start_level': 1,
            }
        )
    config, work = project / 'configs/retinanet.py', f'work_dirs/two_{bool(strides)}'
    words = [f'{key}={value}' for key, value in options.items()]
    told = run_tool('train.py', config, '--work-dir', work, '--cfg-options', *words, cwd=project, launcher=2)
    assert len(re.findall(r'Epoch\(train\)', told)) == 4  # two epochs of four images
    assert ('makes maps that nothing reads, of stride 4.' in told) == bool(strides)


@pytest.mark.parametrize(
    'constructor', ['mmpretrain.LearningRateDecayOptimWrapperConstructor', 'xcit_mm.LayerDecayOptimWrapperConstructor']
)
def test_layers_learn_at_the_rates_of_their_depth(constructor):
    """MMPretrain's constructor and this project's ask the backbone; nothing decays that should not."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(ROOT / 'examples/downstream/configs/classifier.py')
    model = MODELS.build(cfg.model)
    cfg.optim_wrapper.constructor = constructor
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    base, decay = 5e-4, 0.8
    # Depths: embeddings 0, blocks 1 ... 12, class-attention blocks 13 and 14, norm and head 15.
    expected = {
        'head.fc.weight': 15,
        'backbone.norm.weight': 15,
        'backbone.cls_attn_blocks.1.attn.qkv.weight': 14,
        'backbone.cls_attn_blocks.0.attn.qkv.weight': 13,
        'backbone.blocks.11.mlp.fc1.weight': 12,
        'backbone.blocks.0.attn.qkv.weight': 1,
        'backbone.patch_embed.proj.0.0.weight': 0,
        'backbone.cls_token': 0,
    }
    for name, depth in expected.items():
        assert rates[name][0] == pytest.approx(base * decay ** (15 - depth)), name
    undecayed = ('norm', 'bias', 'gamma', 'temperature', 'cls_token', 'bn.')
    for name, (_, weight_decay) in rates.items():
        assert (weight_decay == 0) == (any(part in name for part in undecayed) or _is_norm(name)), name


def test_learning_rates_by_depth_in_a_detector():
    """Its neck and heads, and the pyramid, learn at the full rate."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'examples/downstream/configs/retinanet.py')
    model = MODELS.build(cfg.model)
    settings = dict(
        constructor='xcit_mm.LayerDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0),
        paramwise_cfg=dict(layer_decay_rate=0.5, custom_keys={'neck': dict(lr_mult=3.0)}),
    )
    groups = build_optim_wrapper(model, settings).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group['lr'] for group in groups for p in group['params']}
    assert rates['bbox_head.retina_cls.weight'] == rates['backbone.pyramid.fpn2.0.weight'] == 1.0
    assert rates['neck.lateral_convs.0.conv.weight'] == 3.0
    assert rates['backbone.blocks.11.mlp.fc1.weight'] == 0.5
    assert rates['backbone.patch_embed.proj.0.0.weight'] == 0.5**13
    with pytest.raises(UsageError, match=r'needs layer_decay_rate, above 0 and at most 1; got None'):
        build_optim_wrapper(model, dict(settings, paramwise_cfg=dict(norm_decay_mult=0.0)))


def _is_norm(name):
    """Batch norms of the patch embedding have no name of their own."""
    return bool(re.search(r'patch_embed\.proj\.\d\.1\.', name))
