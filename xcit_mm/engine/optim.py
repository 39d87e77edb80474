"""Layer-wise learning rate decay for models of all three libraries."""

from typing import List, Optional, Union

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..errors import UsageError
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor with layer-wise learning rate decay (BEiT, arXiv:2106.08254).

    A parameter of depth i learns at ``lr * layer_decay_rate ** (n - 1 - i)``, where the backbone's ``get_layer_depth``
    says which of n depths it has. Necks and heads learn at the full rate. MMPretrain's own
    constructor does the same for classifiers; those of MMDetection and MMSegmentation know the layers of a few
    backbones by name and refuse all others.

    ``paramwise_cfg`` takes ``layer_decay_rate`` and everything that MMEngine's takes, such as ``norm_decay_mult`` and
    ``custom_keys``; the factors multiply.

    Raises:
        UsageError: If the rate is missing or not within (0, 1], or no part of the model knows its depths.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None):
        paramwise_cfg = dict(paramwise_cfg or {})
        self.rate = paramwise_cfg.get('layer_decay_rate')
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise UsageError(f'paramwise_cfg needs layer_decay_rate, above 0 and at most 1; got {self.rate!r}')
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(
        self, params: List[dict], module: nn.Module, prefix: str = '', is_dcn_module: Optional[Union[int, float]] = None
    ) -> None:
        """Add one group per parameter, as MMEngine does, and scale their learning rates by depth."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:  # called for the parts of the model
            return
        path, backbone = next(
            ((name, part) for name, part in module.named_modules() if name and hasattr(part, 'get_layer_depth')),
            ('', None),
        )
        if backbone is None:
            raise UsageError(
                f'layer-wise learning rates need a backbone with get_layer_depth, such as xcit_mm.XCiT; '
                f'{type(module).__name__} has none'
            )
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params:
            depth, depths = backbone.get_layer_depth(names[id(group['params'][0])], f'{path}.')
            group['lr'] = group.get('lr', self.base_lr) * self.rate ** (depths - 1 - depth)
