"""Export to ONNX, OpenVINO and torch.export for any image size, compared with the model before the file is kept."""

import copy
import inspect
import json
import os
import tempfile
import warnings
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.utils import digit_version
from torch import Tensor, nn

from ..datasets.reading import ModelInput, channels_of, model_input
from ..engine.large_images import use_large_images
from ..errors import UsageError
from .deployed import Deployed, write_int8
from .export_check import SMALLEST, Deviation, Inputs, PixelInputs, Run, answer_of, compare, detections_of
from .exported import activation_of, config_for_file
from .model import build, choose

PRECISIONS = ('fp32', 'fp16', 'int8')
FORMATS = {  # suffix of the file, and its precisions
    'onnx': ('.onnx', PRECISIONS),
    'openvino': ('.xml', ('fp32', 'int8')),
    'torch': ('.pt2', ('fp32',)),
}
PARTS = ('model', 'backbone')
OPSET = 17
LARGEST = 8192
TOLERANCE = 1e-4
LOOSE_TOLERANCE = 1e-3  # where a threshold or rounding may flip
MOST_UNMATCHED = 0.02  # share of detections that only one of the two has
MOST_COMPARED = 20  # images; the rest calibrate int8
REDUCED_UNMATCHED = 0.5  # the same in fp16 and int8, where detections of low scores come and go
TASKS = {'mmpretrain': 'classification', 'mmdet': 'detection', 'mmseg': 'segmentation'}


