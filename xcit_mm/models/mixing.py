"""Mixup and CutMix as timm pairs the images: the first with the last, the second with the last but one, ..."""

from typing import Tuple

import numpy as np
from mmpretrain.models.utils import batch_augments
from torch import Tensor


class Mixup(batch_augments.Mixup):
    """MMPretrain's, with the images of the batch in reverse order as partners instead of in a random one.

    Args:
        As for :class:`mmpretrain.models.Mixup`.
    """

    def mix(self, batch_inputs: Tensor, batch_scores: Tensor) -> Tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and targets (B, classes) -> the same, mixed."""
        share = np.random.beta(self.alpha, self.alpha)
        inputs, scores = (share * x + (1 - share) * x.flip(0) for x in (batch_inputs, batch_scores))
        return inputs, scores


class CutMix(batch_augments.CutMix):
    """MMPretrain's, with the images of the batch in reverse order as partners instead of in a random one.

    Args:
        As for :class:`mmpretrain.models.CutMix`.
    """

    def mix(self, batch_inputs: Tensor, batch_scores: Tensor) -> Tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and targets (B, classes) -> the same, mixed."""
        share = np.random.beta(self.alpha, self.alpha)
        (top, bottom, left, right), share = self.cutmix_bbox_and_lam(batch_inputs.shape[-2:], share)
        batch_inputs[..., top:bottom, left:right] = batch_inputs.flip(0)[..., top:bottom, left:right]
        return batch_inputs, share * batch_scores + (1 - share) * batch_scores.flip(0)
