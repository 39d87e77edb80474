"""The test pipeline inside the graph: uint8 pixels of any image in, answers in its own pixels out.

Resizing is the pipeline's: OpenCV's bilinear interpolation in its fixed-point arithmetic, bit for bit; Pillow's filters
with its rounding between the two axes, where one value in a thousand differs by one.
"""

from typing import Callable, Tuple

import torch
from mmcv.transforms import CenterCrop, Resize
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

from ..datasets.reading import ModelInput
from ..errors import UsageError

Step = Callable[[Tensor], Tensor]


class FromPixels(nn.Module):
    """Pixels (H, W, channels) uint8 -> the model's answer for that image, through its test pipeline.

    Colour images are RGB, whatever order the model and its pipeline use.

    Args:
        module (nn.Module): With ``answer(images, size)``: normalised images (1, channels, h, w) and the size (2,) int64
            of the original -> the outputs ``answer_names``.
        read (ModelInput): How the config's images are read and normalised.
        channels (int): Channels of an image.

    Raises:
        UsageError: If the pipeline has a step that is not implemented here.
    """

    def __init__(self, module: nn.Module, read: ModelInput, channels: int):
        super().__init__()
        if not read.reader.is_plain or read.reader.settings.get('to_float32') or max(read.mean or (0,)) > 255:
            raise UsageError(
                f'the pixels of this config are not uint8 ({read.reader.settings}), which is what a file with the '
                f'pipeline inside takes. Export without it (no --from-pixels)'
            )
        self.module, self.classes, self.output_names = module, module.classes, module.answer_names
        self.turn = channels == 3 and read.order == 'BGR'
        self.steps = [self._step(transform) for transform in read.reader.rest.transforms]
        self.register_buffer('mean', torch.tensor(read.mean or (0.0,) * channels).view(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(read.std or (1.0,) * channels).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tuple[Tensor, ...]:
        """(H, W, channels) uint8 -> the outputs."""
        image = pixels.permute(2, 0, 1)[None].float()
        for step in self.steps:
            image = step(image)
        image = image.flip(1) if self.turn else image
        return self.module.answer((image - self.mean) / self.std, shape_as_tensor(pixels)[:2])

    def _step(self, transform) -> Step:
        name = type(transform).__name__
        if name.startswith('Pack'):
            return lambda image: image
        if name == 'ResizeEdge' and transform.edge in ('short', 'long'):
            return _resize(transform, lambda size: _edge(size, transform.scale, transform.edge), keeps_ratio=True)
        if isinstance(transform, Resize) and transform.scale and name == 'Resize':
            fit = _fit if transform.keep_ratio else _fixed
            return _resize(transform, lambda size: fit(size, transform.scale), transform.keep_ratio)
        if name == 'CenterCrop' and hasattr(self.module, 'crops') and not getattr(transform, 'auto_pad', False):
            width_height = transform.crop_size if isinstance(transform, CenterCrop) else transform.crop_size[::-1]
            return lambda image: _crop(image, width_height[1], width_height[0])
        raise UsageError(
            f'a file with the pipeline inside supports Resize (of the whole image, by scale), ResizeEdge and, for '
            f'classifiers, CenterCrop; the test pipeline of this config also has {name}. Export without it (no '
            f'--from-pixels), and resize and normalise as the metadata of the file say'
        )


def _resize(transform, new_size: Callable[[Tensor], Tensor], keeps_ratio: bool) -> Step:
    """A resizing step of a pipeline, for images of integers from 0 to 255 held as floats."""
    backend, kind = transform.backend, transform.interpolation
    if backend == 'cv2' and kind == 'bilinear':
        return lambda image: resize_like_opencv(image, new_size(shape_as_tensor(image)[2:]))
    # Pillow resizes that axis first which clearly leaves less work; with one ratio for both, always the columns.
    if backend == 'pillow' and kind in PILLOW and keeps_ratio:
        return lambda image: resize_like_pillow(image, new_size(shape_as_tensor(image)[2:]), kind)
    raise UsageError(
        f'a file with the pipeline inside resizes by OpenCV (bilinear) or, keeping the ratio, by Pillow '
        f'({", ".join(PILLOW)}); the test pipeline of this config resizes by {backend} ({kind}). Export without it (no '
        f'--from-pixels)'
    )


def _fit(size: Tensor, scale: Tuple[int, int]) -> Tensor:
    """Height and width of the image at the largest size that fits into ``scale``, as mmcv's ``rescale_size``."""
    long, short = size.max(), size.min()
    by_long = max(scale) * short < min(scale) * long
    factor = torch.where(by_long, size.new_tensor(max(scale)), size.new_tensor(min(scale)))
    of = torch.where(by_long, long, short)
    return (2 * size * factor + of).div(2 * of, rounding_mode='floor')


def _fixed(size: Tensor, scale: Tuple[int, int]) -> Tensor:
    return size.new_tensor([scale[1], scale[0]])


def _edge(size: Tensor, scale: int, edge: str) -> Tensor:
    """As mmpretrain's ``ResizeEdge``: the short or the long edge gets that length."""
    return (scale * size).div(size.min() if edge == 'short' else size.max(), rounding_mode='floor')


def _crop(image: Tensor, height: int, width: int) -> Tensor:
    """The middle of an image (B, C, H, W), or all of an axis that is shorter."""
    begin = ((shape_as_tensor(image)[2:] - image.new_tensor([height, width]).long()).float() / 2).round().clamp(min=0)
    top, left = begin.long().unbind()
    rows = torch.arange(height, device=image.device) + top
    columns = torch.arange(width, device=image.device) + left
    size = shape_as_tensor(image)
    rows, columns = rows[rows < size[2]], columns[columns < size[3]]
    return image[:, :, rows][..., columns]


def resize_like_opencv(image: Tensor, size: Tensor) -> Tensor:
    """``cv2.resize(..., interpolation=cv2.INTER_LINEAR)`` of uint8, bit for bit.

    Weights have 11 bits, columns are interpolated before rows, and shifts drop bits between (VResizeLinear in OpenCV's
    resize.cpp). All is integers below 2 ** 24, which floats hold exactly.

    Args:
        image (Tensor): (B, C, H, W), integers from 0 to 255 as floats.
        size (Tensor): (2,) int64, the new height and width.
    """
    shape = shape_as_tensor(image)
    left, right, near, far = _linear_taps(shape[3], size[1], stops_at_edges=True)
    image = ((image[..., left] * near + image[..., right] * far) / 16).floor()
    upper, lower, near, far = _linear_taps(shape[2], size[0], stops_at_edges=False)
    above = _scaled(image[:, :, upper], near[:, None])
    below = _scaled(image[:, :, lower], far[:, None])
    return ((above + below + 2) / 4).floor()


def _scaled(values: Tensor, weights: Tensor) -> Tensor:
    """floor(values * weights / 2 ** 16) without a product above 2 ** 24: in two parts, of 11 bits and of 4."""
    high = (values / 16).floor()
    return ((high * weights + ((values - high * 16) * weights / 16).floor()) / 4096).floor()


def _linear_taps(length: Tensor, new: Tensor, stops_at_edges: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two input positions of each output position, and their weights times 2048; OpenCV clamps only along x."""
    twice = 2 * torch.arange(new) + 1
    # The position is (twice * length / new - 1) / 2, at least -1/2; plus one, so that no integer is negative.
    above, below = twice * length + new, 2 * new
    whole = above.div(below, rounding_mode='floor')
    fraction = (above - whole * below).float() / below.float()
    whole = whole - 1
    fraction = (whole.float() + fraction) - whole.float()  # as precise as OpenCV's float of the position
    if stops_at_edges:
        fraction = torch.where((whole < 0) | (whole >= length - 1), torch.zeros_like(fraction), fraction)
    first = torch.minimum(whole.clamp(min=0), length - 1)
    second = torch.minimum((whole + 1).clamp(min=0), length - 1)
    return first, second, ((1 - fraction) * 2048).round(), (fraction * 2048).round()


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))


PILLOW = {'bilinear': (_triangle, 1.0), 'bicubic': (_cubic, 2.0)}


def resize_like_pillow(image: Tensor, size: Tensor, kind: str) -> Tensor:
    """``PIL.Image.resize`` of uint8: a filter that widens with the reduction, rounded to 8 bits after each axis.

    Args:
        image (Tensor): (B, C, H, W), integers from 0 to 255 as floats.
        size (Tensor): (2,) int64, the new height and width.
        kind (str): A key of :data:`PILLOW`.
    """
    shape = shape_as_tensor(image)
    image = _to_bytes(image @ _filter_weights(shape[3], size[1], kind).t())
    return _to_bytes(_filter_weights(shape[2], size[0], kind) @ image)


def _to_bytes(image: Tensor) -> Tensor:
    return (image + 0.5).floor().clamp(0, 255)


def _filter_weights(length: Tensor, new: Tensor, kind: str) -> Tensor:
    """(new, length)."""
    kernel, support = PILLOW[kind]
    ratio = length.float() / new.float()
    stretch = ratio.clamp(min=1)
    centre = (torch.arange(new).float() + 0.5)[:, None] * ratio
    place = torch.arange(length).float()[None]
    begin, end = (centre - support * stretch + 0.5).floor(), (centre + support * stretch + 0.5).floor()
    weights = kernel((place + 0.5 - centre) / stretch) * ((place >= begin) & (place < end))
    return weights / weights.sum(1, keepdim=True)
