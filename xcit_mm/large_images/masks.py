"""Instance masks in COCO's run-length encoding (RLE): as large as their outline, whatever the size of the image."""

from typing import Tuple, Union

import cv2
import numpy as np
from pycocotools import mask as coco_mask

Mask = Union[np.ndarray, dict]
MOST_PIXELS = 2**32 - 1  # of an image; COCO's code counts in 32 bits


def encode_crop(crop: np.ndarray, x: int, y: int, height: int, width: int) -> dict:
    """Encode a mask that is given as a crop, without allocating the whole.

    Args:
        crop (np.ndarray): (h, w), bool.
        x, y (int): Position of its upper left corner in the image.
        height, width (int): Size of the image.

    Returns:
        dict: 'size' and 'counts' (bytes), as ``pycocotools.mask.encode`` makes it of the whole mask.
    """
    # RLE runs column by column; a row of zeros below ends every run with its column.
    rows = crop.shape[0] + 1
    flat = np.zeros((crop.shape[1], rows), bool)
    flat[:, :-1] = crop.T
    changes = np.flatnonzero(np.diff(flat.ravel(), prepend=False))
    edges = (changes // rows + x) * height + changes % rows + y
    # If the crop is as high as the image, a run may continue in the next column.
    goes_on = np.flatnonzero(edges[2::2] == edges[1:-1:2]) * 2 + 1
    edges = np.delete(edges, np.concatenate([goes_on, goes_on + 1]))
    counts = np.diff(edges, prepend=0, append=height * width)
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    return coco_mask.frPyObjects(dict(size=[height, width], counts=counts.tolist()), height, width)


def crop_of(mask: Mask) -> Tuple[np.ndarray, int, int]:
    """The part of a mask that is set, and x and y of its upper left corner; an empty part of an empty mask.

    Args:
        mask (np.ndarray | dict): (H, W), bool; or RLE.

    Returns:
        tuple: (h, w) bool, x, y.
    """
    if isinstance(mask, dict):
        left, top, width, height = (int(side) for side in coco_mask.toBbox(mask))
        whole = coco_mask.decode(mask) if width else np.zeros((0, 0), np.uint8)
    else:
        whole = np.ascontiguousarray(mask, dtype=bool).view(np.uint8)
        left, top, width, height = cv2.boundingRect(whole)
    return whole[top : top + height, left : left + width].astype(bool), left, top
