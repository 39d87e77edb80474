"""Inference on images, folders, videos and more with a model of any of the three libraries."""

import json
import os
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from ..datasets.loading import BadImage, widen
from ..datasets.reading import test_pipeline, to_picture
from ..datasets.sources import Images, Missing, Source, Video, fetch, find_images, is_several
from ..engine.large_images import use_large_images
from ..engine.screen import without_noise
from ..errors import DISK, UsageError
from ..visualization.predictions import write_picture
from .exported import is_exported, open_exported
from .geo import Raster, add_world, at_scale, is_raster, write_map, write_world
from .model import Model, build, choose
from .overview import draw_overview
from .tiles import Tiles, predict_image

__all__ = ['Inferencer', 'find_images']
COLUMNS = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


class Shot(NamedTuple):
    """One image to predict.

    Attributes:
        name (str): For what is written about it.
        label (str): Its name in the result: its path or address, else ``name``.
        source: Input of the reader; None if there is no image.
        video (Video, optional): The video of which it is a frame.
        frame (int): Its number in the video.
        reason (str, optional): Why there is no image.
    """

    name: str
    label: str
    source: object
    video: Optional[Video] = None
    frame: int = 0
    reason: Optional[str] = None


class Inferencer:
    """A model, ready to predict.

    ``Inferencer('mask_rcnn_xcit_s12_8_3x_coco')('photos', out_dir='results')``

    Images are read as the test pipeline of the config says: with its depth, channels and decoder.

    Args:
        model (str | Path | Config): A config, a config file, or a name of :func:`xcit_mm.list_models`; or an exported
            file, .onnx or .xml (:func:`~xcit_mm.apis.exported.open_exported`).
        checkpoint (str | Path, optional): File or address of the weights; the published ones of a name if not given.
            None for an exported file.
        device (str, optional): Such as 'cuda:0' or 'cpu'; a GPU if there is one.
        cfg_options (dict, optional): Settings of the config to change, such as
            ``{'test_dataloader.dataset.pipeline.1.scale': (6000, 4000)}``.
        tiles (int, optional): Detectors and segmentors: cut images into tiles of that many pixels, each of which goes
            through the pipeline as an image, and merge the results.
        overlap (float): Overlap of neighbouring tiles, as a share of their size.

    Raises:
        UsageError: If there is no such model or setting, the config is wrong, or no weights are given.
        CheckpointError: If the weights are those of another model.
    """

    @without_noise()  # of the libraries, which are imported here
    def __init__(
        self,
        model: Model,
        checkpoint: Union[str, Path, None] = None,
        device: Optional[str] = None,
        cfg_options: Optional[dict] = None,
        tiles: Optional[int] = None,
        overlap: float = 0.25,
    ):
        self.tiles = None if tiles is None else Tiles(tiles, overlap).check()
        built: nn.Module
        if is_exported(model):
            if checkpoint or cfg_options:
                raise UsageError(f'{model} is exported: it has its weights and settings, and takes no others')
            cfg, built = open_exported(model, device)
            kind = _task_of(cfg, self.tiles)
        else:
            cfg, checkpoint = choose(model, checkpoint, cfg_options)
            use_large_images(cfg)
            kind = _task_of(cfg, self.tiles)
            built = build(cfg, checkpoint, device or ('cuda:0' if torch.cuda.is_available() else 'cpu'))
        self.task = kind(cfg, built)

    def __call__(
        self,
        images,
        out_dir: Union[str, Path, None] = None,
        score_thr: float = 0.3,
        batch_size: int = 1,
        overlays: bool = True,
        channel_order: str = 'BGR',
    ) -> List[dict]:
        """Predict, and write the results, image by image.

        Args:
            images: An image file, a video, a folder (with its sub-folders), a glob, an address (http://, https://,
                file://; of a video or an rtsp:// stream), the number of a camera, the bytes of a file, a PIL image, an
                array (H, W) or (H, W, channels), or several of these in a list, a generator or an array (N, H, W,
                channels). An array is read as a file of its pixels would be.
            out_dir (str, optional): Where to write ``results.json``, ``summary.json``, ``overview.jpg`` and the
                pictures in ``overlays``; nothing is written if it is not given.
            score_thr (float): Detections of lower scores are left out.
            batch_size (int): Images, or tiles, that are computed together, if they are of one size.
            overlays (bool): Draw the predictions.
            channel_order (str): 'BGR' or 'RGB', of arrays.

        Returns:
            list[dict]: For each image 'image' (its path), 'height' and 'width' in pixels, and

            - of a detector 'detections': 'class', 'label', 'score', 'box' [x1, y1, x2, y2] in pixels and, of models
              with masks, 'mask' in COCO's run-length encoding;
            - of a segmentor 'classes': 'class', 'label' and 'fraction' of the image; and 'map', the file of labels, or
              the array (H, W) itself if nothing is written;
            - of a classifier 'predictions': 'class', 'label' and 'score' of the five best.

            What is written of a georeferenced TIFF has 'crs' and the corners of boxes as 'world', and its 'geojson'.
            A frame of a video has its number as 'frame'. An image that cannot be read has 'error' instead; one with
            unusual values has 'warning'.

        Raises:
            UsageError: If there are no images, or the only one cannot be read.
        """
        if batch_size < 1:
            raise UsageError(f'the batch size must be at least 1, got {batch_size}')
        if channel_order not in ('BGR', 'RGB'):
            raise UsageError(f"channel_order must be 'BGR' or 'RGB', got {channel_order!r}")
        named = images if isinstance(images, Images) else find_images(images)
        if out_dir and isinstance(named, Images):
            named = named.outside(out_dir)  # not what an earlier call wrote
        writer = Writer(out_dir, self.task, overlays) if out_dir else None
        results, clock = [], Clock()
        left_out = dict(getattr(named, 'left_out', {}))
        try:
            images_at_once, tile_batch = (1, batch_size) if self.tiles else (batch_size, 1)
            for batch in _batches(self._progress(_shots(named), named, bool(writer)), images_at_once):
                for result, shot, image, sample in self._look(batch, score_thr, channel_order, clock, tile_batch):
                    if writer and sample is not None:
                        with clock.count('drawing'):
                            writer.write(result, shot, image, sample, score_thr)
                    if writer:
                        writer.add(result)
                    results.append(result)
        finally:
            if writer:
                writer.close({**summarise(results, clock, self.task), 'left_out': left_out})
        if not is_several(images) and len(results) == 1 and 'error' in results[0] and not _has_path(named):
            raise UsageError(results[0]['error'])
        return results

    def stream(self, images, score_thr: float = 0.3, batch_size: int = 1, channel_order: str = 'BGR') -> Iterator[dict]:
        """Yield results one by one and keep none: for cameras, streams and more images than memory holds.

        ``for result in Inferencer('mask_rcnn_xcit_s12_8_3x_coco').stream(0): ...``

        Args:
            images, score_thr, batch_size, channel_order: As for :meth:`__call__`.

        Yields:
            dict: The result of an image as soon as its batch is done, as :meth:`__call__` returns them.
        """
        named = images if isinstance(images, Images) else find_images(images)
        for batch in _batches(_shots(named), batch_size):
            for result, *_ in self._look(batch, score_thr, channel_order, Clock()):
                yield result

    def picture(self, image, score_thr: float = 0.3) -> np.ndarray:
        """Draw the predictions of one image.

        Args:
            image: As for :meth:`__call__`, but arrays are RGB.
            score_thr (float): Detections of lower scores are left out.

        Returns:
            np.ndarray: (H, W, 3) uint8, RGB.

        Raises:
            UsageError: If there is no image.
        """
        ((name, source),) = find_images(image)
        ((result, _, read, sample),) = self._look(list(islice(_shots([(name, source)]), 1)), score_thr, 'RGB', Clock())
        if 'error' in result:
            raise UsageError(result['error'])
        return self.task.draw(to_picture(read['img'], self.task.reader.order), sample, score_thr)

    @staticmethod
    def _progress(shots: Iterator[Shot], named, shown: bool) -> Iterator[Shot]:
        is_known = isinstance(named, list) and not any(isinstance(item, Video) for _, item in named)
        with Progress(*COLUMNS, disable=not shown) as progress:
            yield from progress.track(shots, len(named) if is_known else None, description='images')

    def _look(
        self, batch: List[Shot], score_thr: float, channel_order: str, clock, tile_batch: int = 1
    ) -> Iterator[tuple]:
        """Results of a batch, each with its shot and, if there is one, the image and the sample."""
        read: List[Tuple[Shot, Optional[dict], Optional[str]]] = []
        with clock.count('reading'):
            for shot in batch:
                try:
                    read.append((shot, self._read(shot, channel_order), None))
                except BadImage as bad:
                    read.append((shot, None, str(bad)))
        good = [image for _, image, _ in read if image is not None]
        with clock.count('predicting'):
            if self.tiles:
                samples = iter([predict_image(self.task, image, self.tiles, tile_batch) for image in good])
            else:
                samples = iter(self.task.predict(good) if good else [])
        clock.images += len(good)
        for shot, image, error in read:
            result: Dict[str, Any] = {
                'image': shot.label,
                **({'frame': shot.frame} if shot.video and not shot.reason else {}),
            }
            sample = None if image is None else next(samples)
            if isinstance(sample, str):
                sample, error = None, f'cannot be predicted: {sample}'
            if error or image is None:
                result['error'] = error
            else:
                result['height'], result['width'] = image['ori_shape'][:2]
                warning = self.task.warn(image) or _more_pages(shot.source)
                if warning:
                    result['warning'] = warning
                with clock.count('predicting'):
                    result.update(self.task.describe(sample, score_thr))
            yield result, shot, image, sample

    def _read(self, shot: Shot, channel_order: str) -> dict:
        if shot.reason:
            raise BadImage(shot.reason)
        if self.tiles and is_raster(shot.source) and self.task.reader.is_plain:
            try:
                return Raster(Path(str(shot.source)), self.task.reader).preview()
            except BadImage as error:
                raise BadImage(f'cannot be read: {error}') from None
        try:
            source = fetch(shot.source) if isinstance(shot.source, str) else shot.source
            image = self.task.reader.read(source, 'BGR' if shot.video else channel_order)
        except BadImage as error:
            raise BadImage(f'cannot be read: {error}') from None
        pixels = image['img']
        if widen(pixels) is not pixels:
            raise BadImage(
                f'cannot be resized: it is only {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width)'
            )
        return image


