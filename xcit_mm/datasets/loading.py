"""Load images and label maps of which some are missing or damaged, without ending the run.

Unreadable files are appended to a list that all processes share, so each is reported once and counted.
"""

import io
import logging
import os
import re
from typing import Dict, List, NamedTuple, Optional

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from PIL import Image

from ..errors import UsageError
from ..registry import TRANSFORMS

TREATMENTS = ('resample', 'blank')
# This many unreadable files in a row mean a wrong path, not damage; MMEngine would give up after 1000.
TOO_MANY_IN_A_ROW = 200
GREY, IGNORED = 128, 255
BLANK = 'a grey image takes its place and counts as wrong'
PIXELS_IGNORED = 'these pixels are ignored'
# Resizing the long side of a longer strip would shrink its short side below a patch, or below a pixel.
LONGEST_STRIP = 16
EXIF_ORIENTATION = 0x0112
ONE_PIXEL = 'it is one pixel high or wide, which MMSegmentation cannot read'


class BadImage(Exception):
    """A file that cannot be read as an image; the message says why."""


class BadFile(NamedTuple):
    """One line of the list of bad images."""

    path: str
    reason: str
    consequence: str


def read_image(path: str, flag: str = 'color', backend: str = 'cv2', backend_args: Optional[dict] = None) -> np.ndarray:
    """Read and decode an image.

    Args:
        path (str): A file, or an address that one of MMEngine's file backends reads.
        flag, backend: As for :func:`mmcv.imfrombytes`.
        backend_args (dict, optional): As for :func:`mmengine.fileio.get`.

    Returns:
        np.ndarray: (H, W, 3) or (H, W), uint8 in general; BGR.

    Raises:
        BadImage: If it is missing, not an image, or truncated.
    """
    return decode(read_bytes(path, backend_args), flag, backend)


def read_bytes(path: str, backend_args: Optional[dict] = None) -> bytes:
    """Read the bytes of a file or address; raise :class:`BadImage` if that fails or there are none."""
    try:
        data = fileio.get(path, backend_args=backend_args)
    except FileNotFoundError:
        raise BadImage('there is no such file') from None
    except Exception as error:  # of the disk, or of the client of a remote storage
        raise BadImage(f'it cannot be read ({type(error).__name__}: {error})') from None
    if not data:
        raise BadImage('the file is empty')
    return data


def decode(data: bytes, flag: str = 'color', backend: str = 'cv2') -> np.ndarray:
    """Decode the bytes of an image file; raise :class:`BadImage` if they are truncated or no image."""
    try:
        image = mmcv.imfrombytes(data, flag=flag, backend=backend)
        if _may_be_cut_off(data):
            Image.open(io.BytesIO(data)).load()
    except MemoryError:
        raise
    except Exception:  # every decoder raises its own errors
        image = None
    if image is None:
        size, start = len(data), bytes(data[:12])
        raise BadImage(f'it is cut off, damaged or no image ({size} bytes, beginning with {start!r})')
    return image


def is_turned(data: bytes) -> bool:
    """True if the EXIF orientation swaps height and width; decoders apply it."""
    if b'Exif' not in data[: 1 << 16]:
        return False
    try:
        return Image.open(io.BytesIO(data)).getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # unreadable EXIF data is not applied
        return False


def _is_deep(data: bytes) -> bool:
    """True if Pillow sees more than 8 bits per channel."""
    try:
        return Image.open(io.BytesIO(data)).mode.startswith(('I', 'F'))
    except Exception:  # decoding will say what is wrong
        return False


