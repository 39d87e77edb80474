"""Settings that fit the data: the model and its start, image size, batch, schedule, learning rate, average.

The rules are few and stated beside the numbers. Their results are shown before training, and are in the config.
Learning rates scale with the square root of the batch size, as suits AdamW.
"""

import os
import re
import socket
from dataclasses import dataclass
from statistics import median
from typing import Dict, List, Optional, Tuple

import torch

from ...checkpoint import CheckpointError, is_address, load_checkpoint_file
from ...checkpoint.sources import fetch, resolve
from ...errors import UsageError
from ...models.xcit import ARCHS
from ...package import mim_dir
from ...published import find_weights
from .data import Data
from .show import object_sides

_MODEL = re.compile(r'(?:(mask_rcnn|faster_rcnn|sem_fpn|upernet)_)?xcit_([ntsml](?:12|24))_(8|16)(?:_.*)?')
# The heads of each task, the default first.
HEADS: Dict[str, Tuple[Optional[str], ...]] = {
    'classification': (None,),
    'detection': ('faster_rcnn',),
    'instance-segmentation': ('mask_rcnn',),
    'semantic-segmentation': ('sem_fpn', 'upernet'),
}
SUFFIXES = {
    None: 'in1k',
    'faster_rcnn': '3x_coco',
    'mask_rcnn': '3x_coco',
    'sem_fpn': '80k_ade20k',
    'upernet': '160k_ade20k',
}
MONITORS = {
    'classification': 'accuracy/top1',
    'detection': 'coco/bbox_mAP',
    'instance-segmentation': 'coco/segm_mAP',
    'semantic-segmentation': 'mIoU',
}
# By task, pretrained and from random weights: images seen in the whole run, the fewest and the most epochs.
LENGTHS = {
    ('classification', True): (40_000, 15, 150),
    ('classification', False): (120_000, 40, 300),
    ('detection', True): (20_000, 12, 100),
    ('detection', False): (60_000, 36, 300),
    ('instance-segmentation', True): (20_000, 12, 100),
    ('instance-segmentation', False): (60_000, 36, 300),
    ('semantic-segmentation', True): (40_000, 20, 200),
    ('semantic-segmentation', False): (80_000, 40, 300),
}
# Learning rate at a batch size, and its decay from block to block (1: none).
RATES = {
    ('classification', True): (6e-4, 64, 0.75),
    ('classification', False): (4e-4, 32, 1.0),
    ('detection', True): (1e-4, 16, 0.8),
    ('detection', False): (6e-4, 4, 1.0),
    ('instance-segmentation', True): (1e-4, 16, 0.8),
    ('instance-segmentation', False): (6e-4, 4, 1.0),
    ('semantic-segmentation', True): (2e-4, 16, 0.8),
    ('semantic-segmentation', False): (1e-3, 4, 1.0),
}
# Images of the published size that a GPU of 16 GB takes at once, that size in pixels, and the most of smaller ones.
BATCHES = {
    'classification': (64, 224 * 224, 64),
    'detection': (4, 800 * 1333, 16),
    'instance-segmentation': (4, 800 * 1333, 16),
    'semantic-segmentation': (8, 512 * 512, 16),
}
VALIDATIONS = 20  # in the whole run
LEAST_OBJECT = 24  # pixels that a small object should have: one and a half patches of 16
SMALL_BATCH = 16  # images for each GPU, below which batch statistics of a pretrained model are left as they are
TIMEOUT = 30  # s, for the server of the weights to answer


