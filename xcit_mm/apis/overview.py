"""One contact sheet of many pictures."""

from pathlib import Path
from typing import Sequence

from PIL import Image, ImageOps


def draw_overview(paths: Sequence[Path], target: Path, limit: int = 16, edge: int = 320) -> None:
    """Put up to ``limit`` pictures, spread evenly over all, on one sheet of four columns."""
    if not paths:
        return
    chosen = [paths[i * len(paths) // min(limit, len(paths))] for i in range(min(limit, len(paths)))]
    columns = min(4, len(chosen))
    sheet = Image.new('RGB', (columns * edge, -(-len(chosen) // columns) * edge), 'white')
    for number, path in enumerate(chosen):
        with Image.open(path) as image:
            image = ImageOps.contain(image.convert('RGB'), (edge - 4, edge - 4))
            row, column = divmod(number, columns)
            left, top = ((edge - size) // 2 for size in image.size)
            sheet.paste(image, (column * edge + left, row * edge + top))
    sheet.save(target, quality=90)
