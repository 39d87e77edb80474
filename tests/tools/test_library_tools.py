"""The libraries' own tools on the shipped families of models, once each, as their users run them."""

import argparse
import json
import re
import runpy
import shutil
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import randomise
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.visualization import Visualizer
from processes import ROOT

from xcit_mm.engine.setup import _move_data_root

pytestmark = pytest.mark.slow

# By library: a config of each of its families with the folders of data and of test images among the digits'. The names
# of classes are those of the digits for detectors and classifiers; segmentors have ADE20K's, of which the digits' are
# the first.
FAMILIES = {
    'mmdet': {'mask_rcnn_xcit_n12_8_digits': ('coco', 'val2017')},
    'mmseg': {
        'sem_fpn_xcit_t12_16_80k_ade20k': ('ade', 'images/validation'),
        'upernet_xcit_t12_16_160k_ade20k': ('ade', 'images/validation'),
    },
    'mmpretrain': {'xcit_n12_8_digits': ('imagenet', 'val')},
}
# The tools with their arguments. {config}, {checkpoint} and {image} are files; {results} is what the library's own
# tools/test.py wrote; {log} has the losses of a training, {json} boxes as COCO's server wants them, {truth} their
# annotations. Not here: what needs a download or a GPU; get_image_metas.py of MMDetection and browse_dataset.py of
# MMPretrain, which fail for every model; confusion_matrix.py of MMSegmentation, which draws 150 classes on 24 metres.
TOOLS = {
    'mmdet': [
        'misc/print_config.py {config}',
        'analysis_tools/browse_dataset.py {config} --output-dir out --not-show --show-interval 0',
        'analysis_tools/get_flops.py {config} --num-images 2',
        'analysis_tools/analyze_results.py {config} {results} out --topk 1',
        'analysis_tools/confusion_matrix.py {config} {results} out',
        'analysis_tools/eval_metric.py {config} {results}',
        'analysis_tools/coco_error_analysis.py {json} out --ann {truth}',
        'analysis_tools/benchmark.py {config} --task dataset --max-iter 4 --num-warmup 1 --log-interval 1',
        'analysis_tools/analyze_logs.py plot_curve {log} --keys loss --out curve.png --style classic',
        'analysis_tools/analyze_logs.py cal_train_time {log}',
        'model_converters/publish_model.py {checkpoint} published.pth',
    ],
    'mmseg': [
        'misc/print_config.py {config}',
        'misc/browse_dataset.py {config} --output-dir out --not-show --show-interval 0',
        'misc/publish_model.py {checkpoint} published.pth',
        'analysis_tools/get_flops.py {config} --shape 64 64',
        'analysis_tools/benchmark.py {config} {checkpoint} --log-interval 100',
        'analysis_tools/visualization_cam.py {image} {config} {checkpoint} --out-file cam.png --device cpu '
        '--target-layers backbone.blocks[1].norm2',
        'analysis_tools/analyze_logs.py {log} --keys loss --out curve.png',
    ],
    'mmpretrain': [
        'misc/print_config.py {config}',
        'misc/verify_dataset.py {config} --out-path bad.txt --num-process 1',
        'visualization/vis_scheduler.py {config} --not-show -d 100 -s schedule.png',
        'visualization/vis_cam.py {image} {config} {checkpoint} --vit-like --save-path cam.png',
        'visualization/vis_tsne.py {config} --checkpoint {checkpoint} --work-dir out --max-num-samples 4 '
        '--perplexity 2',
        'analysis_tools/get_flops.py {config} --shape 64',
        'analysis_tools/analyze_results.py {config} {results} --out-dir out --topk 1',
        'analysis_tools/confusion_matrix.py {config} {results} --out confusion.pkl',
        'analysis_tools/eval_metric.py {results} --metric type=Accuracy topk=1',
        'analysis_tools/analyze_logs.py plot_curve {log} --keys loss --out curve.png --style classic',
        'model_converters/publish_model.py {checkpoint} published.pth',
    ],
}
# Packages that the libraries do not bring along, and some of their tools import.
OPTIONAL = ('pytorch_grad_cam', 'sklearn', 'seaborn')
CASES = [(library, name, tool) for library in TOOLS for name in FAMILIES[library] for tool in TOOLS[library]]


def folder_of(library):
    return Path(find_spec(library).submodule_search_locations[0]) / '.mim' / 'tools'


