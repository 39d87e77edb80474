"""Images of a data set, to be predicted tile by tile."""

from typing import Sequence

from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose

from ..large_images.tiling import TiledImage, Tiles
from ..registry import TRANSFORMS


@TRANSFORMS.register_module()
class CutIntoTiles(BaseTransform):
    """The last step of a test pipeline of tiles: the tiles are cut, and the other steps run, when they are needed.

    Args:
        size (int): Sides of a tile in pixels.
        overlap (float): Overlap of neighbours, as a share of the size.
        transforms (Sequence[dict]): The steps after loading, for each tile.
        annotations (Sequence[dict]): Those that load and pack the annotations of the image.
    """

    def __init__(self, size: int, overlap: float, transforms: Sequence[dict], annotations: Sequence[dict]):
        self.tiles = Tiles(size, overlap)
        self.rest, self.annotations = Compose(transforms), Compose(annotations)

    def transform(self, results: dict) -> TiledImage:
        """What was loaded -> the image with its sample."""
        kept = {key: results[key] for key in ('img', 'img_path', 'img_id', 'reduce_zero_label') if key in results}
        return TiledImage(dict(kept, seg_fields=[]), self.annotations(results)['data_samples'], self.tiles, self.rest)
