"""Use without configs: inference, backbones by name, export. Each name imports only the library that it needs."""

from importlib import import_module

_MODULES = {
    'DetInferencer': 'detection',
    'ImageClassificationInferencer': 'classification',
    'Inferencer': 'inference',
    'MMSegInferencer': 'segmentation',
    'create_backbone': 'backbone',
    'export_model': 'export',
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has {", ".join(__all__)}')
    from ..engine.screen import without_noise

    with without_noise():
        return getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)


def __dir__():
    return __all__