def small(name, data):
    """The config with two narrow blocks and no worker processes, its data being the digits."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    cfg.model.backbone.arch = dict(embed_dims=32, depth=2, num_heads=4)
    if cfg.model.backbone.out_type == 'pyramid':
        cfg.model.backbone.out_indices = (0, 0, 1, 1)
    for part in ('neck', 'decode_head', 'auxiliary_head', 'head'):
        settings = cfg.model.get(part)
        if settings and settings.get('in_channels') is not None:
            # Behind a neck the head reads what that makes.
            several = isinstance(settings.in_channels, (list, tuple))
            settings.in_channels = [32] * len(settings.in_channels) if several else 32
        if settings and part == 'neck' and cfg.default_scope == 'mmseg':
            settings.out_channels = 32
    cfg.model.backbone.init_cfg = None
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    _move_data_root(cfg, str(data))
    cfg.load_from = None
    return cfg


@pytest.fixture(scope='module')
def inputs(small_digits, tmp_path_factory):
    """For each config the files that the tools read."""
    folder = tmp_path_factory.mktemp('inputs')
    found = {}
    log = folder / 'log.json'
    lines = [dict(epoch=1, iter=i, step=i, loss=1.0 / i, lr=0.1, time=0.1, data_time=0.1) for i in (1, 2, 3)]
    log.write_text('\n'.join(map(json.dumps, lines)))
    for families in FAMILIES.values():
        for name, (data, images) in families.items():
            cfg = small(name, small_digits / data)
            cfg.dump(folder / f'{name}.py')
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                model = randomise(MODELS.build(cfg.model))
            torch.save({'state_dict': model.state_dict(), 'meta': {}, 'optimizer': {}}, folder / f'{name}.pth')
            image = next((small_digits / data / images).rglob('*.*g'))
            found[name] = dict(config=folder / f'{name}.py', checkpoint=folder / f'{name}.pth', image=image, log=log)
    truth = small_digits / 'coco/annotations/instances_val2017.json'
    boxes = json.loads(truth.read_text())['annotations']
    guesses = [{**{key: box[key] for key in ('image_id', 'category_id', 'bbox')}, 'score': 0.9} for box in boxes[1:]]
    (folder / 'boxes.json').write_text(json.dumps(guesses))
    found['mask_rcnn_xcit_n12_8_digits'].update(truth=truth, json=folder / 'boxes.json')
    return found


@pytest.fixture
def run_own(run_tool, monkeypatch):
    """Run a library's own tool as if it were the first of this process."""

    def run(library, name, *arguments):
        DefaultScope._instance_dict.clear()
        Visualizer._instance_dict.clear()
        return run_tool(folder_of(library) / name, *arguments)

    monkeypatch.setenv('MPLBACKEND', 'Agg')
    yield run
    Visualizer._instance_dict.clear()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Files that the library's own tools/test.py wrote, by config."""
    return tmp_path_factory.mktemp('results')


@pytest.mark.parametrize('library, name, tool', CASES, ids=[f'{name}-{tool.split()[0]}' for _, name, tool in CASES])
def test_the_librarys_own_tool(library, name, tool, inputs, results, run_own, tmp_path):
    script, *arguments = tool.split()
    code = (folder_of(library) / script).read_text()
    for package in OPTIONAL:
        if package in code:
            pytest.importorskip(package, reason=f'install {package} to run it')
    files = dict(inputs[name], results=results / f'{name}.pkl')
    if '{results}' in tool and not files['results'].exists():
        run_own(library, 'test.py', files['config'], files['checkpoint'], '--out', files['results'])
    run_own(library, script, *(argument.format(**files) for argument in arguments))
    for written in re.findall(r'(\S+\.(?:png|pkl))\b', ' '.join(a for a in arguments if '{' not in a)):
        assert (tmp_path / written).exists(), written
    if 'out' in arguments:
        assert any(path.is_file() for path in (tmp_path / 'out').rglob('*'))
    if 'publish' in tool:
        for _ in range(50):  # MMSegmentation's moves the file in a process that it does not wait for
            published = list(tmp_path.glob('published*.pth'))
            if any('-' in path.name for path in published):
                break
            time.sleep(0.1)
        (path,) = published
        assert 'optimizer' not in torch.load(path, weights_only=False)


def test_the_default_layer_of_class_activation_maps_shows_where_the_class_token_looks(inputs, run_own):
    """The map of MMPretrain's tool is Grad-CAM of the patch tokens before the last class attention."""
    cam = pytest.importorskip('pytorch_grad_cam', reason='install grad-cam to run it')
    tool = runpy.run_path(str(folder_of('mmpretrain') / 'visualization/vis_cam.py'))
    files = inputs['xcit_n12_8_digits']
    model = tool['get_model'](str(files['config']), str(files['checkpoint']), device='cpu')
    args = argparse.Namespace(vit_like=True, num_extra_tokens=None)
    layers = tool['get_default_target_layers'](model, args)
    assert layers == [model.backbone.cls_attn_blocks[1].norm1]
    reshape = partial(tool['reshape_transform'], model=model, args=args)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    target = cam.utils.model_targets.ClassifierOutputTarget(3)
    found = tool['init_cam']('GradCAM', model, layers, False, reshape)(image, [target])[0]

    kept = []
    handle = layers[0].register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = model(image)[0, 3]
    handle.remove()
    (tokens,) = [output for output in kept if output.shape[1] == 64]
    (gradient,) = torch.autograd.grad(score, tokens)
    expected = (gradient.mean(dim=1, keepdim=True) * tokens).sum(dim=2).clamp_min(0).view(8, 8).detach()
    expected = (expected - expected.min()) / (1e-7 + expected.max() - expected.min())
    assert found.std() > 0.05
    assert np.abs(found[4::8, 4::8] - expected.numpy()).max() < 0.35  # enlarged eightfold between
    assert np.corrcoef(found[4::8, 4::8].ravel(), expected.numpy().ravel())[0, 1] > 0.9


def test_a_broken_image_does_not_end_a_librarys_own_training(small_digits, run_own, tmp_path):
    shutil.copytree(small_digits / 'coco', tmp_path / 'data')
    broken = next((tmp_path / 'data/train2017').iterdir())
    broken.write_bytes(broken.read_bytes()[:200])
    cfg = small('mask_rcnn_xcit_n12_8_digits', tmp_path / 'data')
    cfg.train_cfg.update(max_epochs=1, val_interval=9)
    cfg.dump(tmp_path / 'config.py')
    run_own('mmdet', 'train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'run')
    (report,) = (tmp_path / 'run').rglob('bad_images.txt')
    assert broken.name in report.read_text() and (tmp_path / 'run/epoch_1.pth').exists()