def _more_pages(source) -> Optional[str]:
    """A warning if a file holds more pictures than the one that is read; None if not."""
    if isinstance(source, Path) and source.suffix.lower() in ('.tif', '.tiff', '.webp'):
        with suppress(Exception), Image.open(source) as image:
            if getattr(image, 'n_frames', 1) > 1:
                return f'it holds {image.n_frames} pictures; only the first is read'
    return None


def _has_path(named) -> bool:
    return any(isinstance(item, (Path, Video, str)) for _, item in named)


def _shots(named: Iterable[Tuple[str, Source]]) -> Iterator[Shot]:
    """Yield each image, and each frame of a video."""
    for name, item in named:
        if isinstance(item, Missing):
            yield Shot(name, item.given, None, reason=item.reason)
        elif isinstance(item, Video):
            try:
                for number, frame in enumerate(item.frames()):
                    yield Shot(name, item.label, frame, item, number)
            except BadImage as error:
                yield Shot(name, item.label, None, item, reason=f'cannot be read: {error}')
        else:
            yield Shot(name, str(item) if isinstance(item, (Path, str)) else _label(item, name), item)


def _label(item, name: str) -> str:
    return getattr(item, 'filename', '') or name


def _batches(items: Iterator[Shot], size: int) -> Iterator[List[Shot]]:
    while True:
        batch = list(islice(items, size))
        if not batch:
            return
        yield batch