@dataclass
class Recipe:
    """What the config is written from.

    Attributes:
        head (str, optional): 'faster_rcnn', 'mask_rcnn', 'sem_fpn', 'upernet', or None for a classifier.
        arch (str), patch_size (int): Arch and patch size of the backbone.
        base (str): Name of the published config that is inherited from.
        weights (str, optional): What training starts from; None for random weights.
        whole (bool): True if these are weights of a whole detector or segmentor, not of a backbone.
        size (int): Short side, or side of the crop, in pixels.
        batch (int): Images for each GPU.
        gpus (int): Processes.
        epochs, val_interval (int): In epochs.
        iterations (int): Iterations in an epoch.
        lr, layer_decay (float): Learning rate of the head, and its factor from block to block.
        ema_momentum (float): Momentum of the weight average; its horizon is a twentieth of the run.
        flip (bool): Flip images in training.
        workers (int): Processes that load data.
        amp (bool): Mixed precision.
    """

    task: str
    head: Optional[str]
    arch: str
    patch_size: int
    base: str
    weights: Optional[str]
    whole: bool
    size: int
    batch: int
    gpus: int
    epochs: int
    val_interval: int
    iterations: int
    lr: float
    layer_decay: float
    ema_momentum: float
    flip: bool
    workers: int
    amp: bool

    @property
    def pretrained(self) -> bool:
        return self.weights is not None

    @property
    def monitor(self) -> str:
        return MONITORS[self.task]

    @property
    def channels(self) -> int:
        return ARCHS[self.arch]['embed_dims']

    @property
    def frozen_norms(self) -> bool:
        """True if batch norms of the backbone keep their pretrained statistics."""
        return self.pretrained and self.batch < SMALL_BATCH

    @property
    def total(self) -> int:
        return self.epochs * self.iterations

    def lines(self) -> List[str]:
        """The choices in words."""
        name = f'{self.head + " with " if self.head else ""}XCiT-{self.arch.upper()}/{self.patch_size}'
        decay = f', {self.layer_decay:g} of it from block to block' if self.layer_decay < 1 else ''
        return [
            f'model     {name}, from {self.weights or "random weights"}',
            f'images    {self.size} pixels, {self.batch} at a time'
            + (f' on each of {self.gpus} GPUs' if self.gpus > 1 else '')
            + ('' if self.flip else ', not mirrored'),
            f'schedule  {self.epochs} epochs of {self.iterations} iterations, learning rate {self.lr:.2g}{decay}; '
            f'validation every {self.val_interval}, ends early if nothing improves',
            f'average   of the weights over about {round(1 / self.ema_momentum)} iterations'
            + ('; batch norms of the backbone keep their statistics' if self.frozen_norms else ''),
        ]


def parse_model(name: str, task: str) -> Tuple[Optional[str], str, int]:
    """Head, arch and patch size of a name such as 'xcit_s12_16' or 'upernet_xcit_s12_16'.

    Raises:
        UsageError: If there is no such model, or its head is for another task.
    """
    found = _MODEL.fullmatch(name)
    if not found or found[2] not in ARCHS:
        raise UsageError(
            f'--model {name}: expected xcit_ARCH_PATCH with ARCH one of {", ".join(ARCHS)} and PATCH 8 or 16, such as '
            f'xcit_s12_16; upernet_ before it chooses the head of segmentors'
        )
    head = found[1] or HEADS[task][0]
    if head not in HEADS[task]:
        heads = ', '.join(filter(None, HEADS[task])) or 'none'
        raise UsageError(f'--model {name}: the task is {task}, whose heads are: {heads}; leave {found[1]}_ out')
    return head, found[2], int(found[3])


