"""Where the time of a whole detector or segmentor goes, and its peak memory.

Peak memory is measured in a fresh process: ``python -m xcit_mm.benchmark.whole_model JSON``.
"""

import logging
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import wraps
from statistics import median
from typing import Callable, Dict, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ..engine.setup import adapt_to_device
from .contenders import BLOCKS, OURS, make, maps_of
from .memory import answer, ask_process, rise
from .settings import DTYPES, Setting

# Part -> (module, its method); '*' stands for every child. A call inside another counts for the inner part.
PARTS: Dict[str, Tuple[Tuple[str, str], ...]] = {
    'preprocessing': (('data_preprocessor', 'forward'),),
    'embedding': (('backbone.patch_embed', 'forward'), ('backbone.pos_embed', 'forward')),
    'blocks: XCA and MLP': (('backbone.blocks.*', 'forward'),),
    'blocks: LPI': (('backbone.blocks.*.lpi', 'forward'), ('backbone.blocks.*', '_add_lpi')),
    'pyramid': (('backbone.pyramid', 'level'),),
    'neck': (('neck', 'forward'),),
    'RPN': (('rpn_head', 'loss_and_predict'), ('rpn_head', 'predict')),
    'box head': (('roi_head', 'bbox_loss'), ('roi_head', 'predict_bbox')),
    'mask head': (('roi_head', 'mask_loss'), ('roi_head', 'predict_mask')),
    'decode head': (('decode_head', 'loss'), ('decode_head', 'predict'), ('decode_head', 'forward')),
    'auxiliary head': (('auxiliary_head', 'loss'), ('auxiliary_head.*', 'loss')),
}
OTHER, OPTIMIZER = 'other', 'optimizer'
OBJECTS = 8  # in a training image
WARM_UP_PIXELS = 1216


@dataclass(frozen=True)
class Work:
    """One inference, or one training iteration with its optimizer step, of the model of a config.

    Attributes:
        config (str): Path of the config file.
        height, width, batch (int): Size of the batch of images.
        training (bool): Training iteration or inference.
        dtype (str): 'fp32', or the type of autocast.
        device (str): 'cpu' or 'cuda'.
        backbone (str): The contender that computes the maps of the pyramid: 'xcit_mm', 'timm' or 'mmpretrain'.
    """

    config: str
    height: int
    width: int
    batch: int = 1
    training: bool = False
    dtype: str = 'fp32'
    device: str = 'cpu'
    backbone: str = OURS


class Clock:
    """Seconds of each part, forward and backward; time counts for the part that was entered last."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: Dict[Tuple[str, str], float] = defaultdict(float)
        self._parts = [(OTHER, 'forward')]
        self._since = self._now()

    def _now(self) -> float:
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def _charge(self) -> None:
        now = self._now()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def enter(self, part: str) -> None:
        self._charge()
        self._parts.append((part, 'forward'))

    def leave(self) -> None:
        self._charge()
        self._parts.pop()

    def turn(self, part: str, direction: str) -> None:
        """Charge time to another part and direction, until the next turn."""
        self._charge()
        self._parts[-1] = (part, direction)

    def take(self) -> Dict[Tuple[str, str], float]:
        """Take the seconds by part and direction since the last call."""
        self._charge()
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


class Mark(torch.autograd.Function):
    """Mark the end of a part in the forward pass, which is its start in the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, clock: Clock, part: str) -> Tensor:
        ctx.clock, ctx.part = clock, part
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.clock.turn(ctx.part, 'backward')
        return grad, None, None


def _marked(value, clock: Clock, part: str):
    """Put a :class:`Mark` on every tensor in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return Mark.apply(value, clock, part) if value.requires_grad else value
    if type(value) in (tuple, list):
        return type(value)(_marked(item, clock, part) for item in value)
    if type(value) is dict:
        return {key: _marked(item, clock, part) for key, item in value.items()}
    return value


def _modules(model: nn.Module, path: str) -> list:
    """The modules at a path, [] if the model has none there."""
    found = [model]
    for name in path.split('.'):
        children = [dict(module.named_children()) for module in found]
        found = [m for c in children for m in (c.values() if name == '*' else [c[name]] if name in c else [])]
    return found


def watch(model: nn.Module, clock: Clock) -> None:
    """Tell a clock which part of a model is running."""

    def watched(method, part):
        @wraps(method)
        def timed(*args, **kwargs):
            clock.enter(part)
            try:
                return _marked(method(*args, **kwargs), clock, part)
            finally:
                clock.leave()

        return timed

    for part, places in PARTS.items():
        for path, name in places:
            for module in _modules(model, path):
                if hasattr(module, name):
                    setattr(module, name, watched(getattr(module, name), part))


class PeerPyramid(BaseModule):
    """A peer's XCiT with this project's pyramid: the baseline of a detector.

    Args:
        name (str): The peer.
        cfg (dict): Config of the :class:`~xcit_mm.models.XCiT` that it stands in for.
    """

    def __init__(self, name: str, cfg: dict):
        super().__init__()
        setting = Setting(cfg['arch'], cfg['patch_size'], 0, 0)
        contender = make(name, setting, drop_path_rate=cfg.get('drop_path_rate', 0.0))
        self.model, self.blocks = contender.model, BLOCKS[name]
        ours = MODELS.build(dict(cfg, init_cfg=None))
        self.pyramid, self.out_indices = ours.pyramid, ours.out_indices

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps of strides 4, 8, 16 and 32."""
        return self.pyramid(maps_of(self.model, image, self.blocks, self.out_indices))