def widen(image: np.ndarray, value: Optional[int] = None) -> np.ndarray:
    """Pad at the bottom or on the right until no side is more than 16 times the other.

    Coordinates stay as they are.

    Args:
        image (np.ndarray): (H, W) or (H, W, channels).
        value (int, optional): Value of the new pixels; by default the edge is repeated.
    """
    least = -(-max(image.shape[:2]) // LONGEST_STRIP)
    missing = [(0, max(least - side, 0)) for side in image.shape[:2]] + [(0, 0)] * (image.ndim - 2)
    if not any(after for _, after in missing):
        return image
    if value is None:
        return np.pad(image, missing, 'edge')
    return np.pad(image, missing, constant_values=value)


def _may_be_cut_off(data: bytes) -> bool:
    """True if a JPEG is truncated; many versions of OpenCV silently fill the rest with grey."""
    return data[:2] == b'\xff\xd8' and b'\xff\xd9' not in data[-4096:]


class BadImageReport:
    """The list of bad images of a run: a text file with one line for each, which every process appends to.

    Args:
        path (str): The file, created with the first line.
    """

    def __init__(self, path: str):
        self.path = path
        self.files: Dict[str, BadFile] = {}
        self._read = 0

    def update(self) -> List[BadFile]:
        """Read the lines that any process has added since the last call."""
        try:
            if os.path.getsize(self.path) == self._read:
                return []
            with open(self.path, 'rb') as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return []
        text = text[: text.rfind(b'\n') + 1]
        self._read += len(text)
        new: Dict[str, BadFile] = {}
        for line in os.fsdecode(text).splitlines():
            bad = BadFile(*line.split('\t'))
            if bad.path not in self.files:
                new.setdefault(bad.path, bad)
        self.files.update(new)
        return list(new.values())

    def add(self, file: BadFile) -> None:
        """Add a file unless it is on the list."""
        file = BadFile(*(re.sub(r'\s', ' ', field) for field in file))
        self.update()
        if file.path in self.files:
            return
        # A single append is atomic: other processes cannot interleave.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, os.fsencode('\t'.join(file) + '\n'))
        finally:
            os.close(descriptor)


class _Watch:
    """Records the bad files of one transform, and ends the run if it gets nothing else.

    Args:
        report (str, optional): The list of bad images of the run. Without one they are named in the log, each time.
    """

    def __init__(self, report: Optional[str] = None):
        self.in_a_row = 0
        self.report = report and BadImageReport(report)

    def good(self) -> None:
        self.in_a_row = 0

    def bad(self, path: str, reason: str, consequence: str) -> None:
        self.in_a_row += 1
        if self.in_a_row >= TOO_MANY_IN_A_ROW:
            raise UsageError(
                f'none of the last {self.in_a_row} images could be read, the latest being {path}: {reason}. Check that '
                f'the data set is complete and lies where the config says (data_root, data_prefix); '
                f'--bad-images refuse lists everything that cannot be read'
            )
        self.note(BadFile(path, reason, consequence))

    def note(self, file: BadFile) -> None:
        if self.report:
            try:
                return self.report.add(file)
            except OSError:  # do not lose the run because of, say, a full disk
                pass
        print_log(f'bad image {file.path}: {file.reason}; {file.consequence}', 'current', logging.WARNING)


def _beyond_bytes(path: str) -> Optional[str]:
    """Why a map with classes above 255, which MMSegmentation would confuse, is bad; None if it has none."""
    if '://' in path:
        return None
    with Image.open(path) as image:
        if image.mode.startswith(('I', 'F')) and np.asarray(image).max() > IGNORED:
            return f'it has classes up to {np.asarray(image).max()}, and MMSegmentation reads 8 bits'
    return None


def _checked(bad_image: str) -> str:
    if bad_image not in TREATMENTS:
        raise ValueError(f"bad_image must be 'resample' or 'blank', got {bad_image!r}")
    return bad_image


@TRANSFORMS.register_module()
class LoadImageFromFile(MMCVLoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` for data sets in which an image may be missing, truncated or otherwise undecodable.

    Adds 'img' (H, W, 3), 'img_shape' and 'ori_shape' to the results, as mmcv's. The EXIF orientation is applied unless
    the annotations or the label map are those of the picture as stored. An image with a side more than 16 times the
    other is padded by repeating its edge.

    Args:
        bad_image (str): 'resample', for training: the data set draws another image. 'blank', for testing: a grey image
            of the same size replaces it, so it counts as wrong.
        report (str, optional): A file in which all processes of a run list the bad images, for
            :class:`xcit_mm.resilience.bad_images.BadImagesHook`. Without one they are logged, each time.
        as_stored (bool): Ignore the EXIF orientation and do not pad, as torchvision's data sets.
        to_float32, color_type, imdecode_backend, backend_args: As for :class:`mmcv.transforms.LoadImageFromFile`.

    Raises:
        UsageError: If 200 images in a row are bad.
    """

    def __init__(
        self,
        bad_image: str = 'resample',
        report: Optional[str] = None,
        as_stored: bool = False,
        to_float32: bool = False,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        backend_args: Optional[dict] = None,
    ):
        super().__init__(to_float32, color_type, imdecode_backend, backend_args=backend_args)
        self.bad_image = _checked(bad_image)
        self.watch = _Watch(report)
        self.as_stored = as_stored

    def transform(self, results: dict) -> Optional[dict]:
        path = results['img_path']
        try:
            image = self._read(path, results)
            self.watch.good()
        except BadImage as error:
            if self.bad_image == 'resample':
                self.watch.bad(path, str(error), 'another image is drawn')
                return None
            self.watch.bad(path, str(error), BLANK)
            image = np.full(self._shape(results), GREY, np.uint8)
        widened = image if self.as_stored else widen(image)
        if widened is not image:
            rows, columns = image.shape[:2]
            self.watch.note(
                BadFile(path, f'it is only {rows} x {columns} pixels (height x width)', 'its edge is repeated')
            )
            image = widened
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def _read(self, path: str, results: dict) -> np.ndarray:
        data = read_bytes(path, self.backend_args)
        if self.as_stored:
            # Pillow would clip more than 8 bits at 255 instead of scaling.
            backend = 'cv2' if _is_deep(data) else self.imdecode_backend
            flag = (
                f'{self.color_type}_ignore_orientation'
                if self.color_type in ('color', 'grayscale')
                else self.color_type
            )
            return decode(data, flag, backend)
        image = decode(data, self.color_type, self.imdecode_backend)
        if is_turned(data):
            stored = image.shape[1::-1]
            if stored != image.shape[:2] and self._expected(results, 'seg_map_path') == stored:
                return decode(data, f'{self.color_type}_ignore_orientation', self.imdecode_backend)
        return image

    def _expected(self, results: dict, *paths: str) -> Optional[tuple]:
        """Height and width by the annotation, or by the first of these files that is an image."""
        size = results.get('height'), results.get('width')
        for path in map(results.get, paths):
            if None in size and path:
                try:
                    size = Image.open(io.BytesIO(fileio.get(path, backend_args=self.backend_args))).size[::-1]
                except Exception:  # not an image either, or an error of a remote storage
                    continue
        return None if None in size else tuple(size)

    def _shape(self, results: dict) -> tuple:
        """Shape of the image that replaces a bad one."""
        size = self._expected(results, 'seg_map_path', 'img_path') or (224, 224)
        return size if self.color_type.startswith('grayscale') else (*size, 3)


@TRANSFORMS.register_module()
class LoadSegMap(BaseTransform):
    """MMSegmentation's ``LoadAnnotations`` for data sets in which a label map may be missing or damaged.

    Args:
        bad_image (str): 'resample', for training: the data set draws another image. 'blank', for testing: all pixels
            are ignored.
        num_classes (int, optional): Number of classes; pixels with other values are ignored, and the map is reported.
            Not checked by default.
        ignore_index (int): Value in the files of pixels to ignore silently, besides 255.
        report (str, optional): As for :class:`LoadImageFromFile`.
        **kwargs: As for :class:`mmseg.datasets.transforms.LoadAnnotations`.

    Raises:
        UsageError: If 200 maps in a row are bad.
    """

    def __init__(
        self,
        bad_image: str = 'resample',
        num_classes: Optional[int] = None,
        ignore_index: int = IGNORED,
        report: Optional[str] = None,
        **kwargs,
    ):
        self.ignore_index = ignore_index
        self.load = MMENGINE_TRANSFORMS.build(dict(type='mmseg.LoadAnnotations', **kwargs))
        self.num_classes = num_classes
        self.bad_image = _checked(bad_image)
        self.watch = _Watch(report)

    def transform(self, results: dict) -> Optional[dict]:
        reason = None
        if self.ignore_index != IGNORED:
            # MMSegmentation renames labels after it has subtracted 1 where zero means "no label".
            number = self.ignore_index - int(bool(results.get('reduce_zero_label')))
            results['label_map'] = {**(results.get('label_map') or {}), number: IGNORED}
        try:
            results = self.load(results)
            reason = self._misfit(results)
            if reason is None:
                self.watch.good()
                return self._only_known_classes(results)
        except Exception:  # a map that is not an image can make the library raise anything
            path = results['seg_map_path']
            try:
                read_image(path, 'unchanged', self.load.imdecode_backend, self.load.backend_args)
            except BadImage as error:
                reason = str(error)
            else:
                if 1 not in Image.open(path).size:
                    raise  # the map is fine, and something else is wrong
                reason = ONE_PIXEL
        path = results['seg_map_path']
        if self.bad_image == 'resample':
            self.watch.bad(path, reason, 'another image is drawn')
            return None
        self.watch.bad(path, reason, 'its image is not scored')
        results['gt_seg_map'] = np.full(results['ori_shape'], IGNORED, np.uint8)
        if 'gt_seg_map' not in results['seg_fields']:
            results['seg_fields'].append('gt_seg_map')
        return results

    @staticmethod
    def _misfit(results: dict) -> Optional[str]:
        """Why a map does not fit its image; None if it does. The map is padded as the image was."""
        labels, shape = results['gt_seg_map'], tuple(results.get('ori_shape') or ())
        if labels.ndim < 2:
            return ONE_PIXEL
        if labels.ndim == 2:
            labels = results['gt_seg_map'] = widen(labels, IGNORED)
        if not shape or labels.shape == shape:
            return _beyond_bytes(results['seg_map_path'])
        if labels.ndim == 3:
            return f'it has {labels.shape[2]} channels, expected one with the number of the class'
        return f'it is {labels.shape[0]} x {labels.shape[1]} pixels, and its image {shape[0]} x {shape[1]}'

    def _only_known_classes(self, results: dict) -> dict:
        labels = results['gt_seg_map']
        if self.num_classes is not None:
            unknown = (labels >= self.num_classes) & (labels != IGNORED)
            if unknown.any():
                values = ', '.join(map(str, np.unique(labels[unknown])[:5]))
                reason = f'it has classes that the data set has not ({values}; there are {self.num_classes}, from 0)'
                self.watch.note(BadFile(results['seg_map_path'], reason, PIXELS_IGNORED))
                results['gt_seg_map'] = np.where(unknown, IGNORED, labels).astype(labels.dtype)
        return results
