"""Exported segmentors that take normalised images."""

from types import SimpleNamespace
from typing import Any, List

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmseg.models import EncoderDecoder
from torch import Tensor

from .deployed import Deployed
from .exported_models import ExportedModel


class Segmentor(ExportedModel, EncoderDecoder):
    """A file that gives logits of normalised images; sliding windows and the rest are MMSegmentation's."""

    def __init__(self, deployed: Deployed, settings: ConfigDict, scope: str):
        BaseModel.__init__(self, self._preprocessor(settings, scope))  # builds no backbone
        self._own(deployed, settings)
        self.out_channels: int = settings.out_channels
        self.align_corners: bool = settings.decode_head.align_corners
        self.decode_head: Any = SimpleNamespace(**settings.decode_head)

    def forward(self, inputs: Tensor, data_samples: List, mode: str = 'predict') -> List:
        """(B, channels, H, W) -> data samples with ``pred_sem_seg``."""
        return self.predict(inputs, data_samples)

    def encode_decode(self, inputs: Tensor, batch_img_metas: List[dict]) -> Tensor:
        """(B, channels, H, W) -> logits (B, K, H, W)."""
        return torch.from_numpy(self.deployed(inputs.contiguous().numpy())['logits'])
