"""The tables in ``data/``, and from them one record for each published model and for each file of weights."""

import csv
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

DATA = Path(__file__).parent / 'data'
TASKS = ('classification', 'detection', 'segmentation')
RELEASE = 'https://dl.fbaipublicfiles.com/xcit/'

SIZE_NAMES = dict(n='nano', t='tiny', s='small', m='medium', l='large')
RELEASED_ARCHS = ('n12', 't12', 't24', 's12', 's24', 'm24', 'l24')
DENSE_ARCHS = ('t12', 's12', 's24', 'm24')
PATCHES = (16, 8)
VARIANTS = {'': '224', 'dist': '224_dist', 'dist_384': '384_dist'}  # by the names of the configs and of the tables

TOP1, TOP1_MMPRETRAIN, TOP5_MMPRETRAIN = 'top-1 full crop', 'top-1 MMPretrain', 'top-5 MMPretrain'
TOP1_V2 = 'top-1 ImageNet-V2'


@dataclass(frozen=True)
class Model:
    """One published model.

    Attributes:
        name (str): Name of the config, without its ending.
        task (str): 'classification', 'detection' or 'segmentation'.
        method (str): 'ImageNet-1k', 'Mask R-CNN', 'Semantic FPN' or 'UperNet'.
        arch (str): As for :class:`xcit_mm.models.XCiT`.
        patch_size (int): 8 or 16.
        variant (str): '', 'dist' or 'dist_384'.
        input_size (tuple[int, int]): Height and width in pixels that MACs are counted at: the test size of a
            classifier, the training crop of a segmentor, a typical padded COCO image.
        weights (str): Address of the original release.
        metrics (dict[str, float]): Published accuracies in per cent, by name.
        params (int, optional): Published parameters, exact.
        params_m (float): Published parameters in millions, as printed.
        params_original (float, optional): Millions of parameters of the original modules, to two decimals.
        flops (int, optional): Published MACs of the backbone.
        weights_mmpretrain (str, optional): Address of the same weights in MMPretrain's layout.
    """

    name: str
    task: str
    method: str
    arch: str
    patch_size: int
    input_size: Tuple[int, int]
    weights: str
    params_m: float
    variant: str = ''
    metrics: Dict[str, float] = field(default_factory=dict)
    params: Optional[int] = None
    params_original: Optional[float] = None
    flops: Optional[int] = None
    weights_mmpretrain: Optional[str] = None

    @property
    def timm_name(self) -> Optional[str]:
        """What timm and the Hugging Face hub call a classifier: 'xcit_small_12_p8_224.fb_dist_in1k'."""
        if self.task != 'classification':
            return None
        tag = 'fb_dist_in1k' if self.variant else 'fb_in1k'
        return f'xcit_{_release_name(self.arch, self.patch_size)}_{self.input_size[0]}.{tag}'

    @property
    def config(self) -> str:
        """Path of the config in the repository."""
        return f'configs/{self.name}.py'

    @property
    def title(self) -> str:
        """The paper's name."""
        return _title(self.arch, self.patch_size) + {'': '', 'dist': ' dist', 'dist_384': ' dist 384'}[self.variant]


def read_table(name: str) -> List[Dict[str, Any]]:
    """A file of ``data/`` by its name without ending: one dict for each row, numbers as numbers, None where empty."""
    with open(DATA / f'{name}.csv', encoding='utf-8', newline='') as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Union[str, int, float, None]:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


@lru_cache(maxsize=1)
def all_models() -> Tuple[Model, ...]:
    """The 66 models: 42 classifiers, 8 detectors, 16 segmentors; each kind from small to large, patch 16 before 8."""
    return (*_classifiers(), *_detectors(), *_segmentors())


@dataclass(frozen=True)
class Weights:
    """One file of published weights.

    Attributes:
        name (str): For :func:`xcit_mm.create_backbone`, ``Inferencer`` and ``xcit_mm://NAME``.
        source (str): Who published it: 'XCiT', 'timm', 'MMPretrain', 'DINO' or 'RobustBench'.
        holds (str): 'classifier', 'detector', 'segmentor', 'backbone', 'full run' or 'linear head'.
        arch (str): As for :class:`xcit_mm.models.XCiT`.
        patch_size (int): 4, 8 or 16.
        size (int, optional): Edge of the images that it was published for, in pixels; None where they vary.
        data (str): What it was trained on.
        licence (str): SPDX identifier, as stated by the publisher.
        metric (str): Name of the published number.
        value (float): The published number, in per cent.
        address (str): For every place that takes a checkpoint.
        config (str): Path in the repository of the config that tests it.
    """

    name: str
    source: str
    holds: str
    arch: str
    patch_size: int
    size: Optional[int]
    data: str
    licence: str
    metric: str
    value: float
    address: str
    config: str


