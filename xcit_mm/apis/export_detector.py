"""Detectors of MMDetection as one graph: ``predict`` of their heads, written for tracing.

MMDetection's own ``predict`` counts boxes and branches on the result in Python, which a trace records as constants. The
modules here run the detector's layers (backbone, neck, convolutions and linear layers of the heads) and do the rest
(top-k, box decoding, non-maximum suppression, RoIAlign, pasting of masks) in tensor code for any image size. What they
write to ONNX are standard operators: NonMaxSuppression, RoiAlign, TopK, NonZero, Gather, Scatter.
"""

import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmdet.models import dense_heads, detectors, roi_heads
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import bbox_heads, mask_heads
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor
from torchvision.ops import nms, roi_align

from ..errors import UsageError
from ..large_images.detector import LargeImages

WH_RATIO_CLIP = 16 / 1000  # of DeltaXYWHBBoxCoder.decode, whose default no head changes


class Detections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes (Tensor): (N, 4), x1, y1, x2, y2 in pixels of the model's input.
        scores (Tensor): (N,).
        labels (Tensor): (N,) int64.
        masks (Tensor, optional): (N, M, M), probability in the cells of a grid over each box.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Optional[Tensor]


class Detector(nn.Module):
    """A detector that can be traced.

    Args:
        model (nn.Module): A ``TwoStageDetector`` or ``SingleStageDetector`` of MMDetection.

    Raises:
        UsageError: If it has a part that is not implemented here.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        _check(model)
        self.model, self.classes = model, model.dataset_meta.get('classes')
        self.divisor = model.data_preprocessor.pad_size_divisor
        self.has_masks = bool(getattr(model, 'with_mask', False)) and hasattr(model, 'roi_head')
        self.output_names = ('boxes', 'scores', 'labels', *(('masks',) if self.has_masks else ()))
        self.answer_names = self.output_names

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        """(1, channels, H, W) -> boxes (N, 4), scores (N,), labels (N,) and, of models with masks, masks (N, H, W)."""
        return self.answer(images, shape_as_tensor(images)[2:])

    def answer(self, images: Tensor, size: Tensor) -> Tuple[Tensor, ...]:
        """The same in pixels of an image of size (2,), which ``images`` was resized from."""
        boxes, scores, labels, masks = self.detect(images)
        scale = (shape_as_tensor(images)[2:].float() / size.float()).flip(0)
        boxes = boxes / torch.cat([scale, scale])
        if masks is None:
            return boxes, scores, labels
        return boxes, scores, labels, paste(masks, boxes, size) >= self.model.roi_head.test_cfg.mask_thr_binary

    def detect(self, images: Tensor) -> Detections:
        """(1, channels, H, W) -> detections, in pixels of these images."""
        size = shape_as_tensor(images)[2:]
        features = self.model.extract_feat(_pad(images, self.divisor))
        if hasattr(self.model, 'roi_head'):
            times = self._times(size)
            proposals = _propose(self.model.rpn_head, features, size, times)
            return _classify(self.model.roi_head, features, proposals, size, times)
        return _predict_densely(self.model.bbox_head, features, size)

    def _times(self, size: Tensor) -> Optional[Tensor]:
        """Factor of the budgets of an image of that size; None if all get the same."""
        trained = (getattr(self.model, 'test_cfg', None) or {}).get('trained_size')
        if not trained or not isinstance(self.model, LargeImages):
            return None
        times = size[0].float() * size[1].float() / (trained[0] * trained[1])
        return torch.where(times >= self.model.LARGE, times, torch.ones_like(times))


def _budget(number: int, times: Optional[Tensor]) -> Union[int, Tensor]:
    """A number of proposals or detections as :class:`LargeImages` has it; below 1 there is no limit."""
    if times is None or number < 1:
        return number
    return (number * times).round().clamp(max=max(number, LargeImages.most)).clamp(min=number).long()


def _check(model: nn.Module) -> None:
    """Refuse detectors with a part that the functions below do not implement."""
    two_stage = isinstance(model, (detectors.FasterRCNN, detectors.MaskRCNN))
    parts: Dict[str, bool] = {type(model).__name__: two_stage or isinstance(model, detectors.SingleStageDetector)}
    if two_stage:
        roi_head = model.roi_head
        heads = [model.rpn_head, roi_head.bbox_head]
        parts[type(model.rpn_head).__name__] = type(model.rpn_head) is dense_heads.RPNHead
        parts[type(roi_head).__name__] = type(roi_head) is roi_heads.StandardRoIHead
        parts[type(roi_head.bbox_head).__name__] = (
            _inherits(roi_head.bbox_head, bbox_heads.BBoxHead, '_predict_by_feat_single')
            and roi_head.bbox_head.with_reg
            and not roi_head.bbox_head.custom_cls_channels
        )
        extractors = [roi_head.bbox_roi_extractor]
        if roi_head.with_mask:
            extractors.append(roi_head.mask_roi_extractor)
            name = type(roi_head.mask_head).__name__
            parts[name] = _inherits(roi_head.mask_head, mask_heads.FCNMaskHead, '_predict_by_feat_single')
            parts['a mask_thr_binary below 0'] = roi_head.test_cfg.mask_thr_binary >= 0
        for extractor in extractors:
            pools = all(layer.pool_mode == 'avg' for layer in getattr(extractor, 'roi_layers', ()))
            parts[type(extractor).__name__] = type(extractor) is SingleRoIExtractor and pools
        settings = [model.rpn_head.test_cfg, roi_head.test_cfg]
    elif hasattr(model, 'bbox_head'):
        heads, settings = [model.bbox_head], [model.bbox_head.test_cfg]
        parts[type(model.bbox_head).__name__] = (
            isinstance(model.bbox_head, BaseDenseHead)
            and _inherits(model.bbox_head, BaseDenseHead, 'predict', 'predict_by_feat', '_predict_by_feat_single')
            and not getattr(model.bbox_head.loss_cls, 'custom_cls_channels', False)
        )
    else:
        heads, settings = [], []
    for head in heads:
        coder = getattr(head, 'bbox_coder', None)
        parts[type(coder).__name__] = type(coder) in (DeltaXYWHBBoxCoder, DistancePointBBoxCoder)
    for setting in settings:
        suppression = setting.get('nms') or {}
        known = suppression.get('type', 'nms') == 'nms' and not suppression.get('class_agnostic')
        parts[f'nms={dict(suppression)}'] = known and set(suppression) <= {'type', 'iou_threshold', 'class_agnostic'}
    unknown = [name for name, is_known in parts.items() if not is_known]
    if unknown:
        raise UsageError(
            f'only Faster R-CNN, Mask R-CNN and one-stage detectors with the plain dense prediction (RetinaNet, FCOS, '
            f'ATSS) can be exported whole; this one has {" and ".join(unknown)}. Export the backbone alone '
            f'(--part backbone), or use MMDeploy'
        )


def _inherits(head: nn.Module, base: type, *methods: str) -> bool:
    """True if the head inherits these methods from the base class unchanged."""
    return isinstance(head, base) and all(getattr(type(head), name) is getattr(base, name) for name in methods)


def _pad(images: Tensor, divisor: int) -> Tensor:
    """Pad with zeros to the right and below, up to multiples of ``divisor``, as MMDetection's data preprocessor."""
    if divisor <= 1:
        return images
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % divisor, 0, -height % divisor))


