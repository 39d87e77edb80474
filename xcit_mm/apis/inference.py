"""Inference on images, folders and globs with a model of any of the three libraries."""

import glob
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.utils import track_iter_progress

from ..checkpoint import is_address
from ..checks.config import apply_options
from ..datasets.loading import BadImage, read_image, widen
from ..errors import UsageError
from .names import find_model, no_model
from .overview import draw_overview

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
Images = Union[str, Path, np.ndarray, Sequence[Union[str, Path, np.ndarray]]]


class Inferencer:
    """A model, ready to look at images.

    ``Inferencer('mask_rcnn_xcit_s12_8_3x_coco')('photos', out_dir='results')``

    Args:
        model (str): A config file, or a name of :func:`xcit_mm.list_models`.
        checkpoint (str, optional): File or address of the weights; the published ones of a name if not given.
        device (str, optional): Such as 'cuda:0' or 'cpu'; a GPU if there is one.
        cfg_options (dict, optional): Settings of the config to change, such as
            ``{'test_dataloader.dataset.pipeline.1.scale': (6000, 4000)}``.

    Raises:
        UsageError: If there is no such model or setting, or a config comes without weights.
        CheckpointError: If the weights are those of another model.
    """

    def __init__(
        self,
        model: str,
        checkpoint: Optional[str] = None,
        device: Optional[str] = None,
        cfg_options: Optional[dict] = None,
    ):
        found = find_model(model)
        if not found and not os.path.isfile(model):
            raise UsageError(no_model(model))
        config, published = found or (model, None)
        checkpoint = checkpoint or published
        if not checkpoint:
            raise UsageError(f'{model} needs the checkpoint of a trained model')
        if not is_address(checkpoint) and not os.path.isfile(checkpoint):
            raise UsageError(f'there is no checkpoint file {checkpoint}')
        cfg = Config.fromfile(config)
        apply_options(cfg, cfg_options)
        device = device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
        self.task = _task_of(cfg)(cfg, checkpoint, device)

    def __call__(
        self, images: Images, out_dir: Union[str, Path, None] = None, score_thr: float = 0.3, batch_size: int = 1
    ) -> List[dict]:
        """Predict, and write what was found.

        Args:
            images: An image file, a folder (with its sub-folders), a glob, an array (H, W, 3) of BGR bytes, or a list
                of these.
            out_dir (str, optional): Where to write ``results.json``, ``summary.json``, ``overview.jpg`` and the
                pictures in ``overlays``; nothing is written if it is not given.
            score_thr (float): Detections of lower scores are left out.
            batch_size (int): Images that are computed together.

        Returns:
            list[dict]: For each image 'image' (its path), 'height' and 'width' in pixels, and

            - of a detector 'detections': 'class', 'label', 'score', 'box' [x1, y1, x2, y2] in pixels and, of models
              with masks, 'mask' in COCO's run-length encoding;
            - of a segmentor 'classes': 'class', 'label' and 'fraction' of the image; and 'map', the file of labels, or
              the array (H, W) itself if nothing is written;
            - of a classifier 'predictions': 'class', 'label' and 'score' of the five best.

            An image that cannot be read has 'error' instead.

        Raises:
            UsageError: If there are no images.
        """
        named = find_images(images)
        out = _make_folder(out_dir) if out_dir else None
        results, overlays, seconds = [], [], 0.0
        for batch in track_iter_progress(list(_batches(named, batch_size))) if out else _batches(named, batch_size):
            read = [(name, image, *_read(image)) for name, image in batch]
            good = [(name, pixels) for name, _, pixels, _ in read if pixels is not None]
            begin = time.perf_counter()
            samples = iter(self.task.predict([pixels for _, pixels in good]) if good else [])
            seconds += time.perf_counter() - begin
            for name, image, pixels, error in read:
                result = {'image': name if isinstance(image, np.ndarray) else str(image)}
                results.append(result)
                if error:
                    result['error'] = error
                    continue
                result['height'], result['width'] = pixels.shape[:2]
                sample = next(samples)
                result.update(self.task.describe(sample, score_thr))
                if out:
                    self._write(out, name, pixels, sample, result, score_thr)
                    overlays.append(out / 'overlays' / f'{name}.jpg')
        if out:
            summary = summarise(results, seconds, self.task)
            (out / 'results.json').write_text(json.dumps(results, indent=1))
            (out / 'summary.json').write_text(json.dumps(summary, indent=1))
            draw_overview(overlays, out / 'overview.jpg')
        return results

    def _write(self, out: Path, name: str, pixels, sample, result: dict, score_thr: float) -> None:
        overlay = self.task.draw(pixels[..., ::-1], sample, score_thr)
        mmcv.imwrite(np.ascontiguousarray(overlay[..., ::-1]), str(out / 'overlays' / f'{name}.jpg'))
        if 'map' in result:
            path = out / 'maps' / f'{name}.png'
            mmcv.imwrite(result['map'].astype(np.uint8 if result['map'].max() < 256 else np.uint16), str(path))
            result['map'] = str(path.relative_to(out))


