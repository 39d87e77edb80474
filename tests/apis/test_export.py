"""Export as a user runs it: small models, real files, ONNX Runtime."""

import json

import numpy as np
import pytest
import torch
from backbones import randomise
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from processes import ROOT

from xcit_mm.apis import export
from xcit_mm.errors import UsageError

PARTS = {'classifier': 'model', 'detector': 'backbone', 'semantic_fpn': 'model', 'upernet': 'model'}
pytest.importorskip('onnxruntime')
HAS_TORCH_EXPORT = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


@pytest.mark.parametrize('name', PARTS)
def test_onnx_runtime_computes_the_same(name, small_models, tmp_path):
    """In sizes and batches other than the recorded one; the file is written after the comparison."""
    import onnx
    import onnxruntime

    target = tmp_path / 'model.onnx'
    deviations = export.export_model(*small_models[name], str(target), part=PARTS[name], size=(96, 64))
    assert max(d.relative for d in deviations) < 1e-4
    assert {d.shape[0] for d in deviations} == {1, 2, 3} and len({d.shape[2:] for d in deviations}) == 3
    module = export.load_exported(*small_models[name], PARTS[name]).module
    images = torch.randn(2, 3, 71, 130)
    found = onnxruntime.InferenceSession(str(target)).run(None, {'images': images.numpy()})
    with torch.no_grad():
        for ours, theirs in zip(found, module(images)):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())
    properties = {p.key: json.loads(p.value) for p in onnx.load(str(target)).metadata_props}
    assert properties['mean'] == [123.675, 116.28, 103.53] and len(properties['classes']) in (10, 11)
    assert properties['channel_order'] == 'RGB' and properties['channels'] == 3


@pytest.mark.parametrize(
    'name, channels, order',
    [('classifier', 3, 'BGR'), ('classifier', 1, 'grey'), ('detector', 3, 'BGR'), ('semantic_fpn', 4, 'BGRA')],
)
def test_metadata_say_which_images_the_model_takes(name, channels, order, small_models, tmp_path):
    """Used as they say, less the mean and over the deviation, pixels give what they give with the library."""
    import onnxruntime

    cfg = Config.fromfile(small_models[name][0])
    color_type = {1: 'grayscale', 3: 'color', 4: 'unchanged'}[channels]
    cfg.test_dataloader.dataset.pipeline[0].color_type = color_type
    mean = None if channels == 4 else [100.0, 110.0, 120.0][:channels]  # MMEngine normalises one channel or three
    settings = dict(mean=mean, std=mean and [50.0, 55.0, 60.0][:channels])
    settings['to_rgb' if name == 'classifier' else 'bgr_to_rgb'] = False
    cfg.model.data_preprocessor.update(settings)
    cfg.model.backbone.in_channels = channels
    cfg.dump(tmp_path / 'config.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = randomise(MODELS.build({**cfg.model, 'data_preprocessor': None}))
        preprocess = MODELS.build({'type': 'ClsDataPreprocessor', **cfg.model.data_preprocessor})
    torch.save({'state_dict': built.state_dict(), 'meta': {}}, tmp_path / 'weights.pth')
    paths = str(tmp_path / 'config.py'), str(tmp_path / 'weights.pth'), str(tmp_path / 'model.onnx')
    deviations = export.export_model(*paths, part=PARTS[name], size=(64, 64))
    assert all(deviation.shape[1] == channels for deviation in deviations)
    session = onnxruntime.InferenceSession(paths[2])
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said['channels'] == channels and said['channel_order'] == order
    assert said['loading']['color_type'] == color_type
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, channels), dtype=np.uint8)  # in that order
    given = ((pixels - np.array(said['mean'])) / said['std']).transpose(2, 0, 1)[None].astype(np.float32)
    found = session.run(None, {'images': given})[0]
    inputs = preprocess(dict(inputs=[torch.from_numpy(pixels).permute(2, 0, 1)]))['inputs']
    with torch.no_grad():
        expected = export.load_exported(*paths[:2], PARTS[name]).module(inputs)[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.skipif(not HAS_TORCH_EXPORT, reason='torch.export takes no free sizes before PyTorch 2.6')
@pytest.mark.parametrize('name', ['classifier', pytest.param('upernet', marks=pytest.mark.slow)])
def test_torch_export_computes_the_same(name, small_models, tmp_path):
    target = str(tmp_path / 'model.pt2')
    deviations = export.export_model(*small_models[name], target, 'torch', PARTS[name], (96, 64))
    assert max(d.relative for d in deviations) < 1e-4
    module = export.load_exported(*small_models[name], PARTS[name]).module
    images = torch.randn(1, 3, 50, 45)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(target).module()(images), module(images), rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(HAS_TORCH_EXPORT, reason='this PyTorch has it')
def test_torch_export_says_which_pytorch_it_needs(small_models, tmp_path):
    with pytest.raises(UsageError, match='needs PyTorch 2.6'):
        export.export_model(*small_models['classifier'], str(tmp_path / 'model.pt2'), 'torch')


def test_a_model_that_deviates_is_not_written(small_models, tmp_path, monkeypatch):
    monkeypatch.setattr(export, 'TOLERANCE', 1e-12)
    with pytest.raises(UsageError, match='deviates by .* more than 1e-12'):
        export.export_model(*small_models['classifier'], str(tmp_path / 'model.onnx'), size=(64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('sizes', [(1, 2, 3, 6), (4, (2, 5))])
def test_pooling_as_matmuls_equals_adaptive_pooling(sizes):
    for size in sizes:
        for height, width in ((7, 12), (1, 5), (6, 6)):
            x = torch.randn(2, 3, height, width)
            pooled = torch.nn.functional.adaptive_avg_pool2d(x, size)
            torch.testing.assert_close(export._AdaptivePool(size)(x), pooled)


def test_the_command(small_models, tmp_path, run_tool):
    config, checkpoint = small_models['detector']
    for arguments, text in (
        ((config, 'missing.pth', 'x.onnx', '--part', 'backbone'), 'there is no checkpoint file missing.pth'),
        (('xcit_s12_9_in1k', checkpoint, 'x.onnx'), 'did you mean xcit_s12_8_in1k'),
        ((config, checkpoint, 'x.pt', '--part', 'backbone'), 'must end with .onnx'),
    ):
        with pytest.raises(UsageError, match=text):
            part = 'backbone' if '--part' in arguments else 'model'
            export.export_model(*arguments[:3], part=part)
    told = run_tool(
        ROOT / 'tools/export.py', config, checkpoint, 'pyramid.onnx', '--part', 'backbone', '--size', 64, 96
    )
    assert '2x3x64x96' in told and 'pyramid.onnx' in told
    assert [path.name for path in tmp_path.iterdir()] == ['pyramid.onnx']
