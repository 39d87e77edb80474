"""Inference on one image tile by tile."""

from typing import Iterator, Tuple, Union

from mmengine.structures import BaseDataElement

from ..large_images.tiling import Tiles, Window, cut, predict_tiles
from .tasks.task import FAILURES, Task


def predict_image(task: Task, image: dict, tiles: Tiles, batch_size: int = 1) -> Union[BaseDataElement, str]:
    """Predict one image tile by tile.

    Args:
        task (Task): A detector or a segmentor.
        image (dict): Output of the reader; or with 'raster', a :class:`~xcit_mm.apis.geo.Raster` to read tiles from.
        tiles (Tiles): How it is cut.
        batch_size (int): Tiles that are computed together.

    Returns:
        BaseDataElement | str: With 'pred_instances' or 'pred_sem_seg' in the image's pixels; or the reason why it
        cannot be predicted.
    """
    shape = tuple(image['ori_shape'])
    try:
        found = predict_tiles(task.model, _packed(task, image, tiles.windows(*shape)), shape, batch_size)
    except FAILURES as error:
        return task.reason(error, image)
    sample = BaseDataElement(metainfo=dict(ori_shape=shape))
    sample.set_data(found)
    return sample


def _packed(task: Task, image: dict, windows) -> Iterator[Tuple[Window, dict]]:
    raster = image.get('raster')
    for window in windows:
        if raster:
            part = raster.read(window)
            yield window, task.reader.rest(cut(part, part['img']))
            continue
        yield window, task.reader.rest(cut(image, image['img'][window.part]))
