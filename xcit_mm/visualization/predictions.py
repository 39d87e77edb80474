"""Predictions and annotations drawn on images: boxes, masks, label maps and classes. Images are (H, W, 3) uint8, RGB.

Lines and letters scale with the image. Masks are blended only inside their boxes, so drawing on a photograph of twelve
megapixels takes no longer than decoding it.
"""

import os
from functools import lru_cache
from typing import List, Optional, Sequence, Tuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..large_images.masks import Mask, crop_of
from .colours import DARK, Colour, text_colour

MAP_FILL = 0.6  # opacity of a label map
LEAST_LETTERS = 9  # px
MAP_SIDE = 512  # px, long side to which label maps are reduced to place the names


def fill(share: float) -> float:
    """Opacity of an instance that covers that share of the image: the smaller, the more opaque."""
    return 0.6 - 0.3 * min(1.0, share) ** 0.5


def line_width(image: np.ndarray) -> int:
    """Pixels; 1 up to 300 x 300, 12 for twelve megapixels."""
    return max(1, round((image.shape[0] * image.shape[1]) ** 0.5 / 290))


def letter_size(image: np.ndarray) -> int:
    """Pixels; 15 for 640 x 480, 87 for twelve megapixels."""
    return max(LEAST_LETTERS, round((image.shape[0] * image.shape[1]) ** 0.5 / 40))


@lru_cache(maxsize=32)
def _font(size: int):
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'), size)


