"""Inputs to compare an exported model with PyTorch, PyTorch's outputs, and the deviation between the two."""

from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..datasets.reading import ModelInput
from ..errors import UsageError

SMALLEST = 32  # pixels; below that the pyramid of a patch size is padded, which the exported graph does not do
SAME_BOX = 0.9  # IoU from which two boxes of one class are the same detection
Run = Callable[[Tensor], Sequence[Tensor]]


class Deviation(NamedTuple):
    """Deviation of an exported model from PyTorch for one input.

    Attributes:
        shape (tuple[int, ...]): Shape of the input: (B, channels, H, W), or (H, W, channels).
        relative (float): Largest difference over the largest value of that output, the largest of all outputs. Label
            maps: the share of pixels that differ. Detections, matched by class and overlap: the largest difference of
            scores, or of coordinates over the image's longer side, or of masks (:func:`masks_apart`).
        detections (int, optional): Number of PyTorch's detections in that image.
        unmatched (float): Share of the detections that only one of the two has.
    """

    shape: Tuple[int, ...]
    relative: float
    detections: Optional[int] = None
    unmatched: float = 0.0


class Inputs:
    """Normalised images (B, channels, H, W) in fp32.

    Args:
        channels (int): Channels of an image.
        read (ModelInput): How the config's images are read and normalised.
        one_by_one (bool): True if the model takes one image at a time.
    """

    name = 'images'

    def __init__(self, channels: int, read: ModelInput, one_by_one: bool):
        self.channels, self.model_input, self.one_by_one = channels, read, one_by_one

    @property
    def axes(self) -> Dict[int, str]:
        """Names of the dynamic axes."""
        return {**({} if self.one_by_one else {0: 'batch'}), 2: 'height', 3: 'width'}

    def example(self, size: Tuple[int, int]) -> Tensor:
        """An input to trace the graph with."""
        return self._normal(self._pixels(size, seed=9)) if self.one_by_one else torch.randn(2, self.channels, *size)

    def generate(self, size: Tuple[int, int]) -> List[Tensor]:
        """Inputs of the traced size and of others and, where batches are possible, of several batch sizes."""
        height, width = size
        odd = (max(SMALLEST, height * 3 // 4 + 5), max(SMALLEST, width * 5 // 4 - 3))
        half = (max(SMALLEST, height // 2), width * 2)
        if self.one_by_one:
            return [self._normal(self._pixels(sides, seed)) for seed, sides in enumerate((size, odd, half))]
        found = []
        for seed, (batch, sides) in enumerate(((2, size), (1, size), (3, odd), (1, half))):
            generator = torch.Generator().manual_seed(seed)
            found.append(torch.randn(batch, self.channels, *sides, generator=generator))
        return found

    def read(self, path: str) -> Tensor:
        """An image file, resized and normalised by the config's pipeline, as an input."""
        image = self.model_input.reader.read(path)
        packed = self.model_input.reader.rest(dict(image))['inputs'].permute(1, 2, 0).numpy()
        return self.model_input.tensor(packed)

    def _normal(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(2, 0, 1)[None].float()
        if not self.model_input.mean:
            return image
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.model_input.mean, self.model_input.std))
        return (image - mean) / std

    def _pixels(self, size: Tuple[int, int], seed: int) -> Tensor:
        """Patches of three sizes on top of each other, (H, W, channels) uint8: with edges for a detector to find."""
        generator, height, width = torch.Generator().manual_seed(seed), *size
        image = torch.zeros(1, self.channels, height, width)
        for side in (1, 8, 32):
            patches = torch.rand(1, self.channels, -(-height // side), -(-width // side), generator=generator)
            image += patches.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width] / 3
        return (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous()


class PixelInputs(Inputs):
    """Pixels (H, W, channels) uint8 of one image, in the order RGB if there are three."""

    name = 'pixels'
    axes = {0: 'height', 1: 'width'}

    def read(self, path: str) -> Tensor:
        """The pixels of an image file."""
        pixels = self.model_input.reader.read(path)['img']
        if pixels.dtype != np.uint8:
            raise UsageError(f'the pixels of {path} are {pixels.dtype}; a file from pixels takes uint8')
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.shape[2] == 3 and self.model_input.reader.order == 'BGR':
            pixels = pixels[..., ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels))

    def _normal(self, pixels: Tensor) -> Tensor:
        return pixels


def detections_of(model: nn.Module, images: Tensor) -> Tuple[Tensor, ...]:
    """Outputs of MMDetection itself for a normalised image (1, channels, H, W)."""
    from mmdet.structures import DetDataSample

    height, width = images.shape[2:]
    divisor = model.data_preprocessor.pad_size_divisor
    sample = DetDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        found = model.predict(F.pad(images, (0, -width % divisor, 0, -height % divisor)), [sample], rescale=True)
    return _outputs(found[0])


def answer_of(model: nn.Module, read: ModelInput, pixels: Tensor) -> Tuple[Tensor, ...]:
    """Outputs of the library itself for an image, through the test pipeline of its config."""
    from mmengine.dataset import default_collate, pseudo_collate

    image = pixels.numpy()
    if image.shape[2] == 3 and read.reader.order == 'BGR':
        image = image[..., ::-1]
    image = np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)
    given = dict(img_path='', img_id=0, seg_fields=[], img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
    packed = read.reader.rest(given)
    collate = default_collate if hasattr(model, 'head') else pseudo_collate
    with torch.no_grad():
        return _outputs(model.test_step(collate([packed]))[0])


def _outputs(sample) -> Tuple[Tensor, ...]:
    """Outputs in a data sample, in the order of an exported model."""
    if 'pred_instances' in sample:
        found = sample.pred_instances
        masks = (_dense(found.masks),) if 'masks' in found else ()
        return (found.bboxes, found.scores, found.labels, *masks)
    return (sample.pred_sem_seg.data[0],) if 'pred_sem_seg' in sample else (sample.pred_score,)


def _dense(masks) -> Tensor:
    """Dense masks (N, H, W), decoded if they are RLE, as for very large images."""
    if isinstance(masks, Tensor) or not len(masks):
        return torch.as_tensor(np.asarray(masks))
    from pycocotools.mask import decode

    return torch.from_numpy(np.stack([decode(mask) for mask in masks])).bool()


def compare(exported, run: Run, samples: Sequence[Tensor]) -> List[Deviation]:
    """Run the exported model and PyTorch's on the same inputs.

    Raises:
        UsageError: If the exported one fails.
    """
    deviations = []
    for given in samples:
        with torch.no_grad():
            expected = exported.expect(given)
        try:
            actual = run(given)
        except Exception as error:
            shape = tuple(given.shape)
            raise UsageError(f'the exported model fails for images {shape}: {str(error).splitlines()[0]}') from error
        if exported.metadata['task'] == 'detection':
            sides = given.shape[2:] if given.dim() == 4 else given.shape[:2]
            apart, unmatched = detections_apart(actual, expected, max(sides))
            deviations.append(Deviation(tuple(given.shape), apart, len(expected[0]), unmatched))
        else:
            pairs = zip(actual, expected)
            apart = max(map(_apart, *zip(*pairs))) if len(actual) == len(expected) else float('inf')
            deviations.append(Deviation(tuple(given.shape), apart))
    return deviations


def _apart(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float('inf')
    if not theirs.is_floating_point():
        return (ours != theirs).float().mean().item()
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()


def detections_apart(ours: Sequence[Tensor], theirs: Sequence[Tensor], side: int) -> Tuple[float, float]:
    """``relative`` and ``unmatched`` of :class:`Deviation`; in an image with a longer side of ``side`` pixels."""
    count = max(len(ours[0]), len(theirs[0]))
    if not len(ours[0]) or not len(theirs[0]):
        return 0.0, float(count > 0)
    overlap = box_iou(theirs[0].float(), ours[0].float()) * (theirs[2][:, None] == ours[2][None])
    # Of several boxes that overlap enough, take the one with the nearest score.
    nearness = (overlap > SAME_BOX) * (1 - (theirs[1][:, None] - ours[1][None]).abs())
    best, match = nearness.max(1)
    pairs = [(mine, int(yours)) for mine, (yours, near) in enumerate(zip(match, best)) if near > 0]
    unmatched = 1 - len({yours for _, yours in pairs}) / count
    if not pairs:
        return 0.0, unmatched
    mine, yours = (torch.tensor(places, dtype=torch.long) for places in zip(*pairs))
    apart = [
        (theirs[1][mine] - ours[1][yours]).abs().max().item(),
        (theirs[0][mine] - ours[0][yours]).abs().max().item() / side,
    ]
    if len(theirs) > 3:
        apart.append(masks_apart(ours[3][yours], theirs[3][mine]).max().item())
    return max(apart), unmatched


def masks_apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 - IoU of each pair of masks (N, H, W) bool -> (N,); one pixel may differ, by rounding, in masks of any size."""
    differing, union = (ours ^ theirs).sum((1, 2)), (ours | theirs).sum((1, 2))
    return (differing - 1).clamp(min=0) / union.clamp(min=1)
