"""Exported files: run with ONNX Runtime or OpenVINO, quantised to int8, and tested against PyTorch on a data set."""

import copy
import json
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor

from ..datasets.reading import ModelInput, channels_of, model_input
from ..engine.large_images import use_large_images
from ..errors import UsageError
from .export_check import PixelInputs, answer_of
from .model import build, choose

RUNTIMES = ('onnxruntime', 'openvino')
METADATA = (
    'task',
    'input',
    'channels',
    'channel_order',
    'mean',
    'std',
    'loading',
    'pipeline',
    'classes',
    'config',
)
Answer = Dict[str, np.ndarray]


class Deployed:
    """An ONNX file of :func:`xcit_mm.apis.export_model`.

    Args:
        path (str | Path): The file.
        runtime (str): 'onnxruntime', on a GPU if it was built for one; or 'openvino', on the CPU.
        threads (int, optional): CPU threads; the runtime's default if not given.
        device (str, optional): 'cpu', or such as 'cuda:0'; a GPU, if the runtime was built for one, if not given.

    Attributes:
        metadata (dict): Input, classes and task, as the file describes them.

    Raises:
        UsageError: If there is no such file, ``export_model`` did not write it, the runtime is not installed, or the
            device is not one of its own.
    """

    def __init__(
        self,
        path: Union[str, Path],
        runtime: str = 'onnxruntime',
        threads: Optional[int] = None,
        device: Optional[str] = None,
    ):
        if runtime not in RUNTIMES:
            raise UsageError(f'the runtime must be one of {RUNTIMES}, got {runtime!r}')
        if not os.path.isfile(path):
            raise UsageError(f'there is no file {path}')
        try:
            self._run, self.metadata, self.device = _OPEN[runtime](str(path), threads, device)
        except ImportError as error:
            raise UsageError(f'{error.name} is not installed: pip install {runtime}') from None
        except UsageError:
            raise
        except Exception as error:  # each runtime raises its own
            raise UsageError(f'{runtime} cannot run {path}: {str(error).splitlines()[0]}') from error
        if 'task' not in self.metadata:
            raise UsageError(f'{path} was not written by tools/export.py: its metadata do not say what it takes')

    def __call__(self, given: np.ndarray) -> Answer:
        """The input that the metadata describe -> the outputs by their names.

        Raises:
            RuntimeError: If the runtime fails, such as for an image of another number of channels.
        """
        try:
            return self._run(given)
        except Exception as error:  # each runtime raises its own
            raise RuntimeError(str(error).strip().splitlines()[0]) from error


def _about(metadata: Dict[str, str]) -> Dict[str, object]:
    """The metadata that :func:`xcit_mm.apis.export_model` wrote, without those that quantisers add."""
    return {key: json.loads(value) for key, value in metadata.items() if key in METADATA}


def _open_onnxruntime(path: str, threads: Optional[int], device: Optional[str]):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=_providers(device))
    names, given = [output.name for output in session.get_outputs()], session.get_inputs()[0].name
    about = _about(session.get_modelmeta().custom_metadata_map)
    return lambda x: dict(zip(names, session.run(None, {given: x}))), about, session.get_providers()[0]


def _providers(device: Optional[str]) -> list:
    """ONNX Runtime's execution providers for a device.

    Raises:
        UsageError: If the installed package has none for it.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device is None:
        return available
    kind, _, number = device.partition(':')
    name = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}.get(kind)
    if name not in available:
        raise UsageError(
            f'the installed ONNX Runtime cannot use the device {device}: it has {", ".join(available)}. For a GPU of '
            f'NVIDIA: pip install onnxruntime-gpu'
        )
    return [name] if kind == 'cpu' else [(name, {'device_id': int(number or 0)}), 'CPUExecutionProvider']


def _open_openvino(path: str, threads: Optional[int], device: Optional[str]):
    import openvino

    if device not in (None, 'cpu'):
        raise UsageError(f'OpenVINO runs on the CPU here; got the device {device}')

    options: Dict[str, Union[str, int]] = {'INFERENCE_PRECISION_HINT': 'f32'}
    if threads:
        options['INFERENCE_NUM_THREADS'] = threads
    model = openvino.Core().read_model(path)
    about = _about(model.get_rt_info('framework').value) if model.has_rt_info('framework') else {}
    names = [output.get_any_name() for output in model.outputs]
    compiled = openvino.compile_model(model, 'CPU', options)

    def run(x: np.ndarray) -> Answer:
        found = compiled(x)
        return {name: found[name] for name in names}

    return run, about, 'CPU'


_OPEN: Dict[str, Callable] = {'onnxruntime': _open_onnxruntime, 'openvino': _open_openvino}


def write_int8(source: str, target: str, images: Sequence[np.ndarray]) -> None:
    """Quantise an ONNX file to int8 for CPUs, with onnxruntime.quantization.

    Convolutions and linear layers compute in int8, with a scale for each output channel of the weights. The matmuls of
    attention, norms, boxes and masks keep their dtype.

    Args:
        source, target (str): The files to read and to write.
        images (Sequence[np.ndarray]): Calibration inputs, a hundred or so; their activations give the ranges.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = Deployed(source).metadata['input']

    class Images(CalibrationDataReader):
        left = iter(images)

        def get_next(self):
            image = next(self.left, None)
            return None if image is None else {name: image}

    with tempfile.TemporaryDirectory() as folder:
        prepared = os.path.join(folder, 'prepared.onnx')
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Images(),
            op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={'MatMulConstBOnly': True},
        )