def put_tag(image: np.ndarray, text: str, place: Tuple[int, int], colour: Colour, above: bool = False) -> int:
    """Write text on a background of that colour, in place, shifted so that it lies inside the image.

    Args:
        image (np.ndarray): (H, W, 3), changed in place.
        text (str): One line.
        place (tuple[int, int]): x and y of the upper left corner; of the lower left one with ``above``.
        colour: Colour of the background.
        above (bool): Put the text above the place, if there is room.

    Returns:
        int: The height of the tag in pixels.
    """
    size = letter_size(image)
    # Smaller letters rather than a name that is cut off.
    while size > 6 and _font(size).getlength(text) > image.shape[1] - size // 2:
        size -= 1
    font, pad = _font(size), max(1, size // 6)
    width, height = round(font.getlength(text)) + 2 * pad, sum(font.getmetrics()) + pad
    tag = Image.new('RGB', (width, height), colour)
    ImageDraw.Draw(tag).text((pad, pad // 2), text, font=font, fill=text_colour(colour))
    x, y = place
    y = y - height if above and y >= height else y
    x, y = (max(0, min(at, side - size)) for at, side, size in zip((x, y), image.shape[1::-1], (width, height)))
    part = image[y : y + height, x : x + width]
    part[:] = np.asarray(tag)[: part.shape[0], : part.shape[1]]
    return height


def write_text(image: np.ndarray, text: str, place: Tuple[int, int], size: int) -> None:
    """Write black letters of ``size`` pixels, their upper left corner at (x, y), in place."""
    drawn = Image.fromarray(image)
    ImageDraw.Draw(drawn).text(place, text, font=_font(size), fill=DARK)
    image[:] = np.asarray(drawn)


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    classes: Optional[Sequence[str]],
    colours: Sequence[Colour],
    scores: Optional[Sequence[float]] = None,
    masks: Optional[Sequence[Mask]] = None,
) -> np.ndarray:
    """Draw boxes with class names, and masks if there are any.

    Args:
        image (np.ndarray): (H, W, 3).
        boxes (np.ndarray): (N, 4), x1, y1, x2, y2 in pixels.
        labels (Sequence[int]): N class indices.
        classes (Sequence[str], optional): Their names.
        colours: One for each class.
        scores (Sequence[float], optional): N.
        masks (sequence, optional): N, (H, W) bool or RLE.

    Returns:
        np.ndarray: A new image.
    """
    image, width = image.copy(), line_width(image)
    boxes = np.nan_to_num(np.asarray(boxes, dtype=np.float64).reshape(-1, 4))
    order = range(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind='stable')  # the best on top
    for i in order:
        colour = colours[labels[i]]
        if masks is not None:
            _blend_mask(image, masks[i], colour, width)
    sides = np.array(image.shape[1::-1] * 2)
    corners = np.clip(np.rint(boxes), -1, sides).astype(int)
    has_area: np.ndarray = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    for i in order:
        if has_area[i]:
            x1, y1, x2, y2 = corners[i].tolist()
            if width > 1:  # a black or white outline sets the box off from a background of its colour
                cv2.rectangle(image, (x1, y1), (x2, y2), text_colour(colours[labels[i]]), width + max(2, width // 2))
            cv2.rectangle(image, (x1, y1), (x2, y2), colours[labels[i]], width)
    for i in order:
        label = int(labels[i])
        text = str(classes[label]) if classes else f'class {label}'
        text += '' if scores is None else f' {scores[i]:.2f}'
        x, y = corners[i][:2].tolist() if has_area[i] else _centre(None if masks is None else masks[i])
        put_tag(image, text, (x, y), colours[label], above=True)
    return image


def _centre(mask: Optional[Mask]) -> Tuple[int, int]:
    if mask is None:
        return 0, 0
    inside, left, top = crop_of(mask)
    return left + inside.shape[1] // 2, top + inside.shape[0] // 2


def _blend_mask(image: np.ndarray, mask: Mask, colour: Colour, width: int) -> None:
    inside, left, top = crop_of(mask)
    if not inside.size:
        return
    part = image[top : top + inside.shape[0], left : left + inside.shape[1]]
    opacity = fill(inside.sum() / (image.shape[0] * image.shape[1]))
    tinted = cv2.addWeighted(part, 1 - opacity, np.full_like(part, colour), opacity, 0)
    part[inside] = tinted[inside]
    outline = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(image, outline, -1, colour, max(1, width // 2), offset=(left, top))


def draw_map(
    image: np.ndarray, labels: np.ndarray, classes: Sequence[str], colours: Sequence[Colour], names: bool = True
) -> np.ndarray:
    """Draw a label map (H, W) over an image, with the name of each class in the middle of its largest part.

    Pixels whose value is no class, such as 255, stay as they are.
    """
    labels = np.asarray(labels)
    if labels.shape != image.shape[:2]:
        labels = cv2.resize(labels.astype(np.uint16), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    table = np.zeros((max(int(labels.max(initial=0)) + 1, len(colours)), 3), np.uint8)
    table[: len(colours)] = colours
    painted = cv2.addWeighted(image, 1 - MAP_FILL, table[labels], MAP_FILL, 0)
    unknown = labels >= len(colours)
    if unknown.any():
        painted[unknown] = image[unknown]
    scale = min(1.0, MAP_SIDE / max(labels.shape))
    shape = tuple(max(1, round(side * scale)) for side in labels.shape[::-1])
    small = cv2.resize(labels.astype(np.uint16), shape, interpolation=cv2.INTER_NEAREST)
    for label in np.unique(small) if names else ():
        if label < len(colours):
            # The point farthest from all other classes and from the border.
            inside = cv2.copyMakeBorder((small == label).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
            row, column = np.unravel_index(cv2.distanceTransform(inside, cv2.DIST_L2, 3).argmax(), inside.shape)
            text, size = str(classes[label]), letter_size(image)
            x, y = (int((at - 0.5) / scale) for at in (column - 1, row - 1))
            put_tag(painted, text, (x - round(_font(size).getlength(text) / 2), y - size // 2), colours[label])
    return painted


def draw_classes(image: np.ndarray, lines: Sequence[Tuple[str, Colour]]) -> np.ndarray:
    """Write lines of text in the upper left corner, each on its colour."""
    image, y = image.copy(), 0
    for text, colour in lines:
        y += put_tag(image, text, (0, y), colour)
    return image


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Join pictures of one size in a row."""
    return np.concatenate(list(pictures), axis=1)


def write_picture(path: str, picture: np.ndarray) -> None:
    """Write an RGB picture, in the format of its suffix, and create its folder.

    Raises:
        OSError: If it cannot be written.
    """
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    done, content = cv2.imencode(os.path.splitext(path)[1], cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f'{path} cannot be encoded')
    with open(path, 'wb') as file:
        file.write(content.tobytes())


WRITABLE: List[str] = ['.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff']
