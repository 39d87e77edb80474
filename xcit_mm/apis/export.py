"""Export to ONNX and to torch.export for any batch and image size, compared with the model before it counts as done."""

import copy
import inspect
import json
import os
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.utils import digit_version
from torch import Tensor, nn

from ..datasets.reading import channels_of, model_input
from ..errors import UsageError
from .model import build, choose

FORMATS = ('onnx', 'torch')
PARTS = ('model', 'backbone')
OPSET = 17
SMALLEST = 32  # pixels; below that the pyramid of a patch size is padded, which the exported graph does not do
LARGEST = 8192
TOLERANCE = 1e-4


class Deviation(NamedTuple):
    """How far an exported model is from PyTorch's for one input.

    Attributes:
        shape (tuple[int, ...]): Of the images, (B, channels, H, W).
        relative (float): Largest difference over the largest value of that output, the largest of all outputs.
    """

    shape: Tuple[int, ...]
    relative: float


def export_model(
    model: str,
    checkpoint: Optional[str],
    target: str,
    format: str = 'onnx',
    part: str = 'model',
    size: Tuple[int, int] = (224, 224),
) -> List[Deviation]:
    """Export a classifier, a segmentor, or the backbone of any model.

    The exported model takes normalised 'images' (B, channels, H, W) in fp32, of any batch and of any size from 32 x 32
    pixels. A classifier gives 'logits' (B, classes); a segmentor 'logits' (B, classes, H, W); a backbone its
    features: 'stride_4', 'stride_8' and so on for each of its ``out_strides`` with a pyramid, else 'features_0' and so
    on. The metadata say which images it takes: 'channels'; 'channel_order': 'RGB', 'BGR', 'grey', 'BGRA' or 'as
    loaded'; 'mean' and 'std' in that order; 'loading', the config's step that reads files; and 'classes'.

    Args:
        model (str): A config file, or a name of :func:`xcit_mm.list_models`.
        checkpoint (str, optional): File or address; the published weights of a name if not given.
        target (str): The file to write.
        format (str): 'onnx', or 'torch' for a file of :func:`torch.export.save`.
        part (str): 'model' or 'backbone'.
        size (tuple[int, int]): Height and width that the graph is recorded at. They decide nothing but which of two
            equal forms of the attention is written into it: choose what the model will be used at.

    Returns:
        list[Deviation]: From PyTorch, for several batches and sizes; all at most 1e-4.

    Raises:
        UsageError: If the arguments are wrong, the model cannot be exported, a package is missing, or the exported
            model deviates by more; then no file is left behind.
    """
    if format not in FORMATS or part not in PARTS:
        raise UsageError(f'format must be one of {FORMATS} and part one of {PARTS}; got {format!r} and {part!r}')
    if min(size) < SMALLEST or max(size) > LARGEST:
        raise UsageError(f'the size must be between {SMALLEST} and {LARGEST} pixels, got {size[0]}x{size[1]}')
    _require(format)
    suffix = {'onnx': '.onnx', 'torch': '.pt2'}[format]
    if not str(target).endswith(suffix):
        raise UsageError(f'the file to write must end with {suffix}, got {target}')
    folder = Path(target).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f'the folder {folder} does not exist or cannot be written to')
    module, metadata = load_module(model, checkpoint, part)
    draft = str(Path(target).with_name(f'unchecked_{Path(target).name}'))
    try:
        with exportable(module, size, format) as twin:
            write = _write_onnx if format == 'onnx' else _write_torch
            run = write(twin, module.output_names, draft, size, metadata)
        deviations = compare(module, run, size)
        worst = max(deviations, key=lambda deviation: deviation.relative)
        if not worst.relative <= TOLERANCE:
            raise UsageError(
                f'the exported model deviates by {worst.relative:.1e} for images {worst.shape}, more than '
                f'{TOLERANCE:.0e}; {target} was not written'
            )
        os.replace(draft, target)
    finally:
        if os.path.exists(draft):
            os.remove(draft)
    return deviations


def _require(format: str) -> None:
    if format == 'torch':
        if digit_version(torch.__version__) < digit_version('2.6'):
            raise UsageError(
                f'torch.export of models for any image size needs PyTorch 2.6 or later, this is {torch.__version__}; '
                f'export to ONNX instead'
            )
        return
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UsageError(f'{error.name} is not installed: pip install onnx onnxruntime') from None


class _Classifier(nn.Module):
    output_names = ('logits',)

    def __init__(self, model):
        super().__init__()
        self.model, self.classes = model, model.dataset_meta.get('classes')

    def forward(self, images: Tensor) -> Tuple[Tensor]:
        return (self.model.head(self.model.extract_feat(images)),)


class _Segmentor(nn.Module):
    output_names = ('logits',)

    def __init__(self, model):
        super().__init__()
        self.model, self.classes = model, model.dataset_meta.get('classes')

    def forward(self, images: Tensor) -> Tuple[Tensor]:
        logits = self.model.decode_head(self.model.extract_feat(images))
        align_corners = self.model.decode_head.align_corners
        return (F.interpolate(logits, size=images.shape[2:], mode='bilinear', align_corners=align_corners),)


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