@lru_cache(maxsize=1)
def all_weights() -> Tuple[Weights, ...]:
    """Every published file: the original release, timm, MMPretrain, DINO, RobustBench."""
    return (*_release_weights(), *_timm_weights(), *_mmpretrain_weights(), *_dino_weights(), *_robust_weights())


@lru_cache(maxsize=1)
def weights_by_name() -> Dict[str, Weights]:
    return {weights.name: weights for weights in all_weights()}


def find_weights(name: str) -> Optional[Weights]:
    """Find published weights by name, case-insensitively; the original release's own names work too.

    timm's names without a tag mean the original release's files: 'xcit_small_12_p8_224', 'xcit_small_12_p8_384_dist'.
    """
    name = name.lower()
    found = weights_by_name().get(name)
    if found is None and name.startswith('xcit_'):
        same = (model for model in all_models() if model.timm_name and name in _release_names(model))
        found = next((weights_by_name()[model.name] for model in same), None)
    return found


def _release_names(model: Model) -> Tuple[str, ...]:
    """The file's name without its ending, and timm's without the tag where that is not ambiguous."""
    file = model.weights.rsplit('/', 1)[1][: -len('.pth')]
    return (file, file[: -len('_dist')]) if file.endswith('384_dist') else (file,)


_HOLDS = {'classification': 'classifier', 'detection': 'detector', 'segmentation': 'segmentor'}
_DATA = {'classification': 'ImageNet-1k', 'detection': 'COCO', 'segmentation': 'ADE20K'}
_HEADLINE = {'classification': TOP1, 'detection': 'box AP', 'segmentation': 'mIoU'}


def _release_weights() -> List[Weights]:
    return [
        Weights(
            name=model.name,
            source='XCiT',
            holds=_HOLDS[model.task],
            arch=model.arch,
            patch_size=model.patch_size,
            size=None if model.task == 'detection' else model.input_size[0],
            data=_DATA[model.task],
            licence='Apache-2.0',
            metric=_HEADLINE[model.task],
            value=model.metrics[_HEADLINE[model.task]],
            address=model.weights,
            config=model.config,
        )
        for model in all_models()
    ]


def _timm_weights() -> List[Weights]:
    """timm's files are conversions of the original ones, and so are MMPretrain's."""
    return [
        replace(weights, name=model.timm_name, source='timm', address=f'hf-hub:timm/{model.timm_name}')
        for model, weights in zip(all_models(), _release_weights())
        if model.timm_name
    ]


def _mmpretrain_weights() -> List[Weights]:
    return [
        replace(
            weights,
            name=re.sub(r'_\d{8}-\w{8}\.pth$', '', model.weights_mmpretrain.rsplit('/', 1)[1]),
            source='MMPretrain',
            metric=TOP1_MMPRETRAIN,
            value=model.metrics[TOP1_MMPRETRAIN],
            address=model.weights_mmpretrain,
        )
        for model, weights in zip(all_models(), _release_weights())
        if model.weights_mmpretrain
    ]


DINO = 'https://dl.fbaipublicfiles.com/dino/'


def _dino_weights() -> List[Weights]:
    """Four backbones, each with the whole run that made it and the linear classifier that was trained on it."""
    table = [row for row in read_table('paper_table3_self_supervised') if row['method'] == 'DINO']
    rows = {row['model']: row for row in table if row['resolution'] == 224}
    found = []
    for arch in ('s12', 'm24'):
        for patch in PATCHES:
            name, row = f'dino_xcit_{_release_name(arch, patch)}', rows[_title(arch, patch)]
            ours = f'xcit_{arch}_{patch}'
            for ending, holds, file, config, metric in (
                ('', 'backbone', 'pretrain', f'knn_{ours}_in1k', 'knn'),
                ('_full', 'full run', 'pretrain_full_checkpoint', f'dino_{ours}_300e_in1k', 'knn'),
                ('_linear', 'linear head', 'linearweights', f'linear_{ours}_in1k', 'linear'),
            ):
                found.append(
                    Weights(
                        name=f'{name}{ending}',
                        source='DINO',
                        holds=holds,
                        arch=arch,
                        patch_size=patch,
                        size=224,
                        data='ImageNet-1k' if holds == 'linear head' else 'ImageNet-1k without labels',
                        licence='Apache-2.0',
                        metric={'knn': 'k-NN top-1', 'linear': 'linear top-1'}[metric],
                        value=row[metric],
                        address=f'{DINO}{name}_pretrain/{name}_{file}.pth',
                        config=f'configs/{config}.py',
                    )
                )
    return found


ROBUST = 'https://github.com/RobustBench/robustbench/releases/download/v1.1/debenedetti2022light-xcit-'
_ROBUST_DATA = {'cifar10': 'CIFAR-10', 'cifar100': 'CIFAR-100', 'imagenet': 'ImageNet-1k'}


