"""XCiT (cross-covariance image transformers) for MMPretrain, MMDetection and MMSegmentation.

Nothing has to be imported to use it: a config that names ``type='xcit_mm.XCiT'`` makes MMEngine import
:mod:`xcit_mm.registry`, which knows where everything else lives. For use without configs there are
:func:`create_backbone` and :mod:`xcit_mm.apis`.
"""

from .package import config_path, list_models, load_config, mim_dir, model_info

__version__ = '1.0.0'
__all__ = ['config_path', 'create_backbone', 'list_models', 'load_config', 'mim_dir', 'model_info']


def __getattr__(name: str):
    """``create_backbone`` brings PyTorch with it, so it is imported when it is named."""
    if name == 'create_backbone':
        from .apis.backbone import create_backbone

        return create_backbone
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
