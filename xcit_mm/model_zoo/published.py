"""What was published: the tables in ``data/``, and from them one record for each of the 66 models."""

import csv
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

DATA = Path(__file__).parent / 'data'
TASKS = ('classification', 'detection', 'segmentation')
RELEASE = 'https://dl.fbaipublicfiles.com/xcit/'

SIZES = dict(n='nano', t='tiny', s='small', m='medium', l='large')
ARCHS = ('n12', 't12', 't24', 's12', 's24', 'm24', 'l24')
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
        input_size (tuple[int, int]): Height and width in pixels that multiply-adds are counted at: the test size of a
            classifier, the training crop of a segmentor, a typical padded COCO image.
        weights (str): Address of the original release.
        metrics (dict[str, float]): Published accuracies in per cent, by name.
        params (int, optional): Published parameters, exact.
        params_m (float): Published parameters in millions, as printed.
        params_original (float, optional): Millions of parameters of the original modules, to two decimals.
        flops (int, optional): Published multiply-adds of the backbone.
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
    def config(self) -> str:
        """Path of the config in the repository."""
        return f'configs/{self.name}.py'

    @property
    def title(self) -> str:
        """The paper's name."""
        return _title(self.arch, self.patch_size) + {'': '', 'dist': ' dist', 'dist_384': ' dist 384'}[self.variant]


def read_table(name: str) -> List[Dict[str, Union[str, int, float, None]]]:
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


def _title(arch: str, patch_size: int) -> str:
    return f'XCiT-{arch.upper()}/{patch_size}'


def _release_name(arch: str, patch_size: int) -> str:
    return f'{SIZES[arch[0]]}_{arch[1:]}_p{patch_size}'


def _classifiers() -> List[Model]:
    rows = {(row['arch'], str(row['variant'])): row for row in read_table('imagenet_model_zoo')}
    v2 = {(row['model'], row['resolution']): row['top1_v2'] for row in read_table('paper_table2_imagenet')}
    models = []
    for arch in ARCHS:
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