def _task_of(cfg: Config, tiles: Optional[Tiles]) -> type:
    """The task class for models of the config's library.

    Raises:
        UsageError: If there is none, images cannot be read as the config says, or it has no use for tiles.
    """
    scope = cfg.get('default_scope')
    if not test_pipeline(cfg):
        raise UsageError('the config has no test_dataloader.dataset.pipeline, which says how images are read')
    if tiles and scope == 'mmpretrain':
        raise UsageError('tiles are for detectors and segmentors, and this model is a classifier')
    if scope == 'mmdet':
        from .tasks.detector import Detector

        return Detector
    if scope == 'mmseg':
        from .tasks.segmentor import Segmentor

        return Segmentor
    if scope == 'mmpretrain':
        from .tasks.classifier import Classifier

        return Classifier
    raise UsageError(f'the config has default_scope={scope!r}; expected mmdet, mmseg or mmpretrain')


class Clock:
    """Seconds spent, by activity."""

    def __init__(self):
        self.seconds = {'reading': 0.0, 'predicting': 0.0, 'drawing': 0.0}
        self.images = 0

    def count(self, what: str):
        return _Count(self.seconds, what)


class _Count:
    def __init__(self, seconds: dict, what: str):
        self.seconds, self.what = seconds, what

    def __enter__(self):
        self.begin = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.what] += time.perf_counter() - self.begin