def export_model(
    model: str,
    checkpoint: Optional[str],
    target: str,
    format: str = 'onnx',
    part: str = 'model',
    size: Tuple[int, int] = (224, 224),
    from_pixels: bool = False,
    images: Sequence[str] = (),
    precision: str = 'fp32',
) -> List[Deviation]:
    """Export a classifier, a detector, a segmentor, or the backbone of any model.

    The exported model takes normalised 'images' (B, channels, H, W) in fp32, of any batch size (detectors: one image)
    and of any size from 32 x 32 pixels; or with ``from_pixels`` the 'pixels' (H, W, channels) uint8, RGB, of one image
    of any size, which the graph resizes and normalises as the config's test pipeline does. It gives

    - of a classifier 'logits' (B, classes); from pixels 'scores' (classes,);
    - of a detector 'boxes' (N, 4), x1, y1, x2, y2 in pixels of the image given, 'scores' (N,), 'labels' (N,) and, if it
      has masks, 'masks' (N, H, W) bool, best first;
    - of a segmentor 'logits' (B, classes, H, W); from pixels 'labels' (H, W), the class of each pixel;
    - of a backbone its features: 'stride_4', 'stride_8' and so on for each of its ``out_strides`` with a pyramid, else
      'features_0' and so on.

    The metadata say which images it takes: 'input': 'images' or 'pixels'; 'channels'; 'channel_order': 'RGB', 'BGR',
    'grey', 'BGRA' or 'as loaded'; 'mean' and 'std' in that order; 'loading', the config's step that reads files;
    'pipeline', its steps after that; 'task' and 'classes'. 'config' is what :class:`Inferencer` reads.

    Args:
        model (str): A config file, or a name of :func:`xcit_mm.list_models`.
        checkpoint (str, optional): File or address; the published weights of a name if not given.
        target (str): The file to write.
        format (str): 'onnx'; 'openvino' for OpenVINO's .xml with its .bin; or 'torch' for a file of
            :func:`torch.export.save`, not for detectors and models from pixels.
        part (str): 'model' or 'backbone'.
        size (tuple[int, int]): Height and width at which the graph is traced; it is compared at sizes around it.
        from_pixels (bool): Make the file take uint8 pixels and answer in the image's pixels.
        images (Sequence[str]): Image files to compare with PyTorch on, instead of generated ones; for int8 also for
            calibration, a hundred or so.
        precision (str): 'fp32'; 'fp16' for GPUs: what PyTorch's autocast computes in fp16; or 'int8' for CPUs:
            convolutions and linear layers. Inputs and outputs keep their dtypes. Both are for ONNX, int8 for OpenVINO
            too, and are written once the fp32 file has passed its comparison.

    Returns:
        list[Deviation]: From PyTorch, for several sizes and, where batches are possible, batch sizes. In fp32 all are
        at most :data:`TOLERANCE`, of detectors and from pixels :data:`LOOSE_TOLERANCE`.

    Raises:
        UsageError: If the arguments are wrong, the model cannot be exported, a package is missing, or the exported
            model deviates by more; then no file is left behind.
    """
    if format not in FORMATS or part not in PARTS:
        raise UsageError(f'format must be one of {tuple(FORMATS)} and part one of {PARTS}; got {format!r} and {part!r}')
    if min(size) < SMALLEST or max(size) > LARGEST:
        raise UsageError(f'the size must be between {SMALLEST} and {LARGEST} pixels, got {size[0]}x{size[1]}')
    suffix, precisions = FORMATS[format]
    if precision not in precisions:
        raise UsageError(f'the precision of {format} must be one of {precisions}, got {precision!r}')
    if precision == 'fp16' and digit_version(torch.__version__) < digit_version('2.4'):
        raise UsageError(
            f'fp16 is recorded under autocast on the CPU, which needs PyTorch 2.4 or later; this is {torch.__version__}'
        )
    if precision == 'int8' and not images:
        raise UsageError('int8 needs calibration images: give --images, a hundred or so')
    _require(format)
    if not str(target).endswith(suffix):
        raise UsageError(f'the file to write must end with {suffix}, got {target}')
    folder = Path(target).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f'the folder {folder} does not exist or cannot be written to')
    exported = load_exported(model, checkpoint, part, from_pixels)
    if format == 'torch' and exported.inputs.one_by_one:
        raise UsageError(
            'detectors and models from pixels are exported to ONNX and OpenVINO alone; leave out --format torch'
        )
    samples = [exported.inputs.read(path) for path in images]
    compared = samples[:MOST_COMPARED] or exported.inputs.generate(size)
    limits = (exported.tolerance, MOST_UNMATCHED)
    with tempfile.TemporaryDirectory(dir=folder, prefix='unchecked_') as scratch:
        draft = str(Path(scratch, 'draft.pt2' if format == 'torch' else 'draft.onnx'))
        with exportable(exported.module, format) as twin:
            run = (_write_torch if format == 'torch' else _write_onnx)(twin, exported, draft, size)
            deviations = compare(exported, run, compared)
            _accept(deviations, *limits, target)
            if precision != 'fp32':
                limits = (float('inf'), REDUCED_UNMATCHED)
                full, draft = draft, str(Path(scratch, f'{precision}.onnx'))
                if precision == 'fp16':
                    with torch.autocast('cpu', torch.float16, cache_enabled=False):
                        run = _write_onnx(_Full(twin), exported, draft, size)
                else:
                    write_int8(full, draft, [sample.numpy() for sample in samples])
                    run = _open_onnx(draft, exported)
                deviations = compare(exported, run, compared)
                _accept(deviations, *limits, target)
        if format == 'openvino':
            draft = _convert_to_openvino(draft)
            deviations = compare(exported, _open_openvino(draft), compared)
            _accept(deviations, *limits, target)
            os.replace(Path(draft).with_suffix('.bin'), Path(target).with_suffix('.bin'))
        os.replace(draft, target)
    return deviations


def _accept(deviations: Sequence[Deviation], tolerance: float, most_unmatched: float, target: str) -> None:
    """Refuse a file whose outputs deviate too much.

    Raises:
        UsageError: If a deviation is above its limit.
    """
    worst = max(deviations, key=lambda deviation: deviation.relative)
    if not worst.relative <= tolerance:
        raise UsageError(
            f'the exported model deviates by {worst.relative:.1e} for images {worst.shape}, more than '
            f'{tolerance:.0e}; {target} was not written'
        )
    total = sum(max(deviation.detections or 0, 1) for deviation in deviations)  # those that PyTorch lacks count too
    unmatched = sum(deviation.unmatched * max(deviation.detections or 0, 1) for deviation in deviations)
    if unmatched > most_unmatched * total:
        raise UsageError(
            f'{unmatched / total:.0%} of {total} detections have no match in class and box between PyTorch and the '
            f'exported model, more than {most_unmatched:.0%}; {target} was not written'
        )