class Tested(NamedTuple):
    """A row of the table of :func:`compare_on_data`.

    Attributes:
        name (str): The file and its runtime, or PyTorch.
        megabytes (float): Size of the file, or of the weights.
        milliseconds (float): Median for one image, from its pixels to the answer.
        metrics (dict): As the config's evaluator names them.
    """

    name: str
    megabytes: float
    milliseconds: float
    metrics: Dict[str, float]


def compare_on_data(
    model: str,
    checkpoint: Optional[str],
    files: Sequence[str],
    runtimes: Sequence[str] = ('onnxruntime',),
    limit: Optional[int] = None,
) -> List[Tested]:
    """Test exported files and PyTorch with the config's own data and metrics, image by image, on the CPU.

    Each takes its turn at every image, so that a busy machine slows down all of them. All use as many threads as
    PyTorch does.

    Args:
        model (str): A config file, or a name of :func:`xcit_mm.list_models`.
        checkpoint (str, optional): File or address; the published weights of a name if not given.
        files (Sequence[str]): Written with ``from_pixels``.
        runtimes (Sequence[str]): Each file is run by each of them.
        limit (int, optional): Number of images, from the first; all if not given.

    Raises:
        UsageError: If a file does not take pixels, or does not fit the config.
    """
    from mmengine.evaluator import Evaluator

    cfg, checkpoint = choose(model, checkpoint)
    use_large_images(cfg)  # as inference and testing do
    read, built = model_input(cfg), build(cfg, checkpoint).requires_grad_(False)
    inputs = PixelInputs(channels_of(built), read, one_by_one=True)
    names = ('labels',) if hasattr(built, 'decode_head') else ('boxes', 'scores', 'labels', 'masks')
    names = ('scores',) if hasattr(built, 'head') else names
    contenders: Dict[str, Callable[[np.ndarray], Answer]] = {'PyTorch': _library(built, read, names)}
    sizes = {'PyTorch': sum(tensor.numel() * tensor.element_size() for tensor in built.state_dict().values())}
    for file in files:
        for runtime in runtimes:
            name = f'{Path(file).name}, {runtime}'
            contenders[name] = deployed = Deployed(file, runtime, torch.get_num_threads())
            sizes[name] = os.path.getsize(file)
            if deployed.metadata['input'] != 'pixels':
                raise UsageError(f'{file} was exported without --from-pixels, and takes normalised images')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    dataset = DATASETS.build(_data_of(cfg))
    judges = {name: Evaluator(cfg.test_evaluator) for name in contenders}
    for judge in judges.values():
        judge.dataset_meta = dataset.metainfo
    seconds: Dict[str, List[float]] = {name: [] for name in contenders}
    count = min(limit or len(dataset), len(dataset))
    ids = []
    for number in range(count):
        sample = dataset[number]['data_samples']
        ids.append(sample.get('img_id'))
        pixels = inputs.read(sample.img_path).numpy()
        for name, contender in contenders.items():
            begin = time.perf_counter()
            answer = contender(pixels)
            seconds[name].append(time.perf_counter() - begin)
            judges[name].process(data_samples=[fill_sample(copy.deepcopy(sample), answer)])
    found = []
    for name, judge in judges.items():
        for metric in judge.metrics:
            if hasattr(metric, 'img_ids'):  # COCO's would count the objects of the other images as missed
                metric.img_ids = ids
        with _silence():
            metrics = judge.evaluate(count)
        found.append(Tested(name, sizes[name] / 1e6, float(np.median(seconds[name])) * 1e3, metrics))
    return found


def _data_of(cfg: Config) -> dict:
    loader = cfg.get('test_dataloader') or cfg.val_dataloader
    return dict(loader.dataset, test_mode=True)


def _library(model: torch.nn.Module, read: ModelInput, names: Sequence[str]) -> Callable[[np.ndarray], Answer]:
    def run(pixels: np.ndarray) -> Answer:
        return dict(zip(names, (np.asarray(output) for output in answer_of(model, read, torch.from_numpy(pixels)))))

    return run


def fill_sample(sample, answer: Answer):
    """Fill a data sample with the outputs of an exported model, as the library's own model does."""
    from mmengine.structures import InstanceData, PixelData

    found: Dict[str, Tensor] = {name: torch.from_numpy(np.array(value)) for name, value in answer.items()}
    if 'boxes' in found:
        found['bboxes'] = found.pop('boxes')
        sample.pred_instances = InstanceData(**found)
    elif 'labels' in found:
        sample.pred_sem_seg = PixelData(data=found['labels'][None])
    else:
        sample.set_pred_score(found['scores']).set_pred_label(found['scores'].argmax())
    return sample


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the tables that metrics print."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        yield
