"""Rasters such as GeoTIFF: read by windows, with results in world coordinates. Needs rasterio (``xcit_mm[geo]``)."""

import json
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import cv2
import numpy as np

from ..datasets.loading import BadImage
from ..datasets.reading import Reader
from ..large_images.masks import crop_of
from ..large_images.tiling import Window

SUFFIXES = ('.tif', '.tiff')
PREVIEW = 4096  # px, long side of what overlays are drawn on
GEOJSON_CRS = 'EPSG:4326'  # longitude and latitude, the only one that RFC 7946 allows


def is_raster(source) -> bool:
    """True if rasterio is installed and the source is a file of one of its suffixes."""
    return isinstance(source, Path) and source.suffix.lower() in SUFFIXES and find_spec('rasterio') is not None


@contextmanager
def _opened(path: Path) -> Iterator:
    import rasterio

    with warnings.catch_warnings():
        warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as file:
                yield file
        except rasterio.errors.RasterioError as error:
            raise BadImage(str(error)) from None


class Raster:
    """A raster file of any size, of which windows are read as the config reads images.

    Args:
        path (Path): Its first page is read.
        reader (Reader): Reader of the config.

    Attributes:
        shape (tuple[int, int]): Height and width.
    """

    def __init__(self, path: Path, reader: Reader):
        self.path, self.reader = path, reader
        with _opened(path) as file:
            self.shape: Tuple[int, int] = file.shape

    def read(self, window: Window) -> dict:
        """What the reader makes of one window."""
        with _opened(self.path) as file:
            bands = file.read(window=tuple((part.start, part.stop) for part in window.part))
        return self._image(bands)

    def preview(self) -> dict:
        """What the reader makes of the whole, at no more than ``PREVIEW`` pixels; 'raster' is this object."""
        scale = min(1.0, PREVIEW / max(self.shape))
        height, width = (max(1, round(side * scale)) for side in self.shape)
        with _opened(self.path) as file:
            bands = file.read(out_shape=(file.count, height, width))
        return dict(self._image(bands), ori_shape=self.shape, img_path=str(self.path), raster=self)

    def _image(self, bands: np.ndarray) -> dict:
        pixels = bands[0] if len(bands) == 1 else np.moveaxis(bands, 0, -1)
        return self.reader.read(np.ascontiguousarray(pixels), 'RGB')


def add_world(result: dict, source) -> Optional[dict]:
    """Add world coordinates to a detector's result, if the file has any.

    'crs' is the coordinate reference system of the file; 'world' of a detection holds the corners [x, y] of its box.

    Returns:
        dict, optional: The detections as a GeoJSON FeatureCollection, in longitude and latitude: the outlines of the
        masks, or else boxes.
    """
    if 'detections' not in result or not is_raster(source):
        return None
    try:
        with _opened(source) as file:
            crs, transform = file.crs, file.transform
    except BadImage:  # rasterio cannot read it: no world coordinates
        return None
    if crs is None:
        return None
    from rasterio.warp import transform_geom

    result['crs'] = crs.to_string()
    features: List[dict] = []
    for found in result['detections']:
        x1, y1, x2, y2 = found['box']
        found['world'] = [_place(transform, x, y) for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
        outline = dict(type='Polygon', coordinates=[[*found['world'], found['world'][0]]])
        outline = _outline(found['mask'], transform) or outline if 'mask' in found else outline
        properties = {key: found[key] for key in ('class', 'label', 'score')}
        geometry = transform_geom(crs, GEOJSON_CRS, outline)
        features.append(dict(type='Feature', geometry=geometry, properties=properties))
    return dict(type='FeatureCollection', features=features)


def _outline(mask: dict, transform) -> Optional[dict]:
    """The polygons of a mask, along the edges of its pixels; None if it is empty."""
    from rasterio.features import shapes

    inside, x, y = crop_of(dict(mask, counts=mask['counts'].encode()))
    if not inside.size:
        return None
    left, top = _place(transform, x, y)
    moved = type(transform)(transform.a, transform.b, left, transform.d, transform.e, top)
    found = [shape['coordinates'] for shape, _ in shapes(inside.astype(np.uint8), inside, transform=moved)]
    return dict(type='MultiPolygon', coordinates=found)


def _place(transform, x: float, y: float) -> List[float]:
    """World coordinates of a point of the image."""
    return [transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f]


def write_world(features: dict, path: Path) -> None:
    """Write a FeatureCollection."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(features))


def write_map(labels: np.ndarray, source: Path, path: Path) -> bool:
    """Write a label map as a GeoTIFF with the georeference of the image; False if the image has none."""
    import rasterio

    try:
        with _opened(source) as file:
            crs, transform = file.crs, file.transform
    except BadImage:
        return False
    if crs is None:
        return False
    kind = dict(driver='GTiff', compress='deflate', tiled=True, blockxsize=256, blockysize=256, bigtiff='if_safer')
    height, width = labels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, 'w', height=height, width=width, count=1, dtype=labels.dtype, crs=crs, transform=transform, **kind
    ) as file:
        file.write(labels, 1)
    return True


def at_scale(sample, shape: Tuple[int, int], picture: np.ndarray):
    """Scale the sample of an image of that shape to a smaller picture of it; detectors keep boxes alone."""
    if tuple(shape) == picture.shape[:2]:
        return sample
    sample = sample.clone()
    if 'pred_instances' in sample:
        found = sample.pred_instances
        scale = [picture.shape[1] / shape[1], picture.shape[0] / shape[0]] * 2
        found.bboxes = found.bboxes * found.bboxes.new_tensor(scale)
        found.pop('masks', None)
    else:
        labels = sample.pred_sem_seg.data[0].numpy()
        small = cv2.resize(labels.astype(np.uint16), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        sample.pred_sem_seg = type(sample.pred_sem_seg)(
            data=sample.pred_sem_seg.data.new_tensor(small.astype(np.int32))[None]
        )
    return sample
