"""The published ways of testing a classifier, as options of the command line."""

import os
from typing import Optional

from mmengine.config import Config, ConfigDict

from ..errors import UsageError
from ..evaluation.real import read_labels

PUBLISHED_PROTOCOLS = ('full-crop', 'mmpretrain')  # those that accuracies are published for
PROTOCOLS = (*PUBLISHED_PROTOCOLS, 'crop-0.875')


def use_protocol(cfg: Config, protocol: str) -> None:
    """Replace reading, resize and crop of the test pipeline.

    Args:
        cfg (Config): Config of a classifier, with a ``CenterCrop`` in its test pipeline.
        protocol (str): 'full-crop', as in the paper: the short side is resized to the model's size, and the centre
            cropped. 'mmpretrain', as in MMPretrain's tables: at 224 the short side is resized to 256 and the centre
            cropped, at other sizes the image is resized to the size, whatever its shape. 'crop-0.875', the release's
            test without ``--full_crop``: the short side is resized to 256/224 of the model's size, and the centre
            cropped; at 224 the same as 'mmpretrain'.
    """
    read_as_released(cfg.test_dataloader)
    pipeline = cfg.test_dataloader.dataset.pipeline
    crops = [i for i, step in enumerate(pipeline) if step['type'] == 'CenterCrop']
    if not crops:
        raise UsageError('--protocol is for classifiers: the test pipeline of this config has no CenterCrop')
    (crop,) = crops
    size = pipeline[crop]['crop_size']
    bicubic = dict(backend='pillow', interpolation='bicubic')
    centre = dict(type='CenterCrop', crop_size=size)
    if protocol == 'full-crop':
        steps = [dict(type='ResizeEdge', scale=size, edge='short', **bicubic), centre]
    elif protocol == 'crop-0.875' or size == 224:
        steps = [dict(type='ResizeEdge', scale=size * 256 // 224, edge='short', **bicubic), centre]
    else:
        steps = [dict(type='Resize', scale=(size, size), **bicubic)]
    resizes = [i for i in range(crop) if pipeline[i]['type'] in ('Resize', 'ResizeEdge')]
    kept = [step for i, step in enumerate(pipeline) if i not in (*resizes, crop)]
    at = min([*resizes, crop])
    cfg.test_dataloader.dataset.pipeline = [*kept[:at], *(ConfigDict(step) for step in steps), *kept[at:]]


def read_as_released(loader: dict) -> None:
    """Read the images of a test as the release does: with Pillow, neither turned by their EXIF note nor widened.

    Args:
        loader (dict): A data loader of a config, with one data set.
    """
    for step in loader.dataset.pipeline:
        if str(step['type']).endswith('LoadImageFromFile'):
            step.update(type='xcit_mm.LoadImageFromFile', imdecode_backend='pillow', as_stored=True)


def is_imagenet(loader: dict) -> bool:
    """Whether a data loader reads ImageNet with its own classes, and not a data set of the user's."""
    dataset = (loader or {}).get('dataset') or {}
    own = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    return str(dataset.get('type')).rpartition('.')[2] in ('ImageNet', 'ImageNetV2') and not own


def find_imagenet_v2(cfg: Config) -> Optional[str]:
    """Take the test images for ImageNet-V2's if their folders are named by class index.

    Returns:
        str, optional: The folder, if it is so.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    if dataset.get('type') != 'ImageNet':
        return None
    root = dataset.get('data_root') or ''
    for folder in (os.path.join(root, dataset.get('split') or ''), root):
        if os.path.isdir(folder):
            names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
            if names and all(name.isdigit() for name in names):
                cfg.test_dataloader.dataset = ConfigDict(dataset, type='xcit_mm.ImageNetV2', data_root=folder)
                cfg.test_dataloader.dataset.pop('split', None)
                return folder
            return None
    return None


def use_real_labels(cfg: Config, path: str) -> None:
    """Add the accuracy against reassessed labels to the metrics.

    Raises:
        UsageError: If the file is missing or of another form.
    """
    if cfg.get('default_scope') != 'mmpretrain':
        raise UsageError(f'--real-labels is for classifiers; this config is for {cfg.get("default_scope")}')
    try:
        read_labels(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f'--real-labels: {error}') from error
    evaluators = cfg.test_evaluator
    evaluators = [evaluators] if isinstance(evaluators, dict) else list(evaluators)
    cfg.test_evaluator = [*evaluators, ConfigDict(type='xcit_mm.ReaLAccuracy', label_file=path)]