def load_module(model: str, checkpoint: Optional[str], part: str) -> Tuple[nn.Module, Dict[str, object]]:
    """Build the model with its weights, as a module from images to a tuple of tensors; and what users of it must know.

    Raises:
        UsageError: If there is no such model, or its kind cannot be exported.
        CheckpointError: If the checkpoint does not fit.
    """
    cfg, checkpoint = choose(model, checkpoint)
    scope = cfg.get('default_scope')
    wrapper = _Backbone if part == 'backbone' else {'mmpretrain': _Classifier, 'mmseg': _Segmentor}.get(scope)
    if wrapper is None:
        raise UsageError(
            f'of models of {scope} the backbone alone can be exported (--part backbone): boxes and masks are found by '
            f'code that depends on the image. MMDeploy exports whole detectors'
        )
    module = wrapper(build(cfg, checkpoint).requires_grad_(False)).eval()
    channels = channels_of(module)
    read = model_input(cfg)
    metadata = {
        'channels': channels,
        'channel_order': {1: 'grey', 3: read.order, 4: f'{read.reader.order}A'}.get(channels, 'as loaded'),
        # Of each channel in that order: the model takes (pixels - mean) / std.
        'mean': list(read.mean) or [0.0] * channels,
        'std': list(read.std) or [1.0] * channels,
        # How the files were read that it was trained on.
        'loading': {key: value for key, value in read.reader.settings.items() if key != 'backend_args'},
        'classes': list(module.classes or ()),
    }
    return module, metadata


@contextmanager
def exportable(module: nn.Module, size: Tuple[int, int], format: str):
    """A copy of the model with what graphs of any size need: one form of XCA, and pooling as matrix products."""
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
        warnings.simplefilter('ignore')  # of every number that is a constant in the graph
        yield twin


class _AdaptivePool(nn.Module):
    """:class:`torch.nn.AdaptiveAvgPool2d` as two matrix products, since exporters know it for fixed sizes alone.

    Output i of n averages the inputs floor(i L / n) ... ceil((i + 1) L / n) - 1, along each axis by itself.
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
    """:class:`torch.nn.MaxPool2d` of windows side by side, without a case for every remainder of the size."""

    def __init__(self, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // k, W // k)."""
        k = self.kernel_size
        B, C, H, W = x.shape
        rows, columns = H // k, W // k
        return x[:, :, : rows * k, : columns * k].reshape(B, C, rows, k, columns, k).amax((3, 5))


Run = Callable[[Tensor], Sequence[Tensor]]


def _write_onnx(module: nn.Module, names: Sequence[str], path: str, size, metadata: Dict[str, object]) -> Run:
    import onnx
    import onnxruntime

    axes = {'images': {0: 'batch', 2: 'height', 3: 'width'}}
    images = torch.randn(2, channels_of(module), *size)
    with torch.no_grad():
        outputs = module(images)
    for name, output in zip(names, outputs):
        axes[name] = {0: 'batch', **({2: f'{name}_height', 3: f'{name}_width'} if output.dim() == 4 else {})}
        if output.dim() == 3:
            axes[name][1] = 'tokens'
    legacy = {'dynamo': False} if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    try:
        torch.onnx.export(
            module,
            (images,),
            path,
            input_names=['images'],
            output_names=list(names),
            dynamic_axes=axes,
            opset_version=OPSET,
            **legacy,
        )
    except Exception as error:
        raise UsageError(f'PyTorch cannot export this model to ONNX: {str(error).splitlines()[0]}') from error
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(graph)
    onnx.save(graph, path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {'images': images.numpy()})]


def _write_torch(module: nn.Module, names: Sequence[str], path: str, size, metadata: Dict[str, object]) -> Run:
    import torch.fx.experimental._config as shapes_config

    size_free = getattr(shapes_config, 'backed_size_oblivious', None) is not None
    free = torch.export.Dim.AUTO
    try:
        # No case for sizes of one: a graph for any size.
        with shapes_config.patch(backed_size_oblivious=True) if size_free else nullcontext():
            program = torch.export.export(
                module,
                (torch.randn(2, channels_of(module), *size),),
                dynamic_shapes={'images': {0: free, 2: free, 3: free}},
                strict=False,
            )
    except Exception as error:
        raise UsageError(f'PyTorch cannot export this model: {str(error).splitlines()[0]}') from error
    # What is left are the choices of memory layout made for the example, which decide nothing about the results; as
    # conditions they would refuse a batch of one. That other sizes are right is shown by running them.
    program._guards_code = []
    torch.export.save(program, path, extra_files={'metadata.json': json.dumps({**metadata, 'outputs': list(names)})})
    loaded = torch.export.load(path).module()
    return lambda images: loaded(images)


def compare(module: nn.Module, run: Run, size: Tuple[int, int]) -> List[Deviation]:
    """Run the exported model and PyTorch's on random images: the recorded size and batch, and others of both."""
    height, width = size
    odd = (max(SMALLEST, height * 3 // 4 + 5), max(SMALLEST, width * 5 // 4 - 3))
    half = (max(SMALLEST, height // 2), width * 2)
    channels = channels_of(module)
    shapes = [(batch, channels, *sides) for batch, sides in ((2, size), (1, size), (3, odd), (1, half))]
    found = []
    for seed, shape in enumerate(shapes):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = module(images)
        try:
            actual = run(images)
        except Exception as error:
            raise UsageError(f'the exported model fails for images {shape}: {str(error).splitlines()[0]}') from error
        differences = [
            ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()
            if ours.shape == theirs.shape
            else float('inf')
            for ours, theirs in zip(actual, expected)
        ]
        found.append(Deviation(shape, max(differences) if len(actual) == len(expected) else float('inf')))
    return found
