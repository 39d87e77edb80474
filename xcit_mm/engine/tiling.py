"""Tests tile by tile: what the tools change in a config for them."""

from copy import deepcopy

from mmengine.config import Config, ConfigDict

from ..datasets.config import innermost_datasets
from ..datasets.reading import loading_step, loads_annotations
from ..errors import UsageError
from ..large_images.tiling import Tiles

SCOPES = ('mmdet', 'mmseg')


def use_tiles(cfg: Config, tiles: Tiles) -> None:
    """Let a test cut its images into tiles, and merge what is found, in place.

    Each tile goes through the steps of the test pipeline as an image would, the resizing among them.

    Raises:
        UsageError: If the model is no detector and no segmentor, or size or overlap make no sense.
    """
    tiles.check()
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise UsageError(f'tiles are for {" and ".join(SCOPES)}, and the config has default_scope={scope!r}')
    for dataset in innermost_datasets(cfg.test_dataloader.dataset):
        steps = deepcopy(list(dataset['pipeline']))
        place = loading_step(steps, scope)
        *others, pack = steps[:place] + steps[place + 1 :]
        labels = [step for step in others if loads_annotations(step, scope)]
        dataset['pipeline'] = [
            steps[place],
            ConfigDict(
                type='xcit_mm.CutIntoTiles',
                size=tiles.size,
                overlap=tiles.overlap,
                transforms=[*(step for step in others if step not in labels), pack],
                annotations=[*labels, pack],
            ),
        ]
    batch_size = cfg.test_dataloader.get('batch_size', 1)
    cfg.model = ConfigDict(type='xcit_mm.TiledModel', module=cfg.model, batch_size=batch_size)
    cfg.test_dataloader.batch_size = 1  # of whole images
