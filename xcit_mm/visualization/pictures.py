"""Attention drawn on images: heat maps, overlays, masks and contact sheets. Images are (H, W, 3) uint8, BGR."""

from typing import List, Optional, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import keep_mass
from .predictions import write_text

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
GAP = 6
OVERLAY = 0.8  # opacity of the largest value


def to_input(image: np.ndarray, device='cpu') -> Tensor:
    """An image -> (1, 3, H, W), RGB, normalised as for ImageNet."""
    rgb = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).to(device).permute(2, 0, 1).float()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
    return ((rgb - mean) / std)[None]


def resize_short_side(image: np.ndarray, size: Optional[int]) -> np.ndarray:
    """Resize the short side to ``size`` pixels; None leaves the image as it is."""
    height, width = image.shape[:2]
    if size is None or min(height, width) == size:
        return image
    scale = size / min(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def to_pixels(patches: Tensor, patch_size: int, height: int, width: int, smooth: bool = True) -> np.ndarray:
    """One value for each patch (rows, columns) -> one for each pixel (height, width), float32."""
    mode = dict(mode='bilinear', align_corners=False) if smooth else dict(mode='nearest')
    full = F.interpolate(patches[None, None].float().cpu(), scale_factor=patch_size, **mode)
    return full[0, 0, :height, :width].numpy()


def _scaled(values: np.ndarray) -> np.ndarray:
    """From 0 for the smallest to 1 for the largest value."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-12)


def heat_map(values: np.ndarray) -> np.ndarray:
    """Values (H, W) -> colours (H, W, 3), scaled from the smallest to the largest value."""
    return cv2.applyColorMap(np.rint(255 * _scaled(values)).astype(np.uint8), cv2.COLORMAP_INFERNO)


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Blend the heat map of values (H, W) over an image (H, W, 3), the more opaque the larger the value."""
    opacity = (OVERLAY * _scaled(values))[..., None]
    return np.rint(image * (1 - opacity) + heat_map(values) * opacity).astype(np.uint8)


def masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image where the mask (H, W) is set, dimmed elsewhere, with the mask's outline."""
    mask = mask > 0.5
    shown = np.where(mask[..., None], image, image // 4)
    outlines = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    return cv2.drawContours(
        np.ascontiguousarray(shown), outlines, -1, (0, 255, 255), max(1, min(image.shape[:2]) // 200)
    )


def draw(image: np.ndarray, attention: Tensor, patch_size: int, mass: float = 0.6) -> dict:
    """Draw all pictures of one image.

    Args:
        image (np.ndarray): What the model saw.
        attention (Tensor): (heads, rows, columns).
        patch_size (int): Patch size of the model.
        mass (float): Share of the attention that the masks keep.

    Returns:
        dict[str, np.ndarray]: 'heat_mean', 'overlay_mean', 'mask_mean', and the same for 'head_1', 'head_2', ...
    """
    height, width = image.shape[:2]
    pictures = {}
    maps = {'mean': attention.mean(0), **{f'head_{i}': head for i, head in enumerate(attention, start=1)}}
    for name, patches in maps.items():
        values = to_pixels(patches, patch_size, height, width)
        pictures[f'heat_{name}'] = heat_map(values)
        pictures[f'overlay_{name}'] = overlay(image, values)
        pictures[f'mask_{name}'] = masked(
            image, to_pixels(keep_mass(patches, mass), patch_size, height, width, smooth=False)
        )
    return pictures


def contact_sheet(image: np.ndarray, pictures: dict, tile: int = 240) -> np.ndarray:
    """The image and its pictures side by side: a column for the mean and for each head, a row for each kind."""
    names = [name[len('heat_') :] for name in pictures if name.startswith('heat_')]
    rows = [[('input', image)] + [(name.replace('_', ' '), pictures[f'heat_{name}']) for name in names]]
    least_to_most = np.linspace(0, 1, image.shape[1], dtype=np.float32)[None].repeat(
        max(1, image.shape[0] // 12), axis=0
    )
    for kind, caption, legend in (('overlay', 'attention: least to most', heat_map(least_to_most)), ('mask', '', None)):
        rows.append([(caption, legend)] + [('', pictures[f'{kind}_{name}']) for name in names])
    return grid(rows, tile)


def grid(rows: Sequence[Sequence[tuple]], tile: int) -> np.ndarray:
    """Rows of (caption, picture or None) -> one picture; each is scaled to a width of ``tile`` pixels."""
    first = next(picture for row in rows for _, picture in row if picture is not None)
    height = max(1, round(tile * first.shape[0] / first.shape[1]))
    letters = max(9, tile // 16)
    lines: List[np.ndarray] = []
    for row in rows:
        caption = round(1.6 * letters) if any(text for text, _ in row) else 0
        line = np.full((caption + height + GAP, len(row) * (tile + GAP) + GAP, 3), 255, np.uint8)
        for i, (text, picture) in enumerate(row):
            left = GAP + i * (tile + GAP)
            if text:
                write_text(line, text, (left, 0), letters)
            if picture is not None:
                high = max(1, min(height, round(tile * picture.shape[0] / picture.shape[1])))
                line[caption : caption + high, left : left + tile] = cv2.resize(
                    picture, (tile, high), interpolation=cv2.INTER_AREA
                )
        lines.append(line)
    return np.vstack(lines)


def draw_channel_attention(attention: Tensor, tile: int = 96) -> np.ndarray:
    """XCA's matrices (depth, heads, d, d) as a sheet: a row for each block, a column for each head."""
    rows = [
        [(f'block {number}' if column == 0 else '', heat_map(head.cpu().numpy())) for column, head in enumerate(block)]
        for number, block in enumerate(attention, start=1)
    ]
    return grid(rows, tile)