def _require(format: str) -> None:
    if format == 'torch':
        if digit_version(torch.__version__) < digit_version('2.6'):
            raise UsageError(
                f'torch.export of models for any image size needs PyTorch 2.6 or later, this is {torch.__version__}; '
                f'export to ONNX instead'
            )
        return
    packages = ['onnx', 'onnxruntime', *(['openvino'] if format == 'openvino' else [])]
    missing = [name for name in packages if not find_spec(name)]
    if missing:
        raise UsageError(f'{" and ".join(missing)} is not installed: pip install {" ".join(packages)}')


class _Classifier(nn.Module):
    output_names, answer_names = ('logits',), ('scores',)
    crops = True  # pixels outside the crop do not affect the outputs

    def __init__(self, model):
        super().__init__()
        self.model, self.classes = model, model.dataset_meta.get('classes')

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        return (self.model.head(self.model.extract_feat(images)),)

    def answer(self, images: Tensor, size: Tensor) -> Tuple[Tensor, ...]:
        """(1, channels, h, w) -> scores (classes,)."""
        logits = self(images)[0][0]
        return (logits.sigmoid() if activation_of(self.model) == 'sigmoid' else logits.softmax(-1),)


class _Segmentor(nn.Module):
    output_names, answer_names = ('logits',), ('labels',)

    def __init__(self, model):
        super().__init__()
        self.model, self.classes = model, model.dataset_meta.get('classes')

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        logits = self.model.decode_head(self.model.extract_feat(images))
        return (self._resize(logits, images.shape[2:]),)

    def answer(self, images: Tensor, size: Tensor) -> Tuple[Tensor, ...]:
        """(1, channels, h, w) -> the class of each pixel of an image of size (2,): (H, W)."""
        return (self._resize(self(images)[0], tuple(size.unbind()))[0].argmax(0),)

    def _resize(self, logits: Tensor, size) -> Tensor:
        return F.interpolate(logits, size=size, mode='bilinear', align_corners=self.model.decode_head.align_corners)


