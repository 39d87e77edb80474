"""Very large images in testing: what the tools change in a config for them."""

from typing import Iterator, List, Optional, Tuple

from mmengine.config import Config

from ..datasets.config import find_loaders, innermost_datasets

DETECTORS = ('FasterRCNN', 'MaskRCNN')


def use_large_images(cfg: Config) -> None:
    """Let a Faster or Mask R-CNN of MMDetection be one whose budgets follow the image's area, in place.

    See :class:`xcit_mm.large_images.detector.LargeImages`. ``model.test_cfg.trained_size`` is that of the largest
    images that the training pipeline makes, unless the config says it; None turns it off. Other models stay as they
    are.
    """
    model = cfg.get('model') or {}
    scope, _, name = str(model.get('type')).rpartition('.')
    if name not in DETECTORS or scope not in ('', 'mmdet') or (not scope and cfg.get('default_scope') != 'mmdet'):
        return
    model['type'] = f'xcit_mm.{name}'
    if model.get('test_cfg') and 'trained_size' not in model['test_cfg']:
        model['test_cfg']['trained_size'] = trained_size(cfg)


def trained_size(cfg: Config) -> Optional[Tuple[int, int]]:
    """The sides in pixels of the largest images that the training pipeline resizes to; None if it does not say."""
    loaders = find_loaders(cfg)
    found: List[Tuple[int, int]] = []
    for dataset in innermost_datasets(loaders['train']['dataset']) if 'train' in loaders else ():
        for step in _steps(dataset.get('pipeline') or ()):
            if 'Resize' in str(step.get('type')):
                for scale in (step.get('scale'), *(step.get('scales') or ())):
                    scale = (scale, scale) if isinstance(scale, int) else scale
                    if isinstance(scale, (list, tuple)) and len(scale) == 2 and all(isinstance(v, int) for v in scale):
                        found.append(tuple(scale))
    return max(found, key=lambda sides: sides[0] * sides[1], default=None)


def _steps(transforms) -> Iterator[dict]:
    """The steps of a pipeline, those inside of others too."""
    for item in transforms:
        if isinstance(item, dict):
            yield item
            yield from _steps(item.get('transforms') or ())
        else:
            yield from _steps(item)
