"""Exported files as models that take what a test pipeline packs, and fill its data samples."""

from typing import List

import cv2
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import Tensor

from .deployed import Deployed, fill_sample

PREPROCESSORS = {'mmdet': 'DetDataPreprocessor', 'mmseg': 'SegDataPreProcessor', 'mmpretrain': 'ClsDataPreprocessor'}


class ExportedModel(BaseModel):
    """A file in the place of a model of one of the libraries.

    Args:
        deployed (Deployed): The file.
        settings (ConfigDict): 'data_preprocessor', 'test_cfg' and more of the model, as
            :func:`~xcit_mm.apis.exported.config_for_file` has it.
        scope (str): Library of the model.
    """

    def __init__(self, deployed: Deployed, settings: ConfigDict, scope: str):
        super().__init__(self._preprocessor(settings, scope))
        self._own(deployed, settings)

    def _own(self, deployed: Deployed, settings: ConfigDict) -> None:
        self.deployed, self.settings, self.test_cfg = deployed, settings, settings.test_cfg
        self.dataset_meta = dict(classes=tuple(deployed.metadata['classes']) or None)
        self.channels = deployed.metadata['channels']

    @staticmethod
    def _preprocessor(settings: ConfigDict, scope: str) -> dict:
        return dict({'type': PREPROCESSORS[scope]}, **settings.data_preprocessor)

    def forward(self, inputs, data_samples: List, mode: str = 'predict') -> List:
        """Images of one size, (B, channels, H, W) or a list -> their data samples, filled."""
        return [self._fill(image, sample) for image, sample in zip(inputs, data_samples)]

    def _fill(self, image: Tensor, sample):
        raise NotImplementedError


class FromPixels(ExportedModel):
    """A file that takes the pixels of an image, of any of the three tasks."""

    @staticmethod
    def _preprocessor(settings: ConfigDict, scope: str) -> dict:
        return dict(type='mmengine.BaseDataPreprocessor')

    def _own(self, deployed: Deployed, settings: ConfigDict) -> None:
        super()._own(deployed, settings)
        # The reader of a tifffile loader gives RGB, all others BGR, and the file takes RGB.
        loading = deployed.metadata['loading']
        self.turns = self.channels == 3 and loading.get('imdecode_backend') != 'tifffile'

    def _fill(self, image: Tensor, sample):
        image = image.flip(0) if self.turns and len(image) == 3 else image
        return fill_sample(sample, self.deployed(np.ascontiguousarray(image.permute(1, 2, 0).numpy())))


class Classifier(ExportedModel):
    """A file that gives logits of normalised images."""

    def forward(self, inputs: Tensor, data_samples: List, mode: str = 'predict') -> List:
        """(B, channels, H, W) -> data samples with ``pred_score``."""
        logits = torch.from_numpy(self.deployed(inputs.numpy())['logits'])
        scores = logits.sigmoid() if self.settings.activation == 'sigmoid' else logits.softmax(-1)
        return [fill_sample(sample, dict(scores=score.numpy())) for sample, score in zip(data_samples, scores)]


class Detector(ExportedModel):
    """A file that gives the detections of a normalised image, in its pixels."""

    @staticmethod
    def _preprocessor(settings: ConfigDict, scope: str) -> dict:
        return dict(ExportedModel._preprocessor(settings, scope), pad_size_divisor=1)  # the graph pads

    def _fill(self, image: Tensor, sample):
        answer = self.deployed(image[None].numpy())
        height, width = sample.ori_shape[:2]
        scale = np.array(sample.metainfo.get('scale_factor', (1.0, 1.0)) * 2, np.float32)
        answer['boxes'] = answer['boxes'] / scale
        if 'masks' in answer and tuple(image.shape[1:]) != (height, width):
            masks = [cv2.resize(mask.astype(np.float32), (width, height)) >= 0.5 for mask in answer['masks']]
            answer['masks'] = np.array(masks, bool).reshape(-1, height, width)
        return fill_sample(sample, answer)
