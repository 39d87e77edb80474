"""Registries of the scope ``xcit_mm``.

MMEngine imports ``<scope>.registry`` when it meets a type such as ``'xcit_mm.XCiT'``, and the ``locations`` at the
first look-up. That is all the installation a config needs.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='xcit_mm', locations=['xcit_mm.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='xcit_mm', locations=['xcit_mm.engine.hooks'])