def _best(scores: Tensor, limit: Union[int, Tensor]) -> Tuple[Tensor, Tensor]:
    """The best ``limit`` of (N,) scores, or all N if there are fewer, and their indices, best first."""
    count = shape_as_tensor(scores)[0]
    if not isinstance(limit, Tensor):
        limit = count.new_tensor(limit) if limit > 0 else count
    # An int in PyTorch, a tensor in the trace.
    return scores.topk(torch.minimum(count, limit))


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, limit: Union[int, Tensor]) -> Tensor:
    """Indices of the boxes that are kept, best first, at most ``limit``; boxes of one group suppress each other.

    Offsets each group as mmcv's ``batched_nms`` does, so that both round overlaps equally. Sorts the result, since not
    all runtimes return boxes in the order of their scores.
    """
    end = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
    kept = nms(boxes + (groups.to(boxes) * (end + 1))[:, None], scores, threshold)
    return kept[_best(scores[kept], limit)[1]]


def _clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip boxes (N, 4) to an image of size (2,), height and width."""
    width_height = size.flip(0).to(boxes)
    return torch.minimum(boxes.clamp(min=0), torch.cat([width_height, width_height]))


def _decode(coder: nn.Module, priors: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    """Boxes (N, 4) from priors and predicted deltas, as ``decode`` of the two coders."""
    if isinstance(coder, DistancePointBBoxCoder):
        boxes = torch.cat([priors - deltas[:, :2], priors + deltas[:, 2:]], -1)
        return _clip(boxes, size) if coder.clip_border else boxes
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    begin, end = priors[:, :2], priors[:, 2:]
    shift, scale = (end - begin) * deltas[:, :2], deltas[:, 2:]
    limit = abs(math.log(WH_RATIO_CLIP))
    if coder.add_ctr_clamp:
        shift, scale = shift.clamp(-coder.ctr_clamp, coder.ctr_clamp), scale.clamp(max=limit)
    else:
        scale = scale.clamp(-limit, limit)
    centre, half = (begin + end) * 0.5 + shift, (end - begin) * scale.exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], -1)
    return _clip(boxes, size) if coder.clip_border else boxes


def _wide_enough(boxes: Tensor, settings: dict) -> Optional[Tensor]:
    """Indices of the boxes wider and higher than ``min_bbox_size``; None if the settings have none."""
    least = settings.get('min_bbox_size', -1)
    return None if least < 0 else ((boxes[:, 2:] - boxes[:, :2]) > least).all(1).nonzero()[:, 0]


def _priors(head: nn.Module, maps: Sequence[Tensor]) -> List[Tensor]:
    sizes = [level.shape[2:] for level in maps]
    return head.prior_generator.grid_priors(sizes, dtype=maps[0].dtype, device=maps[0].device)


def _rows(level: Tensor, columns: int) -> Tensor:
    """(1, A * columns, H, W) -> (H * W * A, columns)."""
    return level[0].permute(1, 2, 0).reshape(-1, columns)


def _propose(head: nn.Module, features: Sequence[Tensor], size: Tensor, times: Optional[Tensor]) -> Tensor:
    """``RPNHead.predict`` of one image: proposals (N, 4), best first."""
    settings = head.test_cfg
    before, limit = (_budget(settings.get(key, -1), times) for key in ('nms_pre', 'max_per_img'))
    scores, deltas = head(features)
    boxes_of, scores_of, levels = [], [], []
    for number, (score, delta, priors) in enumerate(zip(scores, deltas, _priors(head, scores))):
        score = _rows(score, head.cls_out_channels)
        score = score.sigmoid() if head.use_sigmoid_cls else score.softmax(-1)[:, :-1]
        score, delta = score[:, 0], _rows(delta, 4)
        if settings.get('nms_pre', -1) > 0:
            score, places = _best(score, before)
            priors, delta = priors[places], delta[places]
        boxes_of.append(_decode(head.bbox_coder, priors, delta, size))
        scores_of.append(score)
        levels.append(torch.full_like(score, number))
    boxes, score, level = torch.cat(boxes_of), torch.cat(scores_of), torch.cat(levels)
    places = _wide_enough(boxes, settings)
    if places is not None:
        boxes, score, level = boxes[places], score[places], level[places]
    return boxes[_suppress(boxes, score, level, settings.nms.iou_threshold, limit)]


def _pool(extractor: nn.Module, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """``SingleRoIExtractor`` of one image: boxes (N, 4) -> (N, C, h, w), each from the level for its size.

    Pools level by level and restores the order of the rows, without branching on empty levels.
    """
    features = features[: extractor.num_inputs]
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    level_of = extractor.map_roi_levels(rois, len(features))
    pooled, places = [], []
    for number, (level, layer) in enumerate(zip(features, extractor.roi_layers)):
        place = (level_of == number).nonzero()[:, 0]
        pooled.append(
            roi_align(level, rois[place], layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        )
        places.append(place)
    place = torch.cat(places)
    return torch.cat(pooled)[torch.zeros_like(place).scatter(0, place, _numbers(place))]


def _numbers(rows: Tensor) -> Tensor:
    """0 ... N - 1 for N rows."""
    return torch.arange(shape_as_tensor(rows)[0], device=rows.device)


def _classify(
    head: nn.Module, features: Sequence[Tensor], proposals: Tensor, size: Tensor, times: Optional[Tensor]
) -> Detections:
    """``StandardRoIHead.predict`` of one image, its masks not yet pasted."""
    settings, bbox_head = head.test_cfg, head.bbox_head
    pooled = _pool(head.bbox_roi_extractor, features, proposals)
    logits, deltas = bbox_head(head.shared_head(pooled) if head.with_shared_head else pooled)
    found = (logits.softmax(-1)[:, :-1] > settings.score_thr).nonzero()
    proposal, label = found[:, 0], found[:, 1]
    score = logits.softmax(-1)[proposal, label]
    place, classes = (torch.zeros_like(label), 1) if bbox_head.reg_class_agnostic else (label, bbox_head.num_classes)
    delta = deltas.reshape(-1, classes, 4)[proposal, place]
    boxes = _decode(bbox_head.bbox_coder, proposals[proposal], delta, size)
    kept = _suppress(boxes, score, label, settings.nms.iou_threshold, _budget(settings.max_per_img, times))
    boxes, label = boxes[kept], label[kept]
    masks = None
    if head.with_mask:
        pooled = _pool(head.mask_roi_extractor, features, boxes)
        masks = head.mask_head(head.shared_head(pooled) if head.with_shared_head else pooled).sigmoid()
        place = torch.zeros_like(label) if head.mask_head.class_agnostic else label
        masks = masks[_numbers(label), place]
    return Detections(boxes, score[kept], label, masks)


def _predict_densely(head: nn.Module, features: Sequence[Tensor], size: Tensor) -> Detections:
    """``BaseDenseHead.predict`` of one image."""
    settings = head.test_cfg
    scores, deltas, *factors = head(features)
    boxes_of, scores_of, labels_of = [], [], []
    for number, (score, delta, priors) in enumerate(zip(scores, deltas, _priors(head, scores))):
        score, delta = _rows(score, head.cls_out_channels), _rows(delta, 4)
        score = score.sigmoid() if head.use_sigmoid_cls else score.softmax(-1)[:, :-1]
        found = (score > settings.get('score_thr', 0)).nonzero()
        values = score[found[:, 0], found[:, 1]]
        if settings.get('nms_pre', -1) > 0:
            values, best = _best(values, settings.nms_pre)
            found = found[best]
        if factors:
            values = values * _rows(factors[0][number], 1)[:, 0].sigmoid()[found[:, 0]]
        boxes_of.append(_decode(head.bbox_coder, priors[found[:, 0]], delta[found[:, 0]], size))
        scores_of.append(values)
        labels_of.append(found[:, 1])
    boxes, score, label = torch.cat(boxes_of), torch.cat(scores_of), torch.cat(labels_of)
    places = _wide_enough(boxes, settings)
    if places is not None:
        boxes, score, label = boxes[places], score[places], label[places]
    kept = _suppress(boxes, score, label, settings.nms.iou_threshold, settings.max_per_img)
    return Detections(boxes[kept], score[kept], label[kept], None)


def paste(masks: Tensor, boxes: Tensor, size: Tensor) -> Tensor:
    """Masks (N, M, M) over boxes (N, 4) -> (N, height, width), by bilinear interpolation; 0 outside.

    As ``grid_sample`` of MMDetection's ``_do_paste_mask``, but separately for each axis, as two matmuls, which need a
    tenth of the memory. ``size`` is (2,) int64.
    """
    rows = _taps(boxes[:, 1], boxes[:, 3], size[0], masks)
    columns = _taps(boxes[:, 0], boxes[:, 2], size[1], masks)
    return rows @ masks @ columns.transpose(1, 2)


def _taps(begin: Tensor, end: Tensor, length: Tensor, masks: Tensor) -> Tensor:
    """Weights (N, length, M) of the cells of a mask at the pixels of one axis."""
    cells = masks.shape[2]
    pixels = torch.arange(length, device=masks.device).to(masks) + 0.5
    place = (pixels - begin[:, None]) / (end - begin)[:, None] * cells - 0.5
    return (1 - (place[..., None] - torch.arange(cells, device=masks.device)).abs()).clamp(min=0)
