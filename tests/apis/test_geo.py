"""Georeferenced rasters, read by windows."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from xcit_mm.apis import Inferencer, geo

pytest.importorskip('rasterio.features', reason='pip install rasterio')
rasterio = pytest.importorskip('rasterio')
TILE = 64


@pytest.fixture(scope='module')
def raster(tmp_path_factory):
    """A GeoTIFF in UTM zone 32, half a metre a pixel, and its pixels (H, W, 3), RGB."""
    pixels = np.random.default_rng(0).integers(0, 255, (TILE * 2, TILE * 3, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp('raster') / 'field.tif'
    place = rasterio.transform.from_origin(500000, 5400000, 0.5, 0.5)
    with rasterio.open(
        path, 'w', driver='GTiff', height=TILE * 2, width=TILE * 3, count=3, dtype='uint8', crs='EPSG:32632',
        transform=place, tiled=True, blockxsize=64, blockysize=64,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, -1, 0))
    return path, pixels


def test_windows_are_read_as_the_config_reads_images(small_models, raster):
    path, pixels = raster
    inferencer = Inferencer(*small_models['semantic_fpn'], tiles=TILE)
    (ours,), (whole,) = inferencer(path), inferencer(pixels, channel_order='RGB')
    assert (ours['map'] == whole['map']).all() and len(np.unique(ours['map'])) > 1


@pytest.mark.parametrize('preview', [4096, 50])
def test_detections_in_world_coordinates(small_models, raster, tmp_path, monkeypatch, preview):
    """Boxes in the file's system, outlines in longitude and latitude; the picture may be smaller."""
    monkeypatch.setattr(geo, 'PREVIEW', preview)
    (result,) = Inferencer(*small_models['detector'], tiles=TILE)(raster[0], tmp_path, score_thr=0.0)
    assert result['crs'] == 'EPSG:32632' and (result['height'], result['width']) == (TILE * 2, TILE * 3)
    first = result['detections'][0]
    x1, y1, x2, y2 = first['box']
    assert first['world'][0] == pytest.approx([500000 + x1 / 2, 5400000 - y1 / 2])
    assert first['world'][2] == pytest.approx([500000 + x2 / 2, 5400000 - y2 / 2])
    features = json.loads((tmp_path / result['geojson']).read_text())['features']
    assert len(features) == len(result['detections']) and features[0]['properties']['class'] == first['class']
    longitude, latitude = rasterio.features.bounds(features[0]['geometry'])[:2]
    assert 8.9 < longitude < 9.1 and 48 < latitude < 49
    assert list((tmp_path / 'overlays').glob('field*.jpg'))


def test_masks_are_outlined_along_their_pixels():
    mask = np.zeros((20, 30), np.uint8, order='F')
    mask[5:9, 10:12] = 1
    rle = coco_mask.encode(mask)
    outline = geo._outline(dict(rle, counts=rle['counts'].decode()), rasterio.Affine(2, 0, 100, 0, -2, 50))
    corners = {tuple(corner) for corner in outline['coordinates'][0][0]}
    assert corners == {(120, 40), (124, 40), (124, 32), (120, 32)}


def test_maps_lie_where_the_image_lies(small_models, raster, tmp_path):
    (result,) = Inferencer(*small_models['semantic_fpn'])(raster[0], tmp_path)
    with rasterio.open(tmp_path / result['map']) as written, rasterio.open(raster[0]) as given:
        assert written.crs == given.crs and written.transform == given.transform and written.shape == given.shape


def test_a_damaged_raster_is_told(small_models, tmp_path):
    (tmp_path / 'a.tif').write_bytes(b'II*\0 nothing')
    (result,) = Inferencer(*small_models['semantic_fpn'], tiles=TILE)(tmp_path / 'a.tif')
    assert 'cannot be read' in result['error']