class Runs:
    """A model with initial weights, ready for the work.

    Args:
        work (Work): What is done.
        watched (bool): Time its parts; a GPU is synchronised after each of them.
    """

    def __init__(self, work: Work, watched: bool = True):
        self.work = work
        cfg = Config.fromfile(work.config)
        cfg.launcher = 'none'
        adapt_to_device(cfg)
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        self.detects = 'roi_head' in cfg.model
        cfg.model.backbone.init_cfg = None
        if work.backbone != OURS:
            cfg.model.backbone = dict(type=PeerPyramid, name=work.backbone, cfg=cfg.model.backbone)
        torch.manual_seed(0)
        self.model = MODELS.build(cfg.model).to(work.device).train(work.training)
        if self.detects and not work.training:
            # Random weights detect nothing: keep every proposal, as in a crowded image.
            self.model.roi_head.bbox_head.fc_cls.bias.data[0] += 10.0
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper) if work.training else None
        self.clock = Clock(work.device)
        if watched:
            watch(self.model, self.clock)

    def data(self, height: int, width: int) -> dict:
        """A batch as a data loader gives it: random images of (height, width), and for training random objects."""
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (self.work.batch, 3, height, width), dtype=np.uint8)
        samples = [self._sample(height, width, generator) for _ in images]
        return dict(inputs=[torch.from_numpy(image) for image in images], data_samples=samples)

    def _sample(self, height: int, width: int, generator: np.random.Generator):
        size = (height, width)
        meta = dict(img_id=0, img_path='', img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
        if not self.detects:
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=meta)
            classes = generator.integers(0, self.model.decode_head.num_classes, (1, height, width))
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(classes))
            return sample
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks

        sample = DetDataSample(metainfo=meta)
        corner = generator.uniform(0, 0.7, (OBJECTS, 2))
        boxes = np.concatenate([corner, corner + generator.uniform(0.05, 0.3, (OBJECTS, 2))], axis=1)
        boxes = (boxes * (width, height, width, height)).astype(np.float32)
        masks = np.zeros((OBJECTS, height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
            mask[top:bottom, left:right] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(generator.integers(0, self.model.roi_head.bbox_head.num_classes, OBJECTS)),
            masks=BitmapMasks(masks, height, width),
        )
        return sample

    def __call__(self, data: dict) -> object:
        """Do the work once."""
        dtype = DTYPES[self.work.dtype]
        autocast = nullcontext() if dtype == torch.float32 else torch.autocast(self.work.device, dtype)
        data = self.model.data_preprocessor(data, self.work.training)
        if not self.work.training:
            with torch.no_grad(), autocast:
                return self.model(**data, mode='predict')
        with autocast:
            loss, _ = self.model.parse_losses(self.model(**data, mode='loss'))
        self.clock.turn(OTHER, 'backward')
        self.optimizer.backward(loss)
        self.clock.turn(OPTIMIZER, 'forward')
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.clock.turn(OTHER, 'forward')
        return loss.detach()

    def warm_up(self) -> None:
        """Do the work on a crop, so that large images are not computed twice."""
        self(self.data(*(min(side, WARM_UP_PIXELS) for side in (self.work.height, self.work.width))))
        self.clock.take()


def profile(work: Work, rounds: int, tell: Callable[[str], None] = lambda text: None) -> Dict[str, Dict[str, float]]:
    """Time the parts of a model.

    Args:
        work (Work): What is done.
        rounds (int): Number of rounds; the results are medians.
        tell (Callable): Takes a line of progress.

    Returns:
        dict: Seconds by part, in the order of the data, and by 'forward' and 'backward'; the parts add up to the
        whole, but for the medians.
    """
    tell('building')
    runs = Runs(work)
    tell('warming up')
    runs.warm_up()
    found = []
    for i in range(rounds):
        tell(f'round {i + 1} of {rounds}')
        data = runs.data(work.height, work.width)
        runs.clock.take()
        runs(data)
        found.append(runs.clock.take())
    table: Dict[str, Dict[str, float]] = {}
    for part in (*PARTS, OTHER, OPTIMIZER):
        for direction in ('forward', 'backward'):
            if any((part, direction) in seconds for seconds in found):
                value = median(seconds.get((part, direction), 0.0) for seconds in found)
                table.setdefault(part, {})[direction] = value
    return table


def peak_memory(work: Work, limit: Optional[int] = None) -> Tuple[Optional[int], str]:
    """Bytes above weights, optimizer state and libraries; see :func:`xcit_mm.benchmark.memory.peak_memory`."""
    return ask_process('xcit_mm.benchmark.whole_model', {'work': asdict(work), 'limit': limit})


def _measure(request: dict) -> int:
    MMLogger.get_instance('mmengine').setLevel(logging.WARNING)
    work = Work(**request['work'])
    runs = Runs(work)
    runs(runs.data(128, 128))
    data = runs.data(work.height, work.width)
    return rise(lambda: runs(data), work.device, request['limit'])


if __name__ == '__main__':
    answer(_measure)