class _Backbone(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.backbone = model.backbone
        self.classes = model.dataset_meta.get('classes')
        self.output_names = (
            tuple(f'stride_{stride}' for stride in self.backbone.out_strides)
            if self.backbone.out_type == 'pyramid'
            else tuple(f'features_{i}' for i in range(len(self.backbone.out_indices)))
        )

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        return self.backbone(images)


class Exported(NamedTuple):
    """A model ready to be traced and written.

    Attributes:
        module (nn.Module): From the input to a tuple of tensors, named ``module.output_names``.
        inputs (Inputs): The inputs that it takes.
        expect (Callable): From an input to the outputs of the library itself.
        metadata (dict): What users of the file need to know about its input and outputs.
    """

    module: nn.Module
    inputs: Inputs
    expect: Callable[[Tensor], Sequence[Tensor]]
    metadata: Dict[str, object]

    @property
    def tolerance(self) -> float:
        """The largest deviation that counts as equal."""
        return LOOSE_TOLERANCE if self.inputs.one_by_one else TOLERANCE


def load_exported(model: str, checkpoint: Optional[str], part: str = 'model', from_pixels: bool = False) -> Exported:
    """Build the model with its weights, as a module that can be traced.

    Raises:
        UsageError: If there is no such model, or its kind cannot be exported.
        CheckpointError: If the checkpoint does not fit.
    """
    cfg, checkpoint = choose(model, checkpoint)
    scope = cfg.get('default_scope')
    task = 'features' if part == 'backbone' else TASKS.get(scope)
    if task is None:
        raise UsageError(f'of models of {scope} the backbone alone can be exported (--part backbone)')
    if task == 'detection':
        use_large_images(cfg)  # as inference and testing do
    built = build(cfg, checkpoint).requires_grad_(False)
    read = model_input(cfg)
    if task == 'detection':
        from .export_detector import Detector as wrapper
    else:
        wrapper = {'features': _Backbone, 'classification': _Classifier, 'segmentation': _Segmentor}[task]
    module: nn.Module = wrapper(built).eval()
    channels = channels_of(module)
    metadata = {
        'task': task,
        'input': 'pixels' if from_pixels else 'images',
        'channels': channels,
        'channel_order': {1: 'grey', 3: read.order, 4: f'{read.reader.order}A'}.get(channels, 'as loaded'),
        # Of each channel in that order: the model takes (pixels - mean) / std.
        'mean': list(read.mean) or [0.0] * channels,
        'std': list(read.std) or [1.0] * channels,
        # How the files were read that it was trained on, and what was done to them before that.
        'loading': {key: value for key, value in read.reader.settings.items() if key != 'backend_args'},
        'pipeline': [str(transform) for transform in read.reader.rest.transforms],
        'classes': list(module.classes or ()),
        'config': config_for_file(cfg, built),  # for Inferencer
    }
    inputs = Inputs(channels, read, one_by_one=task == 'detection' or from_pixels)
    if from_pixels:
        module = _from_pixels(module, read, channels)
        inputs = PixelInputs(channels, read, one_by_one=True)
        metadata.update(mean=[0.0] * channels, std=[1.0] * channels)
        if channels == 3:
            metadata['channel_order'] = 'RGB'
        return Exported(module, inputs, lambda pixels: answer_of(built, read, pixels), metadata)
    if task == 'detection':
        return Exported(module, inputs, lambda images: detections_of(built, images), metadata)
    return Exported(module, inputs, module, metadata)


class _Full(nn.Module):
    """Convert floating-point outputs of a module to fp32."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, given: Tensor) -> Tuple[Tensor, ...]:
        return tuple(output.float() if output.is_floating_point() else output for output in self.module(given))


def _from_pixels(module: nn.Module, read: ModelInput, channels: int) -> nn.Module:
    from .export_image import FromPixels

    if not hasattr(module, 'answer'):
        raise UsageError('features are those of the resized image: --from-pixels is for whole models')
    if isinstance(module, _Segmentor):
        mode = module.model.test_cfg.get('mode', 'whole')
        if mode != 'whole' or module.model.out_channels < 2:
            raise UsageError(
                f'a file from pixels is for segmentors of two or more classes that see the whole image; this one has '
                f'{module.model.out_channels} and the mode {mode!r}. Export without --from-pixels'
            )
    return FromPixels(module, read, channels).eval()


@contextmanager
def exportable(module: nn.Module, format: str) -> Iterator[nn.Module]:
    """Yield a copy of the model that traces for any size: pooling as matmuls, sizes that stay variables."""
    twin = copy.deepcopy(module)
    for name, child in list(twin.named_modules()):
        if isinstance(child, nn.AdaptiveAvgPool2d):
            parent = twin.get_submodule(name.rpartition('.')[0])
            setattr(parent, name.rpartition('.')[2], _AdaptivePool(child.output_size))
        elif type(child).__name__ == 'Upsample' and getattr(child, 'scale_factor', None) and not child.size:
            # MMSegmentation's rounds the size to an int, which would be a constant of the graph.
            parent = twin.get_submodule(name.rpartition('.')[0])
            options = dict(mode=child.mode, align_corners=child.align_corners)
            setattr(parent, name.rpartition('.')[2], nn.Upsample(scale_factor=child.scale_factor, **options))
        elif isinstance(child, nn.MaxPool2d) and format == 'torch':
            parent = twin.get_submodule(name.rpartition('.')[0])
            setattr(parent, name.rpartition('.')[2], _BlockMax(child.kernel_size))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # tracing warns of every constant
        yield twin


class _AdaptivePool(nn.Module):
    """:class:`torch.nn.AdaptiveAvgPool2d` as two matmuls, since exporters support it for fixed sizes only.

    Output i of n averages the inputs floor(i L / n) ... ceil((i + 1) L / n) - 1, separately along each axis.
    """

    def __init__(self, output_size):
        super().__init__()
        sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, n, m)."""
        rows, columns = (self._weights(n, x, dim) for n, dim in zip(self.sizes, (2, 3)))
        return rows @ x @ columns.t()

    @staticmethod
    def _weights(n: int, x: Tensor, dim: int) -> Tensor:
        # The length as a tensor, so that it stays a variable of the graph.
        place = torch.cumsum(torch.ones_like(x[0, 0].select(3 - dim, 0)), 0).long() - 1
        length = place[-1] + 1
        output = torch.arange(n, device=x.device)
        begin = (output * length).div(n, rounding_mode='floor')
        end = ((output + 1) * length + n - 1).div(n, rounding_mode='floor')
        inside = ((place >= begin[:, None]) & (place < end[:, None])).to(x.dtype)
        return inside / inside.sum(1, keepdim=True)


class _BlockMax(nn.Module):
    """:class:`torch.nn.MaxPool2d` of non-overlapping windows, without a branch for each remainder of the size."""

    def __init__(self, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // k, W // k)."""
        k = self.kernel_size
        B, C, H, W = x.shape
        rows, columns = H // k, W // k
        return x[:, :, : rows * k, : columns * k].reshape(B, C, rows, k, columns, k).amax((3, 5))


def _write_onnx(module: nn.Module, exported: Exported, path: str, size: Tuple[int, int]) -> Run:
    import onnx

    example = exported.inputs.example(size)
    with torch.no_grad():
        outputs = module(example)
    names = exported.module.output_names
    legacy = {'dynamo': False} if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    try:
        torch.onnx.export(
            module,
            (example,),
            path,
            input_names=[exported.inputs.name],
            output_names=list(names),
            dynamic_axes={exported.inputs.name: exported.inputs.axes, **_free_axes(names, outputs, exported)},
            opset_version=OPSET,
            **legacy,
        )
    except Exception as error:
        raise UsageError(f'PyTorch cannot export this model to ONNX: {str(error).splitlines()[0]}') from error
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in exported.metadata.items()})
    onnx.checker.check_model(graph)
    onnx.save(graph, path)
    return _open_onnx(path, exported)