class Writer:
    """Write results one by one. ``results.json`` is complete JSON after every image.

    Args:
        folder (str): Where the results go; created if missing.
        task (Task): Draws the predictions.
        overlays (bool): Draw the predictions.

    Raises:
        UsageError: If the folder cannot be written to.
    """

    def __init__(self, folder: Union[str, Path], task, overlays: bool):
        self.folder, self.task, self.overlays = Path(folder), task, overlays
        self.path = self.folder / 'results.json'
        self.drawn: List[Path] = []
        self.video: Tuple[Optional[Video], Optional[cv2.VideoWriter]] = (None, None)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text('[]\n')
        except OSError as error:
            raise UsageError(f'the folder {folder} cannot be written to ({error.strerror})') from None
        self.end = 1  # where the list is closed

    def add(self, result: dict) -> None:
        """Append a result, in which a label map is already the name of its file."""
        text = json.dumps(result, indent=1).replace('\n', '\n ')
        text = ('\n ' if self.end == 1 else ',\n ') + text
        with open(self.path, 'r+', encoding='ascii') as file:
            file.seek(self.end)
            file.write(text + '\n]\n')
        self.end += len(text)

    def write(self, result: dict, shot: Shot, image: dict, sample, score_thr: float) -> None:
        """Write the overlay and, of a segmentor, the map; its file name replaces it in the result."""
        name = shot.name if shot.video is None else f'{shot.name}/{shot.frame:06d}'
        try:
            if 'map' in result:
                labels = result.pop('map')
                path = self.folder / 'maps' / f'{name}.png'
                labels = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
                geo = path.with_suffix('.tif')
                if is_raster(shot.source) and write_map(labels, Path(str(shot.source)), geo):
                    path = geo
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(cv2.imencode('.png', labels)[1].tobytes())
                result['map'] = str(path.relative_to(self.folder))
            features = add_world(result, shot.source)
            if features is not None:
                path = self.folder / 'geojson' / f'{name}.geojson'
                write_world(features, path)
                result['geojson'] = str(path.relative_to(self.folder))
            if self.overlays:
                picture = to_picture(image['img'], self.task.reader.order)
                picture = self.task.draw(picture, at_scale(sample, image['ori_shape'][:2], picture), score_thr)
                self._show(shot, picture)
        except OSError as error:
            if error.errno in DISK:
                raise
            result['error'] = f'cannot be written: {error.strerror or error}'

    def _show(self, shot: Shot, picture: np.ndarray) -> None:
        if shot.video is None:
            path = self.folder / 'overlays' / f'{shot.name}.jpg'
            write_picture(str(path), picture)
            self.drawn.append(path)
            return
        height, width = (side - side % 2 for side in picture.shape[:2])  # most players need even sides
        if self.video[0] is not shot.video and height and width:
            self._end_video()
            path = self.folder / 'overlays' / f'{shot.name}.mp4'
            path.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*'mp4v')
            self.video = shot.video, cv2.VideoWriter(str(path), code, shot.video.rate, (width, height))
        if self.video[1] is not None:
            self.video[1].write(np.ascontiguousarray(picture[:height, :width, ::-1]))

    def _end_video(self) -> None:
        if self.video[1] is not None:
            self.video[1].release()
        self.video = None, None

    def close(self, summary: dict) -> None:
        """Write the summary and the overview."""
        self._end_video()
        (self.folder / 'summary.json').write_text(json.dumps(summary, indent=1))
        overview = self.folder / 'overview.jpg'
        with suppress(FileNotFoundError):  # of an earlier call
            os.remove(overview)
        draw_overview(self.drawn, overview)


def summarise(results: Sequence[dict], clock: Clock, task) -> dict:
    """Statistics over all images: counts, seconds, and how often each class was found."""
    good = [result for result in results if 'error' not in result]
    each = max(clock.images, 1)
    return {
        'images': len(results),
        'unreadable': [result['image'] for result in results if 'error' in result],
        'seconds_per_image': clock.seconds['predicting'] / each,
        'seconds_reading_each': clock.seconds['reading'] / each,
        'seconds_drawing_each': clock.seconds['drawing'] / each,
        **task.summarise(good),
    }
