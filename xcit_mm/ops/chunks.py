"""Chunks of tokens and bands of rows that stay in a CPU's cache, and bound the memory of intermediate tensors."""

from typing import Iterator, Optional, Tuple

from torch import Tensor

# Values of a chunk: so few that they stay in a CPU's cache, so many that a matmul is worth packing its matrix (5,461
# tokens of 384 channels); and enough to keep another device busy.
CHUNK_VALUES = {'cpu': 2**21, 'other': 2**24}
# Bytes of a map of a band. From 32 MiB on, glibc gets memory from the system anew each time, and the first touch of its
# pages takes as long as what is done with them. A quarter is for the rows that a band has in common with the next.
LARGEST_MAP = 2**25 * 3 // 4


def chunk_size(x: Tensor) -> int:
    """Tokens (..., C) of a chunk."""
    return max(1, CHUNK_VALUES.get(x.device.type, CHUNK_VALUES['other']) // x.shape[-1])


def evenly(total: int, size: int, multiple: int = 1) -> Iterator[slice]:
    """Split ``total`` into near-equal chunks of about ``size``, all but the last a multiple of ``multiple``."""
    count = max(1, -(-total // max(1, size)))
    step = max(1, -(-total // count))
    step = -(-step // multiple) * multiple if count > 1 else step
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def pieces(x: Tensor, size: Optional[int] = None) -> Iterator[Tuple[slice, slice]]:
    """Split tokens (B, N, C) into parts of an image or several whole images: slices of images and of tokens.

    Args:
        size (int, optional): Tokens of a part; defaults to those of a chunk.
    """
    B, N, _ = x.shape
    size = size or chunk_size(x)
    for images in evenly(B, size // max(1, N)):
        for part in evenly(N, size):
            yield images, part


def bands(images: Tensor, size: int) -> Iterator[Tuple[slice, slice]]:
    """Split images (B, H, W, C) into several whole ones or rows of one, at least two, of about ``size`` tokens.

    Yields:
        tuple[slice, slice]: Of images and of rows.
    """
    B, H, W, _ = images.shape
    for group in evenly(B, size // (H * W)):
        for rows in evenly(H, max(2, size // W)):
            yield group, rows
