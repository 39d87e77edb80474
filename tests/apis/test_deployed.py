"""Exported files in other runtimes and precisions, on real data."""

import numpy as np
import pytest
import torch
from small_detectors import detector_config, write_detector
from small_runs import small_cfg

from xcit_mm.apis import export
from xcit_mm.apis.deployed import Deployed, compare_on_data
from xcit_mm.errors import UsageError

pytest.importorskip('onnxruntime', reason='pip install onnx onnxruntime')


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """The paths of a config, a checkpoint and the exported file, from pixels."""
    folder = tmp_path_factory.mktemp('detector')
    model = write_detector(detector_config('mask'), folder)
    export.export_model(*model, str(folder / 'model.onnx'), size=(96, 96), from_pixels=True)
    return (*model, str(folder / 'model.onnx'))


def test_both_runtimes_find_the_same(detector):
    pytest.importorskip('openvino', reason='pip install openvino')
    pixels = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    first, second = (Deployed(detector[2], runtime) for runtime in ('onnxruntime', 'openvino'))
    assert first.metadata == second.metadata and first.metadata['classes'][3] == 'three'
    ours, theirs = first(pixels), second(pixels)
    assert list(ours) == list(theirs) == ['boxes', 'scores', 'labels', 'masks'] and len(ours['boxes']) > 20
    for name, value in ours.items():
        if name == 'masks':
            assert (value != theirs[name]).mean() < 1e-3
        else:
            np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('kind', ['classifier', 'semantic_fpn'])
def test_metrics_on_the_data_of_the_config(kind, small_models, small_digits, tmp_path):
    """PyTorch and the file have the same, those of the config's evaluator."""
    cfg = small_cfg(small_models, kind, small_digits, tmp_path)
    cfg.dump(tmp_path / 'config.py')
    model = str(tmp_path / 'config.py'), small_models[kind][1]
    export.export_model(*model, str(tmp_path / 'model.onnx'), size=(64, 64), from_pixels=True)
    pytorch, file = compare_on_data(*model, [str(tmp_path / 'model.onnx')])
    assert pytorch.name == 'PyTorch' and file.name == 'model.onnx, onnxruntime'
    assert pytorch.metrics and file.metrics == pytest.approx(pytorch.metrics, abs=0.2)
    assert file.megabytes > 0 and file.milliseconds > 0


@pytest.mark.parametrize('precision, number', [('fp16', np.float16), ('int8', np.int8)])
def test_lower_precision(precision, number, small_models, small_digits, tmp_path):
    """Hold most of the weights, and change the answer a little; inputs and outputs stay as they are."""
    import onnx

    if precision == 'fp16' and torch.__version__ < torch.torch_version.TorchVersion('2.4'):
        with pytest.raises(UsageError, match='needs PyTorch 2.4 or later'):
            export.export_model(*small_models['classifier'], str(tmp_path / 'fp16.onnx'), precision=precision)
        return
    files = [str(path) for path in sorted((small_digits / 'imagenet/val').rglob('*.png'))[:8]]
    answers = []
    for name in ('fp32', precision):
        target = str(tmp_path / f'{name}.onnx')
        model = small_models['classifier']
        export.export_model(*model, target, size=(64, 64), from_pixels=True, images=files, precision=name)
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        answers.append(Deployed(target)(pixels)['scores'])
    assert answers[0].dtype == answers[1].dtype == np.float32
    assert 0 < np.abs(answers[0] - answers[1]).max() < 0.5
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(target).graph.initializer]
    weights = [tensor for tensor in tensors if tensor.ndim > 1]
    assert sum(w.size for w in weights if w.dtype == number) > 0.5 * sum(w.size for w in weights)


def test_what_is_no_exported_file_is_named(detector, tmp_path, small_models):
    with pytest.raises(UsageError, match='there is no file'):
        Deployed(tmp_path / 'missing.onnx')
    (tmp_path / 'broken.onnx').write_bytes(b'nothing')
    with pytest.raises(UsageError, match='onnxruntime cannot run'):
        Deployed(tmp_path / 'broken.onnx')
    with pytest.raises(UsageError, match='int8 needs calibration images'):
        export.export_model(*small_models['classifier'], str(tmp_path / 'x.onnx'), precision='int8')
    with pytest.raises(UsageError, match='the precision of .* must be one of'):
        export.export_model(*small_models['classifier'], str(tmp_path / 'x.pt2'), 'torch', precision='fp16')
