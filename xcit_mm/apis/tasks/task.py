"""What detectors, segmentors and classifiers share: the model, how its images are read, and batches of them."""

from typing import Any, Dict, List, Optional, Sequence, Union

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from ...datasets.reading import Reader, channels_of, model_input, preprocessor_of
from ...visualization.colours import colours_of, palette_of
from ..exported_models import ExportedModel

# What a model or a transform raises for an image that it does not take.
FAILURES = (AssertionError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)
HIGH = 255


class Task:
    """A model with its weights.

    Args:
        cfg (Config): Config of the model.
        model (nn.Module): The model, with ``dataset_meta``.

    Attributes:
        reader (Reader): Reads images as the config does.
        classes (tuple[str, ...], optional): Names, if they are known.
        colours (list): One for each class.
    """

    collate = staticmethod(pseudo_collate)

    def __init__(self, cfg: Config, model: Any):
        self.reader: Reader = model_input(cfg).reader
        self.model = model
        self.classes = self.model.dataset_meta.get('classes')
        counts = (getattr(module, 'num_classes', None) for module in self.model.modules())
        number = max((count for count in counts if isinstance(count, int)), default=0)
        self.colours = colours_of(self.classes, palette_of(cfg), number)
        self.mean = max(map(float, preprocessor_of(cfg).get('mean') or [0]))
        self.channels = model.channels if isinstance(model, ExportedModel) else channels_of(model)

    def name(self, label: int) -> str:
        """Of a class."""
        return str(self.classes[label]) if self.classes and label < len(self.classes) else str(label)

    @torch.no_grad()
    def predict(self, images: Sequence[dict]) -> list:
        """What :meth:`Reader.read` returned -> for each image a data sample, or the reason why there is none.

        Only images of one size share a batch: others would be padded, and attention sees the padding.
        """
        found: List[Union[object, str]] = [''] * len(images)
        groups: Dict[tuple, List[int]] = {}
        packed: List[Optional[dict]] = [None] * len(images)
        for number, image in enumerate(images):
            try:
                packed[number] = sample = self.reader.rest(dict(image))
            except FAILURES as error:
                found[number] = self.reason(error, image)
                continue
            groups.setdefault(tuple(sample['inputs'].shape), []).append(number)
        for numbers in groups.values():
            try:
                samples = self.model.test_step(self.collate([packed[number] for number in numbers]))
            except FAILURES as error:
                samples = [self.reason(error, images[number]) for number in numbers]
                if len(numbers) > 1:  # the cause may be one of them, or the batch size
                    samples = [self.predict([images[number]])[0] for number in numbers]
            for number, sample in zip(numbers, samples):
                found[number] = sample
        return found

    def reason(self, error: Exception, image: dict) -> str:
        """Why there is no prediction, in words."""
        shape = image['img'].shape
        channels = 1 if len(shape) == 2 else shape[2]
        if self.channels not in (None, channels):
            return (
                f'it has {channels} channel{"s" * (channels > 1)} as the config reads it '
                f'(color_type={self.reader.color_type!r}), and the model takes {self.channels}'
            )
        lines = str(error).strip().splitlines() or ['']
        return f'{type(error).__name__}: {lines[0][:300]}'

    def warn(self, image: dict) -> Optional[str]:
        """A warning if the values of an image have another depth than those that the config normalises."""
        pixels = image['img']
        high = float(pixels.max())
        meant = None
        if self.mean > HIGH >= high:
            meant = 'those of more than 8 bits'
        elif 1 < self.mean <= HIGH < high:
            meant = 'those of 8 bits'
        elif self.mean > 1 and pixels.dtype.kind == 'f' and 0 < high <= 1:
            meant = 'those from 0 to 255'
        return meant and f'its values reach {high:g}, and the config normalises {meant} (mean {self.mean:g})'
