"""Read images as a config does, for inference, export, attention maps and drawings.

The loading step of the test pipeline decodes the image, with its bit depth, channels, channel order and decoder, so the
model sees what it sees in testing.
"""

import ast
import copy
import io
import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..errors import UsageError
from .config import find_loaders, find_type, innermost_datasets
from .loading import BadImage, LoadImageFromFile, decode, read_bytes, widen

ORDERS = ('BGR', 'RGB')
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
DEPTHS = (8, 10, 12, 14, 16)  # bit depths of cameras and scanners
# Modes that PNG can store; all others are converted to RGB.
PNG_MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I', 'I;16', 'I;16B')
_ANNOTATIONS = re.compile(r'Load\w*(Ann|Map|Label|Mask|Proposal|Depth)')


def test_pipeline(cfg: Config) -> List[dict]:
    """The pipeline that a config tests with; [] if it has none."""
    loaders = find_loaders(cfg)
    for split in ('test', 'val'):
        for dataset in innermost_datasets(loaders[split]['dataset']) if split in loaders else ():
            if dataset.get('pipeline'):
                return list(dataset['pipeline'])
    return []


class Reader:
    """The loading of a test pipeline, and the rest of it without annotations.

    Args:
        pipeline (Sequence[dict]): The test pipeline of a config.
        scope (str): The library that its transforms are from.

    Attributes:
        order (str): 'BGR' or 'RGB': of the first three channels of what is read.
        rest (Compose): From what :meth:`read` returns to what the model takes.

    Raises:
        UsageError: If no step loads an image.
    """

    def __init__(self, pipeline: Sequence[dict], scope: str = 'mmengine'):
        steps = [step for step in copy.deepcopy(list(pipeline)) if not loads_annotations(step, scope)]
        place = loading_step(steps, scope)
        self.settings = dict(steps[place])
        with DefaultScope.overwrite_default_scope(scope):
            self.load = self._build(find_type(TRANSFORMS, self.settings['type'], scope), self.settings)
            self.rest = Compose([*steps[:place], *steps[place + 1 :]])
        self.is_plain = isinstance(self.load, LoadImageFromFile)
        self.color_type = getattr(self.load, 'color_type', 'color')
        self.order = 'RGB' if self._backend == 'tifffile' else 'BGR'

    @staticmethod
    def _build(kind: Any, settings: dict):
        settings = {key: value for key, value in settings.items() if key not in ('type', 'report', '_scope_')}
        if kind is MMCVLoadImageFromFile and not settings.get('file_client_args'):
            # The same, and it says why a file is not an image.
            settings = {k: v for k, v in settings.items() if k not in ('file_client_args', 'ignore_empty')}
            return LoadImageFromFile(**settings)
        return TRANSFORMS.build(dict(settings, type=kind))

    @property
    def _backend(self) -> str:
        return getattr(self.load, 'imdecode_backend', 'cv2')

    def read(self, source, channel_order: str = 'BGR') -> dict:
        """Read an image.

        Args:
            source (str | Path | bytes | np.ndarray | PIL.Image.Image): A file; the content of one; or an image, which
                is read as a file of these pixels would be.
            channel_order (str): 'BGR' or 'RGB', of an array of three or four channels.

        Returns:
            dict: 'img' (H, W) or (H, W, channels), 'img_shape', 'ori_shape' and 'img_path', for :attr:`rest`.

        Raises:
            BadImage: If there is no image in it, or one that the config does not read.
        """
        if isinstance(source, (str, os.PathLike)):
            return self._read_file(os.fspath(source))
        if isinstance(source, bytes):
            return self._read_content(source)
        if isinstance(source, Image.Image):
            return self._read_pil(source)
        return self._read_array(np.asarray(source), channel_order)

    def _read_file(self, path: str) -> dict:
        results = dict(img_path=path, img_id=0, seg_fields=[])
        if not self.is_plain:
            try:
                results = self.load(results)
            except MemoryError:
                raise
            except Exception as error:  # a custom transform, or one of an optional library
                name = type(self.load).__name__
                raise BadImage(f'{name} of the config fails ({type(error).__name__}: {error})') from None
            if not isinstance((results or {}).get('img'), np.ndarray):
                raise BadImage(f'{type(self.load).__name__} of the config gives no image')
            return results
        try:
            image = self.load._read(path, {})
        except BadImage as error:
            image = self._read_by_pillow(path, error)
        return self._results(image, results)

    def _read_by_pillow(self, path: str, error: BadImage) -> np.ndarray:
        """Read formats that only Pillow knows: convert to a lossless file for the config's decoder."""
        try:
            with Image.open(path) as image:
                if image.format in ('JPEG', 'PNG', 'BMP', 'TIFF'):  # every decoder reads these: the file is damaged
                    raise error
                with _file(self._encode(image)) as copied:
                    return self.load._read(copied, {})
        except Exception:
            raise error from None

    def _read_content(self, content: bytes) -> dict:
        if not content:
            raise BadImage('it is empty')
        with _file(content) as path:
            return dict(self._read_file(path), img_path='')

    def _read_pil(self, image: Image.Image) -> dict:
        try:
            if 'ignore_orientation' not in self.color_type and self.color_type != 'unchanged':
                image = ImageOps.exif_transpose(image)
            if image.mode == 'F':
                return self._read_array(np.array(image), 'BGR')
            content = self._encode(image)
        except OSError as error:  # truncated, although Pillow could open it
            raise BadImage(f'it is cut off or damaged ({error})') from None
        return self._read_content(content)

    def _encode(self, image: Image.Image) -> bytes:
        out = io.BytesIO()
        image = image if image.mode in PNG_MODES else image.convert('RGB')
        image.save(out, 'TIFF' if self._backend == 'tifffile' else 'PNG', compress_level=0)
        return out.getvalue()

    def _read_array(self, array: np.ndarray, channel_order: str) -> dict:
        if channel_order not in ORDERS:
            raise UsageError(f"channel_order must be 'BGR' or 'RGB', got {channel_order!r}")
        what = f'an array of shape {array.shape} and type {array.dtype}'
        if array.ndim not in (2, 3) or array.dtype.kind not in 'uif':
            raise BadImage(f'{what} is no image; expected (H, W) or (H, W, channels) of numbers')
        if not array.size:
            raise BadImage(f'{what} is empty')
        channels = 1 if array.ndim == 2 else array.shape[2]
        if channels >= 3 and channel_order != self.order:
            array = array[..., [2, 1, 0, *range(3, channels)]]
        array = np.ascontiguousarray(array)
        if not self.is_plain:
            return self._results(array)
        if array.dtype in (np.uint8, np.uint16) and channels in (1, 3, 4):
            if array.dtype == np.uint8 and channels == 3 and not self.color_type.startswith('grayscale'):
                return self._results(array)  # as a file of it would be read
            stored = array if self.order == 'BGR' or channels < 3 else array[..., [2, 1, 0, *range(3, channels)]]
            kind = '.tiff' if self._backend == 'tifffile' else '.png'
            return self._read_content(cv2.imencode(kind, stored)[1].tobytes())
        if self.color_type == 'unchanged' or (array.dtype.kind == 'f' and self.load.to_float32):
            return self._results(array)
        raise BadImage(f'{what} is not what the config reads: give uint8, from 0 to 255, of 1, 3 or 4 channels')

    def _results(self, image: np.ndarray, results: Optional[dict] = None) -> dict:
        if getattr(self.load, 'to_float32', False):
            image = image.astype(np.float32)
        given = results or dict(img_path='', img_id=0, seg_fields=[])
        return dict(given, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])

    def picture(self, path: str, shape: Tuple[int, int]) -> np.ndarray:
        """A file as :func:`to_picture` shows it, in the shape (H, W) that a data set read; grey if it is no image."""
        try:
            image = self.read(path)['img']
        except BadImage:
            return np.full((*shape, 3), 128, np.uint8)
        if self.is_plain and image.shape[:2] != tuple(shape) and image.shape[1::-1] == tuple(shape):
            # The annotations are those of the picture as it is stored, and so the data set read it.
            content = read_bytes(path, self.load.backend_args)
            image = decode(content, f'{self.color_type}_ignore_orientation', self._backend)
        if image.shape[:2] != tuple(shape):
            image = widen(image)
        if image.shape[:2] != tuple(shape):
            image = cv2.resize(image, tuple(shape)[::-1])
        return to_picture(image, self.order)