def find_images(images: Images) -> List[Tuple[str, Union[Path, np.ndarray]]]:
    """Images with names for what will be written about them: unique, relative to the folder they have in common.

    Raises:
        UsageError: If a path matches nothing, or there are no images at all.
    """
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    found: List[Union[Path, np.ndarray]] = []
    for item in given:
        found.extend([item] if isinstance(item, np.ndarray) else _expand(str(item)))
    if not found:
        raise UsageError('there are no images: the list is empty')
    files = [item for item in found if isinstance(item, Path)]
    root = os.path.commonpath([str(path.resolve().parent) for path in files]) if files else ''
    stems = Counter(path.resolve().with_suffix('') for path in files)
    names: Counter = Counter()
    result = []
    for item in found:
        if isinstance(item, np.ndarray):
            name = f'array_{len(result)}'
        else:
            full = item.resolve()
            short = full if stems[full.with_suffix('')] > 1 else full.with_suffix('')
            name = os.path.relpath(str(short), root)
        names[name] += 1
        result.append((name if names[name] == 1 else f'{name}_{names[name]}', item))
    return result


def _expand(text: str) -> List[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise UsageError(f'the folder {text} holds no images ({", ".join(IMAGE_SUFFIXES)})')
        return found
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
    if not found:
        raise UsageError(f'{text} is no image, no folder, and as a glob matches no file')
    return found


def _read(image: Union[Path, np.ndarray]) -> Tuple[Optional[np.ndarray], Optional[str]]:
    """BGR pixels, or why there are none."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UsageError(f'an image array must be (H, W, 3) of BGR bytes, got {image.shape} of {image.dtype}')
        return image, None
    try:
        pixels = read_image(str(image))
    except BadImage as error:
        return None, f'cannot be read: {error}'
    if widen(pixels) is not pixels:
        return None, f'cannot be resized: it is only {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width)'
    return pixels, None


def _batches(items: list, size: int) -> Iterator[list]:
    if size < 1:
        raise UsageError(f'the batch size must be at least 1, got {size}')
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _make_folder(path: Union[str, Path]) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f'the folder {path} cannot be written to ({error.strerror})') from None
    return Path(path)


def _task_of(cfg: Config) -> type:
    """What a model of the config's library does."""
    scope = cfg.get('default_scope')
    if scope == 'mmdet':
        from .tasks.detector import Detector as Task
    elif scope == 'mmseg':
        from .tasks.segmentor import Segmentor as Task
    elif scope == 'mmpretrain':
        from .tasks.classifier import Classifier as Task
    else:
        raise UsageError(f'the config has default_scope={scope!r}; expected mmdet, mmseg or mmpretrain')
    return Task


def summarise(results: Sequence[dict], seconds: float, task) -> dict:
    """Numbers over all images: how many, how long, and how often each class was found."""
    good = [result for result in results if 'error' not in result]
    return {
        'images': len(results),
        'unreadable': [result['image'] for result in results if 'error' in result],
        'seconds_per_image': seconds / max(len(good), 1),
        **task.summarise(good),
    }
