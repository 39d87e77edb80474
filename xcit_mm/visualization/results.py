"""Pictures of a test: annotations and predictions of every image, in one folder for all three libraries."""

import os
from typing import Optional, Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook

from ..datasets.config import find_loaders, innermost_datasets
from ..datasets.reading import model_input
from ..errors import UsageError
from ..registry import HOOKS
from .colours import DARK, colours_of, palette_of
from .predictions import WRITABLE, draw_classes, draw_detections, draw_map, side_by_side, write_picture

KNOWN = ('mmdet', 'mmseg', 'mmpretrain')


def draw_results(cfg: Config, folder: str) -> None:
    """Make a test draw its results.

    Args:
        cfg (Config): Changed in place.
        folder (str): As the user typed it: absolute, or from the current folder.

    Raises:
        UsageError: If the library is none of the three, or the folder cannot be written to.
    """
    if cfg.get('default_scope') not in KNOWN:
        raise UsageError(f'--show-dir knows {", ".join(KNOWN)}, and the config has {cfg.get("default_scope")!r}')
    try:
        os.makedirs(folder, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise UsageError(f'--show-dir {folder} cannot be created ({error.strerror})') from None
    if not writable:
        raise UsageError(f'--show-dir {folder} cannot be written to')
    hook = (cfg.get('default_hooks') or {}).get('visualization') or {}
    cfg.custom_hooks = [
        *(cfg.get('custom_hooks') or []),
        dict(type='xcit_mm.PicturesHook', folder=os.path.abspath(folder), score_thr=hook.get('score_thr', 0.3)),
    ]


@HOOKS.register_module()
class PicturesHook(Hook):
    """Draw every image of a test at full size, and print at the end where the pictures are.

    Detectors and segmentors: the annotations on the left, the predictions on the right. A picture keeps the name of its
    image and the sub-folders of its data set.

    Args:
        folder (str): Where the pictures go; created if missing.
        score_thr (float): Detections of lower scores are left out.
    """

    priority = 'LOW'

    def __init__(self, folder: str, score_thr: float = 0.3):
        self.folder, self.score_thr, self.drawn = folder, score_thr, 0

    def before_test(self, runner) -> None:
        cfg = runner.cfg
        self.scope = cfg.get('default_scope')
        self.reader = model_input(cfg).reader
        meta = getattr(runner.test_loop.dataloader.dataset, 'metainfo', None) or {}
        self.classes = meta.get('classes')
        self.colours = colours_of(self.classes, palette_of(cfg), 0 if self.classes else 1000)
        self.root = _common_root(cfg)

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[Sequence] = None) -> None:
        for sample in outputs or ():
            path = sample.get('img_path')
            if not isinstance(path, str):
                continue  # an image of several files, or of none
            shape = sample.get('ori_shape')
            image = self.reader.picture(path, tuple(shape[:2]))
            write_picture(self._target(path), getattr(self, f'_draw_{self.scope}')(image, sample.cpu()))
            self.drawn += 1

    def after_test(self, runner) -> None:
        number = torch.tensor(self.drawn)
        all_reduce(number)
        if is_main_process():
            print(f'{int(number)} pictures are in {self.folder}', flush=True)

    def _target(self, path: str) -> str:
        full = path if '://' in path else os.path.abspath(path)
        inside = os.path.relpath(full, self.root) if self.root and '://' not in full else full.split('://')[-1]
        if inside.startswith('..'):
            inside = full
        inside = os.path.join(*(part for part in inside.split(os.sep) if part not in ('', '..')))
        is_writable = os.path.splitext(inside)[1].lower() in WRITABLE
        return os.path.join(self.folder, inside if is_writable else f'{inside}.png')

    def _name(self, label: int) -> str:
        return str(self.classes[label]) if self.classes and label < len(self.classes) else str(label)

    def _colour(self, label: int):
        return self.colours[label % len(self.colours)]

    def _draw_mmdet(self, image: np.ndarray, sample) -> np.ndarray:
        parts = []
        for name in ('gt_instances', 'pred_instances'):
            found = sample.get(name)
            if found is None:
                continue
            scores = None
            if 'scores' in found:
                found = found[found.scores >= self.score_thr]
                scores = found.scores.tolist()
            boxes = getattr(found.bboxes, 'tensor', found.bboxes).numpy()
            masks = found.get('masks')
            if masks is not None and not isinstance(masks, list):  # RLE has the size of the original image
                masks = np.asarray(getattr(masks, 'to_ndarray', lambda m=masks: m)(), bool)
                masks = masks if masks.shape[1:] == image.shape[:2] else None  # of a resized image
            parts.append(
                draw_detections(image, boxes, found.labels.tolist(), self.classes, self.colours, scores, masks)
            )
        return side_by_side(parts or [image])

    def _draw_mmseg(self, image: np.ndarray, sample) -> np.ndarray:
        names = [self._name(i) for i in range(len(self.colours))]
        maps = [sample.get(name) for name in ('gt_sem_seg', 'pred_sem_seg')]
        drawn = [draw_map(image, found.data[0].numpy(), names, self.colours) for found in maps if found is not None]
        return side_by_side(drawn or [image])

    def _draw_mmpretrain(self, image: np.ndarray, sample) -> np.ndarray:
        lines = []
        truth = sample.get('gt_label')
        if truth is not None:
            labels = truth.flatten().tolist()
            colour = self._colour(labels[0]) if labels else DARK
            lines.append((f'truth: {", ".join(map(self._name, labels))}', colour))
        if sample.get('pred_score') is not None:
            score, label = sample.pred_score.max(dim=0)
            lines.append((f'{self._name(int(label))} {float(score):.2f}', self._colour(int(label))))
        return draw_classes(image, lines)


def _common_root(cfg: Config) -> str:
    """The folder that all images of the test have in common, by the config."""
    folders = []
    for dataset in innermost_datasets(find_loaders(cfg)['test']['dataset']):
        prefix = dataset.get('data_prefix')
        if isinstance(prefix, dict):
            prefix = next((prefix[key] for key in ('img', 'img_path') if isinstance(prefix.get(key), str)), '')
        parts = [dataset.get('data_root') or '', prefix if isinstance(prefix, str) else '']
        if not parts[1] and isinstance(dataset.get('split'), str):
            parts[1] = dataset['split']
        folder = os.path.join(*parts)
        if '://' not in folder:
            folders.append(os.path.abspath(folder))
    return os.path.commonpath(folders) if folders else ''