@contextmanager
def _file(content: bytes):
    """A temporary file with that content."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'image')
        Path(path).write_bytes(content)
        yield path


def loading_step(steps: Sequence[dict], scope: str) -> int:
    """Index of the step that loads the image.

    Raises:
        UsageError: If there is none.
    """
    for place, step in enumerate(steps):
        kind = find_type(TRANSFORMS, step['type'], scope)
        if kind and kind.__name__.startswith('Load') and not loads_annotations(step, scope):
            return place
    raise UsageError(
        f'no step of the test pipeline loads an image; it has {", ".join(str(step["type"]) for step in steps)}'
    )


def loads_annotations(step: dict, scope: str) -> bool:
    """Whether a step of a pipeline reads annotations."""
    kind = find_type(TRANSFORMS, step['type'], scope)
    name = kind.__name__ if kind else str(step['type']).split('.')[-1]
    return bool(_ANNOTATIONS.match(name))


def to_picture(image: np.ndarray, order: str = 'BGR') -> np.ndarray:
    """Convert what was read, of any depth and number of channels, to (H, W, 3) uint8, RGB, for display.

    16-bit images, and floats above 255, are scaled by the number of bits that their largest value needs; floats up to
    1 by 255.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] < 3:
        image = np.repeat(image[..., :1], 3, axis=2)
    else:
        image = image[..., 2::-1] if order == 'BGR' else image[..., :3]
    if image.dtype != np.uint8:
        is_float = image.dtype.kind == 'f'
        image = image.astype(np.float32)
        low, high = float(np.nanmin(image)), float(np.nanmax(image))
        if low < 0:
            image, high = image - low, high - low
        if is_float and high <= 1:
            image = image * 255
        elif high > 255:
            image = image * (255 / (2 ** next((bits for bits in DEPTHS if high < 2**bits), np.log2(high + 1)) - 1))
        image = np.nan_to_num(image).clip(0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(image)


class ModelInput(NamedTuple):
    """How pixels become a model's input.

    Attributes:
        reader (Reader): Reads the files.
        order (str): Order of the channels that the model sees, 'RGB' or 'BGR'.
        mean, std (tuple[float, ...]): Subtracted and divided by, per channel in that order; () for none.
    """

    reader: Reader
    order: str
    mean: Tuple[float, ...]
    std: Tuple[float, ...]

    def tensor(self, image: np.ndarray, device: Union[str, torch.device] = 'cpu') -> Tensor:
        """What the reader reads -> (1, channels, H, W), normalised."""
        image = image[..., None] if image.ndim == 2 else image
        if image.shape[2] == 3 and self.order != self.reader.order:
            image = image[..., ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(image).astype(np.float32)).to(device).permute(2, 0, 1)
        if self.mean:
            mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
            pixels = (pixels - mean) / std
        return pixels[None]


def model_input(cfg: Optional[Config] = None) -> ModelInput:
    """How a config's images are read and normalised; without one, colour images, normalised as for ImageNet.

    Raises:
        UsageError: If no step of the config's test pipeline loads an image.
    """
    if cfg is None:
        return ModelInput(Reader([dict(type='LoadImageFromFile')]), 'RGB', IMAGENET_MEAN, IMAGENET_STD)
    reader = Reader(test_pipeline(cfg) or [dict(type='LoadImageFromFile')], cfg.get('default_scope') or 'mmengine')
    preprocessor = preprocessor_of(cfg)
    mean, std = (tuple(map(float, preprocessor.get(key) or ())) for key in ('mean', 'std'))
    return ModelInput(reader, model_order(preprocessor, reader.order), mean, std)


def channels_of(model: nn.Module) -> Optional[int]:
    """Input channels of a model's first convolution; None if it has no convolution."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return None if first is None else first.in_channels


def preprocessor_of(cfg: Config) -> dict:
    """The data preprocessor of a config; MMPretrain keeps it beside the model."""
    return dict((cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {})


def model_order(preprocessor: dict, read: str) -> str:
    """The order of the three colours that a model sees, from the one that they are read in."""
    turns = any(preprocessor.get(key) for key in ('bgr_to_rgb', 'rgb_to_bgr', 'to_rgb'))
    return read if not turns else next(order for order in ORDERS if order != read)


KEYS_OF_IMAGES = ('data_preprocessor', 'default_scope', 'model', 'test_dataloader', 'val_dataloader')


def config_in_checkpoint(checkpoint: dict) -> Optional[Config]:
    """Parse the parts about images of the config in a checkpoint's meta, without running it."""
    text = (checkpoint.get('meta') or {}).get('cfg')
    if not isinstance(text, str):
        return None
    found = {}
    try:
        for node in ast.parse(text).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id in KEYS_OF_IMAGES:
                found[target.id] = _value(node.value)
    except (SyntaxError, ValueError, AttributeError, TypeError):
        return None
    loaders = (found.get(f'{split}_dataloader') for split in ('test', 'val'))
    return Config(ConfigDict(found)) if any(isinstance(loader, dict) for loader in loaders) else None


def _value(node: ast.expr):
    """The value of an expression of literals and ``dict(...)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {item.arg: _value(item.value) for item in node.keywords}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values) if key is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)