def choose(
    data: Data,
    model: str = 'xcit_s12_16',
    weights: Optional[str] = None,
    size: Optional[int] = None,
    batch: Optional[int] = None,
    epochs: Optional[int] = None,
    lr: Optional[float] = None,
    gpus: int = 1,
    flip: bool = True,
) -> Recipe:
    """Choose the settings: given ones are kept, the rest follow from the data.

    Raises:
        UsageError: If a given setting is impossible.
    """
    head, arch, patch_size = parse_model(model, data.task)
    for name, value in (('size', size), ('batch', batch), ('epochs', epochs), ('lr', lr), ('gpus', gpus)):
        if value is not None and value <= 0:
            raise UsageError(f'--{name} must be above 0, got {value}')
    if gpus > 1 and gpus > torch.cuda.device_count():
        raise UsageError(f'--gpus {gpus}: there are {torch.cuda.device_count()} GPUs')
    weights, whole = _weights(data, weights, head, arch, patch_size)
    train = len(data.of('train'))
    size = size or _size(data, weights is not None)
    if size < 2 * patch_size:
        raise UsageError(f'--size {size}: at least two patches of {patch_size} pixels are needed')
    batch = batch or _batch(data.task, size, train // gpus, weights is not None)
    if batch > train:
        raise UsageError(f'--batch {batch}: there are {train} images to train on')
    iterations = _iterations(data.task, train, batch * gpus)
    kind = data.task, weights is not None
    seen, least, most = LENGTHS[kind]
    epochs = epochs or min(most, max(least, round(seen / train)))
    rate, at, decay = RATES[kind]
    return Recipe(
        task=data.task,
        head=head,
        arch=arch,
        patch_size=patch_size,
        base=_base(head, arch, patch_size),
        weights=weights,
        whole=whole,
        size=size,
        batch=batch,
        gpus=gpus,
        epochs=epochs,
        val_interval=max(1, epochs // VALIDATIONS),
        iterations=iterations,
        lr=lr or float(f'{rate * (batch * gpus / at) ** 0.5:.2g}'),
        layer_decay=decay,
        ema_momentum=float(f'{min(0.05, max(2e-4, 20 / (epochs * iterations))):.2g}'),
        flip=flip,
        workers=min(8, max(1, (os.cpu_count() or 2) // gpus - 1)),
        amp=torch.cuda.is_available(),
    )


def _iterations(task: str, images: int, batch: int) -> int:
    """Iterations in an epoch; classifiers and segmentors drop an incomplete batch."""
    return -(-images // batch) if task in ('detection', 'instance-segmentation') else max(1, images // batch)


def _base(head: Optional[str], arch: str, patch_size: int) -> str:
    """The published config of that size, else of the nearest one."""
    folder = mim_dir() / 'configs'
    prefix = f'{head}_' if head else ''
    for candidate in (arch, 't12', 's12'):
        name = f'{prefix}xcit_{candidate}_{patch_size}_{SUFFIXES[head]}'
        if (folder / f'{name}.py').is_file():
            return name
    raise UsageError(f'there is no published config of {head or "a classifier"} with XCiT-{arch}/{patch_size}')


def _weights(
    data: Data, given: Optional[str], head: Optional[str], arch: str, patch_size: int
) -> Tuple[Optional[str], bool]:
    """The weights to start from, and whether they are of a whole model; adds a note if they cannot be loaded."""
    if given == 'none':
        data.notes.append('training starts from random weights, as --weights none says')
        return None, False
    if given:
        path = _fetch(given) if is_address(given) else given
        if not os.path.isfile(path):
            raise UsageError(f'--weights {given}: there is no such file')
        state = load_checkpoint_file(path)
        state = state.get('state_dict', state)
        # A classifier's head belongs to its own classes, even if their number is the same.
        whole = head is not None and any(key.startswith('backbone.') for key in state)
        return given if is_address(given) else os.path.abspath(path), whole
    known = 'mask_rcnn' if head == 'faster_rcnn' else head
    names = [f'{known}_xcit_{arch}_{patch_size}_{SUFFIXES[known]}'] if known else []
    names += [f'xcit_{arch}_{patch_size}_{kind}' for kind in ('dist_384_in1k', 'dist_in1k', 'in1k')]
    if head is None:
        names = [name for name in names if '384' not in name]
    found = next((name for name in names if find_weights(name)), None)
    if found is None:
        data.notes.append(f'no weights of XCiT-{arch}/{patch_size} are published: training starts from random weights')
        return None, False
    address = f'xcit_mm://{found}'
    try:
        _fetch(address)
    except CheckpointError as error:
        data.notes.append(
            f'the published weights cannot be loaded ({str(error).split(". ")[0]}): training starts from random '
            f'weights, and needs many more images and epochs. Give them with --weights FILE if you can'
        )
        return None, False
    return address, known is not None and found.startswith(known)


def _fetch(address: str) -> str:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        return fetch(resolve(address))
    finally:
        socket.setdefaulttimeout(before)


def _size(data: Data, pretrained: bool) -> int:
    """Short side in pixels. Small images are enlarged, up to the size of the published recipes."""
    short = median(min(one.width, one.height) for one in data.pictures)
    if data.task == 'classification':
        # A pretrained classifier saw objects at this size; from random weights, small images need no more pixels.
        return 224 if pretrained else _steps(min(224, max(64, short)))
    if data.task == 'semantic-segmentation':
        return _steps(min(512, max(128, short)))
    sides = object_sides(data)
    small = sides[len(sides) // 10] if sides else LEAST_OBJECT
    return _steps(min(800, max(256, short * min(2.0, max(1.0, LEAST_OBJECT / small)))))


def _steps(size: float) -> int:
    """Rounded to a multiple of 32."""
    return max(32, round(size / 32) * 32)


def _batch(task: str, size: int, train: int, pretrained: bool) -> int:
    """The largest power of two that fits, with at least eight iterations in an epoch if there are enough images.

    From random weights, the number of steps matters more than the batch size.
    """
    images, pixels, most = BATCHES[task]
    area = size * size * (1333 / 800 if task in ('detection', 'instance-segmentation') else 1)
    most = most if pretrained else most // 2
    wanted = min(most, images * pixels / area, max(train / 8, min(2, train)))
    return 1 << max(0, int(wanted).bit_length() - 1)
