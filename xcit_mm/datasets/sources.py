"""Inputs of inference: files, folders, globs, addresses, videos, arrays, and iterables of them."""

import glob
import os
import urllib.request
from collections import Counter
from collections.abc import Iterator as Iterates
from pathlib import Path
from typing import Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple, Union
from urllib.parse import unquote, urlparse

import cv2
import numpy as np
from mmengine import fileio
from PIL import Image

from ..errors import UsageError
from .loading import BadImage

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv')
ACCEPTED = (
    'a file, a folder, a glob, an address (http, https, file, rtsp), the number of a camera, the bytes of a '
    'file, a PIL image, an array (H, W) or (H, W, channels), or several of these in a list, a generator or an array '
    '(N, H, W, channels)'
)
STREAMS = ('rtsp', 'rtmp', 'rtp', 'udp')
LISTS = ('.txt', '.lst', '.csv')
TIMEOUT = 60  # s, for an address to answer


class Video(NamedTuple):
    """A video file, an animated picture, a camera, or a stream.

    Attributes:
        path (Path): The file; for a camera or stream, the name of its outputs.
        source (int | str, optional): The number of a camera, or the address of a video or stream.
    """

    path: Path
    source: Union[int, str, None] = None

    @property
    def label(self) -> str:
        """Its name in results."""
        return f'camera {self.source}' if isinstance(self.source, int) else self.source or str(self.path)

    def _open(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(str(self.path) if self.source is None else self.source)

    def frames(self) -> Iterator[np.ndarray]:
        """Yield its frames (H, W, 3), BGR; a camera has no last one.

        Raises:
            BadImage: If it has none.
        """
        video = self._open()
        found = False
        try:
            while True:
                read, frame = video.read()
                if not read:
                    break
                found = True
                yield frame
        finally:
            video.release()
        if not found:
            what = 'it is no video' if self.source is None else f'{self.label} gives no pictures'
            raise BadImage(f'{what} that OpenCV can read')

    @property
    def rate(self) -> float:
        """Frames per second."""
        video = self._open()
        rate = video.get(cv2.CAP_PROP_FPS)
        video.release()
        return rate if 0 < rate < 1000 else 25


class Missing(NamedTuple):
    """An input that does not exist; the reason goes into its result."""

    given: str
    reason: str


Source = Union[Path, str, bytes, np.ndarray, Image.Image, Video, Missing]


class Images(List[Tuple[str, Source]]):
    """Images with unique names.

    Attributes:
        left_out (Counter): What folders hold besides: files that are no images, by their suffix, and sub-folders.
    """

    def __init__(self, items: Iterable = (), left_out: Optional[Counter] = None):
        super().__init__(items)
        self.left_out = left_out if left_out is not None else Counter()

    def outside(self, folder: Union[str, Path]) -> 'Images':
        """Those that are not below a folder; all, if all of them are."""
        below = os.path.abspath(folder) + os.sep
        kept = [(name, item) for name, item in self if not os.path.abspath(_path(item) or '').startswith(below)]
        if len(kept) in (0, len(self)):
            return self
        return Images(kept, self.left_out + Counter({f'in {folder}': len(self) - len(kept)}))


def is_several(images) -> bool:
    """True if the input may be more than one image."""
    is_list = isinstance(images, (list, tuple, set, frozenset)) or _gives_one_by_one(images)
    return is_list or (isinstance(images, np.ndarray) and images.ndim == 4)


def _gives_one_by_one(images) -> bool:
    return isinstance(images, Iterates) and not hasattr(images, 'read')  # iterating an open file would give lines


def find_images(images, recursive: bool = True) -> Union[Images, Iterator[Tuple[str, Source]]]:
    """Expand inputs to images with unique names, relative to their common folder.

    Args:
        images: See ``ACCEPTED``. Iterables are consumed lazily.
        recursive (bool): Whether sub-folders of folders are searched.

    Raises:
        UsageError: If a path matches nothing, or there are no images at all.
    """
    if _gives_one_by_one(images):
        return _named_one_by_one(images, recursive)
    given = [images] if not is_several(images) else list(images)
    given = sorted(given, key=str) if isinstance(images, (set, frozenset)) else given
    if not given:
        raise UsageError('there are no images: the list is empty')
    left_out: Counter = Counter()
    found: List[Source] = []
    for item in given:
        found.extend(_expand(item, recursive, left_out))
    missing = [item for item in found if isinstance(item, Missing)]
    if len(missing) == len(found):
        raise UsageError(missing[0].reason)
    return Images(_named(found), left_out)


def _named_one_by_one(images: Iterates, recursive: bool) -> Iterator[Tuple[str, Source]]:
    used: Set[str] = set()
    for item in images:
        for source in _expand(item, recursive, Counter()):
            yield _unique(_stem(source, len(used)), used), source


def _named(found: List[Source]) -> Iterator[Tuple[str, Source]]:
    files = [os.path.abspath(path) for path in map(_path, found) if path]
    root = os.path.commonpath([os.path.dirname(path) for path in files]) if files else ''
    stems = Counter(os.path.splitext(path)[0] for path in set(files))
    used: Set[str] = set()
    for number, item in enumerate(found):
        of_item = _path(item)
        if of_item:
            path = os.path.abspath(of_item)
            stem = os.path.splitext(path)[0]
            name = os.path.relpath(path if stems[stem] > 1 else stem, root)
        else:
            name = _stem(item, number)
        yield _unique(name, used), item


def _path(item: Source) -> Optional[Path]:
    return item if isinstance(item, Path) else item.path if isinstance(item, Video) else None


def _stem(item: Source, number: int) -> str:
    """A name for an image that has no common folder."""
    if isinstance(item, Image.Image):
        return Path(getattr(item, 'filename', '') or f'image_{number}').stem
    if isinstance(item, Missing):
        return f'missing_{number}'
    if isinstance(item, np.ndarray):
        return f'array_{number}'
    if isinstance(item, bytes):
        return f'bytes_{number}'
    path = _path(item)
    return (path.stem if path else Path(unquote(urlparse(str(item)).path)).stem) or f'image_{number}'


def _unique(name: str, used: Set[str]) -> str:
    found, number = name, 1
    while found in used:
        number += 1
        found = f'{name}_{number}'
    used.add(found)
    return found


def _expand(item, recursive: bool, left_out: Counter) -> List[Source]:
    if isinstance(item, (bytes, bytearray, memoryview)):
        return [bytes(item)]
    if isinstance(item, Image.Image):
        return [item]
    if isinstance(item, np.ndarray):
        return list(item) if item.ndim == 4 else [item]
    if hasattr(item, 'read'):
        content = item.read()
        if not isinstance(content, bytes):
            raise UsageError(f'the file {getattr(item, "name", item)} was opened as text; open it with mode "rb"')
        return [content]
    if isinstance(item, int) and not isinstance(item, bool):
        return [Video(Path(f'camera_{item}'), item)]
    if not isinstance(item, (str, os.PathLike)):
        kind = f'{type(item).__module__}.{type(item).__name__}'.replace('builtins.', '')
        hint = '; convert a tensor by .permute(1, 2, 0).numpy()' if kind.startswith('torch.') else ''
        raise UsageError(f'{kind} is no image. Expected {ACCEPTED}{hint}')
    text = os.fspath(item)
    if '://' in text:
        return [_from_address(text)]
    if text.isdecimal() and not os.path.exists(text):
        return [Video(Path(f'camera_{text}'), int(text))]
    return _expand_path(text, recursive, left_out)


def _from_address(text: str) -> Source:
    """A video or stream, which OpenCV opens by itself; else an image, fetched when its turn comes."""
    parts = urlparse(text)
    path = Path(unquote(parts.path))
    is_video = path.suffix.lower() in VIDEO_SUFFIXES and parts.scheme in ('http', 'https')
    return Video(Path(path.stem or parts.netloc), text) if is_video or parts.scheme in STREAMS else text


def _expand_path(text: str, recursive: bool, left_out: Counter) -> List[Source]:
    path = Path(text).expanduser()
    try:
        if path.is_dir():
            return _search(path, text, recursive, left_out)
        if path.is_file() and path.suffix.lower() in LISTS:
            return [Missing(text, f'{text} is a text file; give the names of the images that it lists')]
        if path.is_file():
            return [_image_or_video(path)]
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
    except (OSError, ValueError) as error:  # such as a name that is too long
        return [Missing(text[:200], f'{text[:200]!r} is no file: {error.args[-1]}')]
    if not found:
        return [Missing(text, f'{text} is no image, no folder, and as a glob matches no file')]
    return [_image_or_video(name) for name in found]


def _search(folder: Path, text: str, recursive: bool, left_out: Counter) -> List[Source]:
    found: List[Source] = []
    others: Counter = Counter()
    seen: Set[str] = set()
    for inside, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(inside) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(os.path.realpath(inside))
        folders[:] = [name for name in folders if not name.startswith('.')]
        if not recursive and folders:
            others['sub-folder'] += len(folders)
            folders.clear()
        for name in names:
            path = Path(inside, name)
            suffix = path.suffix.lower()
            if name.startswith('.') or not path.is_file():
                continue
            if suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES or _opens(path):
                found.append(_image_or_video(path))
            else:
                others[suffix or 'no suffix'] += 1
    left_out.update(others)
    if not found:
        listed = f'; it has {in_words(others)}' if others else ''
        return [Missing(text, f'the folder {text} holds no images ({", ".join(IMAGE_SUFFIXES)}, ...){listed}')]
    return sorted(found, key=lambda item: str(_path(item)))


def in_words(left_out: Counter) -> str:
    """Files by their suffix: '12 .json, 1 .heic'."""
    return ', '.join(f'{number} {suffix}' for suffix, number in left_out.most_common())


def _opens(path: Path) -> bool:
    """True if Pillow can open a file as an image, whatever its suffix."""
    try:
        with Image.open(path):
            return True
    except Exception:  # of any plugin
        return False


def _image_or_video(path: Path) -> Source:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Video(path)
    if path.suffix.lower() == '.gif':
        try:
            with Image.open(path) as image:
                return Video(path) if getattr(image, 'is_animated', False) else path
        except Exception:  # reported when it is read
            pass
    return path


def fetch(address: str) -> bytes:
    """Download an address.

    Raises:
        BadImage: If it cannot be reached, or sends nothing.
    """
    try:
        if urlparse(address).scheme in ('http', 'https', 'file'):
            request = urllib.request.Request(address, headers={'User-Agent': 'xcit_mm'})
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.read()
        return fileio.get(address)
    except Exception as error:  # of the network, or of a storage's client
        raise BadImage(f'it cannot be fetched ({type(error).__name__}: {error})') from None
