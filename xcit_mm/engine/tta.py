"""Test-time augmentation: the mean over flips, and over the sizes that the config names."""

from copy import deepcopy
from typing import Iterator, List, Optional

from mmengine.config import Config, ConfigDict

from ..datasets.config import innermost_datasets
from ..errors import UsageError

MODELS_OF = {
    'mmdet': dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    'mmseg': dict(type='SegTTAModel'),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}
LOADS_LABELS = ('LoadAnnotations', 'LoadSegMap')


def use_tta(cfg: Config) -> None:
    """Wrap the model in the config's test-time augmentation, or in the library's: mean over flips.

    A ``tta_pipeline`` that a config inherits was written for other data. Of it the sizes, relative to each other, and
    the flips are taken; images and labels are read, and resized, as the test pipeline of each data set does it.

    Raises:
        UsageError: If the library has none for such a model.
    """
    scope = cfg.get('default_scope')
    if scope == 'mmdet' and (cfg.model.get('roi_head') or {}).get('mask_head'):
        raise UsageError('MMDetection has no test-time augmentation for instance masks; test without --tta')
    if 'tta_model' not in cfg and scope not in MODELS_OF:
        raise UsageError(f'--tta needs tta_model in the config (default_scope={scope!r})')
    cfg.setdefault('tta_model', deepcopy(MODELS_OF.get(scope)))
    for dataset in innermost_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = tta_pipeline(dataset['pipeline'], cfg.get('tta_pipeline'))
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def tta_pipeline(pipeline: List[dict], inherited: Optional[List[dict]] = None) -> List[dict]:
    """The pipeline for test-time augmentation that belongs to a test pipeline.

    Args:
        pipeline (list[dict]): The test pipeline; its last step packs.
        inherited (list[dict], optional): A ``tta_pipeline`` of the config, with a ``TestTimeAug`` in it.

    Returns:
        list[dict]: Steps, the last of which is ``TestTimeAug``.

    Raises:
        UsageError: If the inherited one has no ``TestTimeAug``.
    """
    *steps, pack = deepcopy(pipeline)
    labels = [step for step in steps if _name(step) in LOADS_LABELS]
    steps = [step for step in steps if _name(step) not in LOADS_LABELS]
    ratios, flips, packs = _take(inherited) if inherited else ([], [], [])
    resize = next((at for at, step in enumerate(steps) if 'Resize' in _name(step)), None)
    if not ratios or resize is None:
        before, sizes, after = steps, [], []
    else:
        before, after = steps[:resize], [[step] for step in steps[resize + 1 :]]
        sizes = [[_at_ratio(steps[resize], ratio) for ratio in ratios]]
    flips = flips or [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (1.0, 0.0)]
    pack = packs[0] if packs else pack
    if _name(pack) == 'PackDetInputs' and 'flip' not in pack.get('meta_keys', ()):
        usual = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        pack['meta_keys'] = (*pack.get('meta_keys', usual), 'flip', 'flip_direction')
    branches = [*sizes, *after, flips, *([step] for step in labels), [pack]]
    return [*before, ConfigDict(type='TestTimeAug', transforms=branches)]


def _name(step: dict) -> str:
    return str(step.get('type')).split('.')[-1]


def _take(inherited: List[dict]) -> tuple:
    """Ratios of the sizes, flips, and packing steps of a ``tta_pipeline``."""
    augment = next((step for step in inherited if _name(step) == 'TestTimeAug'), None)
    if augment is None:
        raise UsageError(f'tta_pipeline has no TestTimeAug; it has {", ".join(map(_name, inherited))}')
    steps = [deepcopy(step) for step in _flat(augment['transforms'])]
    resizes = [step for step in steps if 'Resize' in _name(step)]
    ratios = [step['scale_factor'] for step in resizes if 'scale_factor' in step]
    if not ratios and resizes:  # MMDetection's: the first is that of the usual test
        first = _longest(resizes[0])
        ratios = [_longest(step) / first for step in resizes]
    flips = [step for step in steps if 'Flip' in _name(step)]
    return ratios, flips, [step for step in steps if _name(step).startswith('Pack')]


def _flat(transforms) -> Iterator[dict]:
    for item in transforms:
        if isinstance(item, dict):
            yield item
        else:
            yield from _flat(item)


def _longest(step: dict) -> float:
    scale = step['scale']
    return max(scale) if isinstance(scale, (list, tuple)) else scale


def _at_ratio(resize: dict, ratio: float) -> dict:
    """The step that resizes to ``ratio`` times the size."""
    step = deepcopy(resize)
    for key in ('scale', 'max_size'):
        value = step.get(key)
        if isinstance(value, (list, tuple)):
            step[key] = tuple(max(1, round(side * ratio)) for side in value)
        elif value is not None:
            step[key] = max(1, round(value * ratio))
    if 'scale_factor' in step:
        factor = step['scale_factor']
        step['scale_factor'] = tuple(f * ratio for f in factor) if isinstance(factor, (list, tuple)) else factor * ratio
    return step
