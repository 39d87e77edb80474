"""Registries of the scope ``xcit_mm``.

MMEngine imports ``<scope>.registry`` when it meets a type such as ``'xcit_mm.XCiT'``, and the ``locations`` at the
first look-up. That is all the installation a config needs.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry


class _OnDemand(Registry):
    """A registry that imports the modules of some types on demand, since they need further libraries.

    Args:
        modules (dict): Module names by type name.
    """

    def __init__(self, *args, modules: dict, **kwargs):
        super().__init__(*args, **kwargs)
        self._modules = modules

    def get(self, key: str):
        """The type of that name, of this registry or of its parents; None if there is none."""
        if self.split_scope_key(key)[1] in self._modules:
            import_module(self._modules[self.split_scope_key(key)[1]])
        return super().get(key)


MODELS = _OnDemand(
    'model',
    parent=MMENGINE_MODELS,
    scope='xcit_mm',
    locations=['xcit_mm.models'],
    modules={
        'AblatedXCiT': 'xcit_mm.models.ablation',
        'SurgeryXCiT': 'xcit_mm.models.surgery',
        'DINO': 'xcit_mm.selfsup.dino',
        'DINOHead': 'xcit_mm.selfsup.dino',
        'DINONeck': 'xcit_mm.selfsup.dino',
        'DistilledClassifier': 'xcit_mm.models.distillation',
        'LinearProbe': 'xcit_mm.selfsup.linear',
        'EncoderDecoder': 'xcit_mm.models.segmentor',
        'FasterRCNN': 'xcit_mm.large_images.detector',
        'MaskRCNN': 'xcit_mm.large_images.detector',
        'TiledModel': 'xcit_mm.large_images.tiling',
    },
)
DATASETS = _OnDemand(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='xcit_mm',
    locations=['xcit_mm.datasets'],
    modules={
        'INaturalist': 'xcit_mm.datasets.inaturalist',
        'CIFAR10': 'xcit_mm.datasets.cifar',
        'CIFAR100': 'xcit_mm.datasets.cifar',
        'ImageNetV2': 'xcit_mm.datasets.imagenet',
        'PlainDigits': 'xcit_mm.datasets.plain_digits',
    },
)
TRANSFORMS = _OnDemand(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='xcit_mm',
    locations=['xcit_mm.datasets.loading', 'xcit_mm.datasets.plain_digits'],
    modules={
        'CutIntoTiles': 'xcit_mm.datasets.tiling',
        **dict.fromkeys(
            ('RandAugment', 'RandomErasing', 'Rotate', 'Shear', 'Translate'), 'xcit_mm.datasets.augmentation'
        ),
    },
)
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='xcit_mm', locations=['xcit_mm.evaluation'])
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='xcit_mm',
    locations=[
        'xcit_mm.engine.hooks',
        'xcit_mm.engine.averaging',
        'xcit_mm.engine.classification',
        'xcit_mm.resilience.bad_images',
        'xcit_mm.resilience.checkpointing',
        'xcit_mm.engine.detection',
        'xcit_mm.resilience.data_order',
        'xcit_mm.resilience.resuming',
        'xcit_mm.resilience.non_finite',
        'xcit_mm.resilience.interruption',
        'xcit_mm.selfsup.hooks',
        'xcit_mm.visualization.curves',
        'xcit_mm.visualization.results',
    ],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='xcit_mm',
    locations=['xcit_mm.engine.optim'],
)
PARAM_SCHEDULERS = Registry(
    'parameter scheduler', parent=MMENGINE_PARAM_SCHEDULERS, scope='xcit_mm', locations=['xcit_mm.engine.schedule']
)
STRATEGIES = Registry('strategy', parent=MMENGINE_STRATEGIES, scope='xcit_mm', locations=['xcit_mm.engine.sharding'])


def _skip_multimodal_models() -> None:
    """Let ``mmpretrain.models`` be imported beside Transformers 5, without its multimodal models.

    These take names from Transformers that its version 5 does not have any more. MMPretrain leaves them out without
    Transformers, or with one from before 4.28, but not here: nothing of it can be imported.
    """
    try:
        if int(version('transformers').split('.')[0]) < 5 or find_spec('mmpretrain') is None:
            return
        dependency: Any = import_module('mmpretrain.utils.dependency')
    except (PackageNotFoundError, ValueError, ImportError, AssertionError):  # MMPretrain asserts versions
        return
    dependency.WITH_MULTIMODAL = False


_skip_multimodal_models()
