"""Test protocols of classifiers, as command-line options."""

import os
from typing import Optional

from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook

from ..compat import built_loop, is_resuming
from ..datasets.config import side_by_side
from ..errors import UsageError
from ..evaluation.real import read_labels
from ..registry import HOOKS

PUBLISHED_PROTOCOLS = ('full-crop', 'mmpretrain')  # those with published accuracies
PROTOCOLS = (*PUBLISHED_PROTOCOLS, 'crop-0.875')
IMAGENET_CLASSES = 1000


def use_protocol(cfg: Config, protocol: str) -> None:
    """Replace loading, resizing and cropping in the test pipeline.

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
    """Read test images as the release does: with Pillow, ignoring the EXIF orientation, without padding tiny ones.

    Args:
        loader (dict): A data loader of a config, with one data set.
    """
    for step in loader['dataset']['pipeline']:
        if str(step['type']).endswith('LoadImageFromFile'):
            step.update(type='xcit_mm.LoadImageFromFile', imdecode_backend='pillow', as_stored=True)


def is_imagenet(loader: dict) -> bool:
    """True if a data loader reads ImageNet with its own classes."""
    dataset = (loader or {}).get('dataset') or {}
    own = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    return str(dataset.get('type')).rpartition('.')[2] in ('ImageNet', 'ImageNetV2') and not own


def find_imagenet_v2(cfg: Config) -> Optional[str]:
    """Read the test images as ImageNet-V2 if their folders are 0 to 999 and the model has ImageNet's classes.

    Folders of other data can be numbers too: a config that names classes or folders is followed.

    Returns:
        str, optional: The folder of ImageNet-V2, else None.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    if dataset.get('type') != 'ImageNet' or (cfg.model.get('head') or {}).get('num_classes') != IMAGENET_CLASSES:
        return None
    if dataset.get('classes') or {'classes', 'folders'} & set(dataset.get('metainfo') or ()):
        return None
    root = dataset.get('data_root') or ''
    for folder in (os.path.join(root, dataset.get('split') or ''), root):
        if os.path.isdir(folder):
            names = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
            if names == {str(number) for number in range(IMAGENET_CLASSES)}:
                cfg.test_dataloader.dataset = ConfigDict(dataset, type='xcit_mm.ImageNetV2', data_root=folder)
                cfg.test_dataloader.dataset.pop('split', None)
                return folder
            return None
    return None


def use_real_labels(cfg: Config, path: str) -> None:
    """Add the accuracy on the reassessed labels (ImageNet-ReaL) to the metrics.

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


@HOOKS.register_module()
class FolderLabelsHook(Hook):
    """Compare the labels of the class folders with those that the checkpoint was trained on.

    Data sets of folders list them in ``metainfo.folders``, which the runner saves in its checkpoints. MMPretrain's own
    tools save nothing, and number the folders in the order of their names as text.

    Raises:
        UsageError: In testing and resuming, if the same folders have other labels.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        training = built_loop(runner, 'train') is not None
        loop = built_loop(runner, 'train' if training else 'test')
        if loop is None or (training and not is_resuming(runner)):
            return  # fine-tuning from these weights
        here = (getattr(loop.dataloader.dataset, 'metainfo', None) or {}).get('folders')
        meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        there = meta.get('folders')
        if not here:
            return
        if there and sorted(there) == sorted(here) and list(there) != list(here):
            raise UsageError(
                f'the checkpoint was trained with other labels of the same folders.'
                f'{side_by_side(there, here, ("checkpoint", "config"))}\n'
                f'List the classes of the config in the order of the checkpoint'
            )
        if meta.get('classes') and not there and list(here) != sorted(here):
            runner.logger.warning(
                f'the checkpoint does not say which folder had which label. The classes of the config give '
                f'{here[0]}, {here[1]}, ... the labels 0, 1, .... A model that was trained by the tools of MMPretrain, '
                f'or before this package did so, has the order of the folders as text, '
                f'{", ".join(sorted(here)[:2])}, ...: classes in that order belong into its meta.dataset_meta and into '
                f'the config'
            )