def _open_onnx(path: str, exported: Exported) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda given: [torch.from_numpy(out) for out in session.run(None, {exported.inputs.name: given.numpy()})]


def _convert_to_openvino(path: str) -> str:
    """Write an ONNX file as OpenVINO's .xml and .bin beside it, with its metadata.

    As it is read: of the transformations of ``openvino.convert_model``, ``SDPAFusion`` (2026.4) breaks the graph of XCA
    whose temperatures are all 1, since it takes the norms of the keys for the scale of an attention, which is a scalar.

    Returns:
        str: The .xml file.
    """
    import openvino

    target = str(Path(path).with_suffix('.xml'))
    openvino.save_model(openvino.Core().read_model(path), target, compress_to_fp16=False)
    return target


def _open_openvino(path: str) -> Run:
    deployed = Deployed(path, 'openvino')
    return lambda given: [torch.from_numpy(out) for out in deployed(given.numpy()).values()]


def _free_axes(names: Sequence[str], outputs: Sequence[Tensor], exported: Exported) -> Dict[str, Dict[int, str]]:
    """Names of the dynamic axes of the outputs."""
    task, from_pixels = exported.metadata['task'], exported.metadata['input'] == 'pixels'
    if task == 'detection':
        sides = {1: 'height', 2: 'width'}
        return {name: {0: 'detections', **(sides if name == 'masks' else {})} for name in names}
    if from_pixels:
        return {'labels': {0: 'height', 1: 'width'}} if task == 'segmentation' else {}
    axes: Dict[str, Dict[int, str]] = {}
    for name, output in zip(names, outputs):
        axes[name] = {0: 'batch', **({2: f'{name}_height', 3: f'{name}_width'} if output.dim() == 4 else {})}
        if output.dim() == 3:
            axes[name][1] = 'tokens'
    return axes


def _write_torch(module: nn.Module, exported: Exported, path: str, size: Tuple[int, int]) -> Run:
    import torch.fx.experimental._config as shapes_config

    size_free = getattr(shapes_config, 'backed_size_oblivious', None) is not None
    free = torch.export.Dim.AUTO
    try:
        # No special case for a size of one: one graph serves all sizes.
        with shapes_config.patch(backed_size_oblivious=True) if size_free else nullcontext():
            program = torch.export.export(
                module,
                (exported.inputs.example(size),),
                dynamic_shapes={'images': {0: free, 2: free, 3: free}},
                strict=False,
            )
    except Exception as error:
        raise UsageError(f'PyTorch cannot export this model: {str(error).splitlines()[0]}') from error
    # The remaining guards are choices of memory layout made for the example. They do not affect the results, and would
    # refuse a batch of one. Running other sizes shows that these are right.
    program._guards_code = []
    about = {**exported.metadata, 'outputs': list(exported.module.output_names)}
    torch.export.save(program, path, extra_files={'metadata.json': json.dumps(about)})
    loaded = torch.export.load(path).module()
    return lambda images: loaded(images)