def _robust_weights() -> List[Weights]:
    """Adversarially trained models (Debenedetti et al., arXiv:2209.07399), by RobustBench's names."""
    found = []
    for row in read_table('robust_xcit'):
        name = f'debenedetti2022light_xcit_{row["arch"]}_{row["dataset"]}_linf'
        is_cifar = row['dataset'] != 'imagenet'
        found.append(
            Weights(
                name=name,
                source='RobustBench',
                holds='classifier',
                arch=row['arch'],
                patch_size=4 if is_cifar else 16,
                size=32 if is_cifar else 224,
                data=_ROBUST_DATA[row['dataset']],
                licence='MIT',
                metric='clean top-1',
                value=row['top1'],
                address=f'{ROBUST}{row["arch"][0]}-{row["dataset"]}-linf.pth.tar',
                config=f'configs/{name}.py',
            )
        )
    return found


def _title(arch: str, patch_size: int) -> str:
    return f'XCiT-{arch.upper()}/{patch_size}'


def _release_name(arch: str, patch_size: int) -> str:
    return f'{SIZE_NAMES[arch[0]]}_{arch[1:]}_p{patch_size}'


def _classifiers() -> List[Model]:
    rows = {(row['arch'], str(row['variant'])): row for row in read_table('imagenet_model_zoo')}
    v2 = {(row['model'], row['resolution']): row['top1_v2'] for row in read_table('paper_table2_imagenet')}
    models = []
    for arch in RELEASED_ARCHS:
        for patch in PATCHES:
            for variant, published in VARIANTS.items():
                row = rows[f'xcit_{_release_name(arch, patch)}', published]
                size = int(published[:3])
                metrics = {
                    TOP1: row['top1_official_full_crop'],
                    TOP1_MMPRETRAIN: row['top1_mmpretrain'],
                    TOP5_MMPRETRAIN: row['top5_mmpretrain'],
                }
                # The paper's table 2 lists distilled models only.
                if variant and (_title(arch, patch), size) in v2:
                    metrics[TOP1_V2] = v2[_title(arch, patch), size]
                models.append(
                    Model(
                        name='_'.join(['xcit', arch, str(patch), *([variant] if variant else []), 'in1k']),
                        task='classification',
                        method='ImageNet-1k',
                        arch=arch,
                        patch_size=patch,
                        variant=variant,
                        input_size=(size, size),
                        weights=row['weights_official'],
                        weights_mmpretrain=row['weights_mmpretrain'],
                        params=row['params'],
                        params_m=row['params_m'],
                        flops=row['flops'],
                        metrics=metrics,
                    )
                )
    return models


def _originals() -> Dict[Tuple[str, int], dict]:
    return {(row['arch'], row['patch_size']): row for row in read_table('original_modules')}


def _detectors() -> List[Model]:
    rows = {row['backbone']: row for row in read_table('paper_table5_coco_mask_rcnn_3x')}
    models = []
    for arch in DENSE_ARCHS:
        for patch in PATCHES:
            row = rows[_title(arch, patch)]
            models.append(
                Model(
                    name=f'mask_rcnn_xcit_{arch}_{patch}_3x_coco',
                    task='detection',
                    method='Mask R-CNN',
                    arch=arch,
                    patch_size=patch,
                    input_size=(800, 1216),
                    weights=f'{RELEASE}coco/maskrcnn_xcit_{_release_name(arch, patch)}.pth',
                    params_m=row['params_m'],
                    params_original=_originals()[arch, patch]['mask_rcnn'],
                    metrics={
                        f'{what} AP{level}': row[f'ap{level}_{what}']
                        for what in ('box', 'mask')
                        for level in ('', 50, 75)
                    },
                )
            )
    return models


def _segmentors() -> List[Model]:
    rows = {row['backbone']: row for row in read_table('paper_table6_ade20k')}
    models = []
    for key, method, schedule in (('sem_fpn', 'Semantic FPN', '80k'), ('upernet', 'UperNet', '160k')):
        for arch in DENSE_ARCHS:
            for patch in PATCHES:
                row = rows[_title(arch, patch)]
                models.append(
                    Model(
                        name=f'{key}_xcit_{arch}_{patch}_{schedule}_ade20k',
                        task='segmentation',
                        method=method,
                        arch=arch,
                        patch_size=patch,
                        input_size=(512, 512),
                        weights=f'{RELEASE}ade/{key}_xcit_{_release_name(arch, patch)}.pth',
                        params_m=row[f'params_m_{key}'],
                        params_original=_originals()[arch, patch][key],
                        metrics={'mIoU': row[f'miou_{key}']},
                    )
                )
    return models
