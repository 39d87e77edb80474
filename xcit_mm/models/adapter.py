"""From one stride to four: the adapter that lets a plain transformer feed a feature pyramid."""

from functools import partial
from typing import Sequence, Tuple

import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..registry import MODELS
from .in_place import Deconv2x2


@MODELS.register_module()
class MultiScaleAdapter(BaseModule):
    """Turn four maps of one stride into maps of strides 4, 8, 16 and 32 (paper, section 4.3 and appendix).

    ======  ===================================  ===================
    output  input stride 16                      input stride 8
    ======  ===================================  ===================
    4       deconv x2, BN, GELU, deconv x2       deconv x2
    8       deconv x2                            as it is
    16      as it is                             max-pool 2
    32      max-pool 2                           max-pool 4
    ======  ===================================  ===================

    It is the end of :class:`XCiT` with ``out_type='pyramid'``, and a neck for any backbone with a single stride:
    ``neck=[dict(type='xcit_mm.MultiScaleAdapter', in_channels=768, stride=16), dict(type='FPN', ...)]``.

    Args:
        in_channels (int): Channels of every map, in and out.
        stride (int): Stride of the input maps, 8 or 16 pixels.
        norm_cfg (dict): The batch norm between the two deconvolutions (stride 16 only).
        act_cfg (dict): The activation after it.
        init_cfg (dict, optional): As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If ``stride`` is neither 8 nor 16.
    """

    out_strides = (4, 8, 16, 32)

    def __init__(
        self,
        in_channels: int,
        stride: int = 16,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='GELU'),
        init_cfg=None,
    ):
        super().__init__(init_cfg=init_cfg)

        deconv = partial(Deconv2x2, in_channels, in_channels)

        # The names fpn1 ... fpn4 and their numbering are those of the published detectors.
        if stride == 16:
            self.fpn1 = nn.Sequential(
                deconv(), build_norm_layer(norm_cfg, in_channels)[1], build_activation_layer(act_cfg), deconv()
            )
            self.fpn2 = nn.Sequential(deconv())
            self.fpn3 = nn.Identity()
            self.fpn4 = nn.MaxPool2d(2)
        elif stride == 8:
            self.fpn1 = nn.Sequential(deconv())
            self.fpn2 = nn.Identity()
            self.fpn3 = nn.MaxPool2d(2)
            self.fpn4 = nn.MaxPool2d(4)
        else:
            raise ValueError(f'the multi-scale adapter takes maps of stride 8 or 16, got stride={stride!r}')
        self.stride = stride

    def forward(self, maps: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Four maps (B, C, H, W) -> (B, C, H s/4, W s/4), (… s/8), (… s/16), (… s/32), rounded down, at least 1 x 1.

        Raises:
            ValueError: If there are not exactly four maps.
        """
        if len(maps) != 4:
            raise ValueError(f'the multi-scale adapter takes four maps, one per output stride; got {len(maps)}')
        return tuple(self.level(i, x) for i, x in enumerate(maps))

    def level(self, index: int, x: Tensor) -> Tensor:
        """One of the four maps, so that a backbone need not keep those it has passed: 0 gives stride 4, 3 stride 32."""
        op = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)[index]
        # Contiguous, since mmcv's operators read channels-last maps wrongly.
        return op(_at_least(x, op)).contiguous()


def _at_least(x: Tensor, op: nn.Module) -> Tensor:
    """Pad a map that is smaller than its max-pooling window: a small image keeps its coarsest level."""
    if not isinstance(op, nn.MaxPool2d):
        return x
    height, width = (max(0, op.kernel_size - n) for n in x.shape[-2:])
    return F.pad(x, (0, width, 0, height), value=float('-inf')) if height or width else x
