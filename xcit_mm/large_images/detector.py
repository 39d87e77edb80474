"""Two-stage detectors whose budgets follow the image's area, and whose masks take little memory."""

from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence

import numpy as np
from mmdet.models import FasterRCNN as MMDetFasterRCNN
from mmdet.models import MaskRCNN as MMDetMaskRCNN
from mmdet.models import TwoStageDetector
from mmdet.structures.bbox import bbox2roi
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..registry import MODELS
from .masks import encode_crop


class LargeImages(TwoStageDetector):
    """Mixin for two-stage detectors on images much larger than those they were trained on.

    **Budgets.** ``test_cfg`` keeps a number of proposals (``rpn.nms_pre`` of each level, ``rpn.max_per_img``) and of
    detections (``rcnn.max_per_img``) that is meant for images of the trained size. An image of at least ``LARGE``
    times the area of ``test_cfg.trained_size`` gets each multiplied by the ratio of the areas, up to ``most``. Without
    ``trained_size``, or with None, budgets stay as they are.

    **Masks.** Where dense masks would take more than ``most_mask_bytes``, ``pred_instances.masks`` is a list of RLE
    dicts of the whole image, the form to which MMDetection's metrics convert masks anyway. They are computed ``chunk``
    detections at a time and pasted into the surroundings of their boxes, so that memory does not grow with their
    number.

    Images that need neither take MMDetection's own path, bit for bit.

    Attributes:
        most (int): Most proposals, or detections, of one image.
        most_mask_bytes (int): Most bytes of the dense masks of one image, at one byte a pixel: 1 GiB.
        chunk (int): Detections whose masks are computed together.
    """

    LARGE = 2.0
    most = 10_000
    most_mask_bytes = 2**30
    chunk = 128

    def predict(self, batch_inputs: Tensor, batch_data_samples: Sequence, rescale: bool = True) -> List:
        """Images (B, 3, H, W) -> data samples with ``pred_instances``."""
        if not any(self._times(sample) > 1 or self._encodes(sample, rescale) for sample in batch_data_samples):
            return super().predict(batch_inputs, batch_data_samples, rescale)
        return [self._predict(batch_inputs[i : i + 1], s, rescale) for i, s in enumerate(batch_data_samples)]

    def _predict(self, inputs: Tensor, sample, rescale: bool):
        """One image, (1, 3, H, W)."""
        times = self._times(sample)
        metas, roi_head = [sample.metainfo], self.roi_head
        with _budget(self.rpn_head, times, self.most), _budget(roi_head, times, self.most):
            if not self._encodes(sample, rescale):
                return super().predict(inputs, [sample], rescale)[0]
            maps = self.extract_feat(inputs)
            proposals = sample.get('proposals')
            found = [proposals] if proposals is not None else self.rpn_head.predict(maps, [sample], rescale=False)
            found = roi_head.predict_bbox(maps, metas, found, roi_head.test_cfg, rescale=False)
            self._add_masks(maps, metas[0], found[0])
        return self.add_pred_to_datasample([sample], found)[0]

    def _times(self, sample) -> float:
        """Factor of the budgets of an image."""
        trained = (self.test_cfg or {}).get('trained_size')
        if not trained:
            return 1.0
        height, width = sample.metainfo['img_shape'][:2]
        times = height * width / (trained[0] * trained[1])
        return times if times >= self.LARGE else 1.0

    def _encodes(self, sample, rescale: bool) -> bool:
        if not (self.with_mask and rescale and self.roi_head.test_cfg.mask_thr_binary >= 0):
            return False
        height, width = sample.metainfo['ori_shape'][:2]
        number = _times_more(self.roi_head.test_cfg.max_per_img, self._times(sample), self.most)
        # -1 is every proposal.
        return height * width * (number if number > 0 else self.most) > self.most_mask_bytes

    def _add_masks(self, maps: Sequence[Tensor], meta: dict, found: InstanceData) -> None:
        """Rescale boxes from the model's input to the image, in place, and add a mask for each."""
        roi_head, (height, width) = self.roi_head, meta['ori_shape'][:2]
        scale = found.bboxes.new_tensor(meta['scale_factor']).repeat(2)
        inputs, found.bboxes = found.bboxes, found.bboxes / scale
        masks: List[dict] = []
        for low in range(0, len(found), self.chunk):
            part = slice(low, low + self.chunk)
            logits = roi_head._mask_forward(maps, bbox2roi([inputs[part]]))['mask_preds']
            # The mask head pastes one detection at a time, into an image little larger than its box.
            for i, box in enumerate(found.bboxes[part].cpu().numpy()):
                x1, y1 = (int(v) for v in np.clip(np.floor(box[:2]) - 1, 0, (width - 1, height - 1)))
                x2, y2 = (int(v) for v in np.clip(np.ceil(box[2:]) + 1, (x1 + 1, y1 + 1), (width, height)))
                one = found[part][i]
                one.bboxes = one.bboxes - one.bboxes.new_tensor([x1, y1, x1, y1])
                pasted = roi_head.mask_head.predict_by_feat(
                    (logits[i : i + 1],),
                    [one],
                    [dict(meta, ori_shape=(y2 - y1, x2 - x1), scale_factor=(1.0, 1.0))],
                    roi_head.test_cfg,
                    rescale=True,
                )
                masks.append(encode_crop(pasted[0].masks[0].cpu().numpy(), x1, y1, height, width))
        found.masks = masks


@MODELS.register_module()
class MaskRCNN(LargeImages, MMDetMaskRCNN):
    """MMDetection's ``MaskRCNN`` for images of any size, see :class:`LargeImages`."""


@MODELS.register_module()
class FasterRCNN(LargeImages, MMDetFasterRCNN):
    """MMDetection's ``FasterRCNN`` for images of any size, see :class:`LargeImages`."""


def _times_more(number: Optional[int], times: float, most: int) -> Optional[int]:
    """Multiply a budget, up to ``most``; one above that, or none (-1), stays as it is."""
    return number if number is None or number < 0 else max(number, min(round(number * times), most))


@contextmanager
def _budget(head: nn.Module, times: float, most: int) -> Iterator[None]:
    """Multiply the budgets in a head's ``test_cfg`` inside the context."""
    usual = head.test_cfg
    keys = [key for key in ('nms_pre', 'max_per_img') if key in usual]
    head.test_cfg = ConfigDict(usual, **{key: _times_more(usual[key], times, most) for key in keys})
    try:
        yield
    finally:
        head.test_cfg = usual
