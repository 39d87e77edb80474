"""A segmentor that predicts images of any size within a small memory."""

from typing import Callable, List, Tuple

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder as MMSegEncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from ..registry import MODELS

# The rows lo ... hi - 1 of a map (K, H, W), as (K, hi - lo, W).
Rows = Callable[[int, int], Tensor]


@MODELS.register_module()
class EncoderDecoder(MMSegEncoderDecoder):
    """MMSegmentation's ``EncoderDecoder`` that makes no full-size logits of very large images.

    The logits of 6000x4000 pixels and 150 classes are 14.4 GB, and MMSegmentation holds them twice. Above
    ``max_logits`` the class of every pixel is found in strips of a few rows instead: the same interpolation, the same
    classes, but no ``seg_logits`` in the result. Smaller images, sliding windows, flips, and heads that predict in
    their own way are left to MMSegmentation.

    Attributes:
        max_logits (int): Values in the logits of an image; 2 ** 30, or 4 GiB in fp32. Test-time augmentation, which
            adds up the logits of a dozen views, is out of reach there anyway.
        strip_logits (int): Values in the logits of a strip.
    """

    max_logits = 2**30
    strip_logits = 2**26

    def predict(self, inputs: Tensor, data_samples=None) -> List:
        """Images (B, 3, H, W) -> data samples with ``pred_sem_seg`` and, unless very large, ``seg_logits``."""
        if not self._needs_strips(data_samples):
            return super().predict(inputs, data_samples)
        maps = self.decode_head(self.extract_feat(inputs))
        first = data_samples[0].metainfo
        padded = first.get('pad_shape', first['img_shape'])[:2]  # as in BaseDecodeHead.predict_by_feat
        for sample, logits in zip(data_samples, maps):
            classes = self._classes(logits, padded, sample.metainfo)
            sample.set_data(dict(pred_sem_seg=PixelData(data=classes)))
        return data_samples

    def _needs_strips(self, data_samples) -> bool:
        if (
            not data_samples
            or self.test_cfg.get('mode', 'whole') != 'whole'
            or self.out_channels < 2
            or type(self.decode_head).predict is not BaseDecodeHead.predict
            or type(self.decode_head).predict_by_feat is not BaseDecodeHead.predict_by_feat
        ):
            return False
        metas = [sample.metainfo for sample in data_samples]
        pixels = max(meta['ori_shape'][0] * meta['ori_shape'][1] for meta in metas)
        return pixels * self.out_channels > self.max_logits and not any(meta.get('flip') for meta in metas)

    def _classes(self, logits: Tensor, padded: Tuple[int, int], meta: dict) -> Tensor:
        """Logits (K, h, w) of one image -> its classes (1, H, W), by way of the padded size as in MMSegmentation."""
        left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
        height, width = padded[0] - top - bottom, padded[1] - left - right
        whole = _resized(lambda lo, hi: logits[:, lo:hi], logits.shape[1], padded, self.align_corners)

        def rows(lo, hi):
            return whole(top + lo, top + hi)[..., left : left + width]

        size = meta['ori_shape'][:2]
        if (height, width) != tuple(size):
            rows = _resized(rows, height, size, self.align_corners)
        classes = torch.empty(1, *size, dtype=torch.long, device=logits.device)
        step = max(1, self.strip_logits // (len(logits) * size[1]))
        for lo in range(0, size[0], step):
            hi = min(lo + step, size[0])
            torch.argmax(rows(lo, hi), dim=0, out=classes[0, lo:hi])
        return classes


def _resized(rows: Rows, height: int, size: Tuple[int, int], align_corners: bool) -> Rows:
    """The rows of a map of ``height`` rows, resized to ``size`` as bilinear :func:`F.interpolate` does it."""

    def resized_rows(lo: int, hi: int) -> Tensor:
        # In fp32, since PyTorch computes its coordinates in it.
        position = torch.arange(lo, hi, dtype=torch.float32)
        if align_corners:
            position = position * ((height - 1) / max(size[0] - 1, 1))
        else:
            position = ((position + 0.5) * (height / size[0]) - 0.5).clamp_min(0)
        above = position.long().clamp_max(height - 1)
        below = (above + 1).clamp_max(height - 1)
        first = int(above[0])
        part = rows(first, int(below[-1]) + 1).float()
        share = (position - above)[:, None].to(part.device)
        part = torch.lerp(part[:, above - first], part[:, below - first], share)
        # What is left is horizontal.
        return F.interpolate(part[None], (hi - lo, size[1]), mode='bilinear', align_corners=align_corners)[0]

    return resized_rows
