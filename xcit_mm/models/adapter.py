"""From one stride to several: the adapter that lets a plain transformer feed a feature pyramid."""

from functools import partial
from typing import Sequence, Tuple

import torch.fx
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from .. import ops
from ..registry import MODELS


@MODELS.register_module()
class MultiScaleAdapter(BaseModule):
    """Turn maps of one stride into maps of strides 4, 8, 16 and 32, or some of these (paper, section 4.3 and appendix).

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
        out_strides (Sequence[int]): Which of the maps to make; the layers of the others are not built.
        init_cfg (dict, optional): As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If ``stride`` is neither 8 nor 16, or ``out_strides`` are none of 4, 8, 16, 32 in this order.
    """

    STRIDES = (4, 8, 16, 32)

    def __init__(
        self,
        in_channels: int,
        stride: int = 16,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='GELU'),
        out_strides: Sequence[int] = STRIDES,
        init_cfg=None,
    ):
        super().__init__(init_cfg=init_cfg)
        self.out_strides = check_strides(out_strides)

        deconv = partial(nn.ConvTranspose2d, in_channels, in_channels, kernel_size=2, stride=2)

        if stride not in (8, 16):
            raise ValueError(f'the multi-scale adapter takes maps of stride 8 or 16, got stride={stride!r}')
        self.stride = stride
        for number, out_stride in enumerate(self.STRIDES, start=1):
            if out_stride not in self.out_strides:
                continue
            if out_stride == stride:
                op: nn.Module = nn.Identity()
            elif out_stride > stride:
                op = nn.MaxPool2d(out_stride // stride)
            elif out_stride == stride // 2:
                op = nn.Sequential(deconv())
            else:
                norm = build_norm_layer(norm_cfg, in_channels)[1]
                op = nn.Sequential(deconv(), norm, build_activation_layer(act_cfg), deconv())
            # The names fpn1 ... fpn4 and their numbering are those of the published detectors.
            setattr(self, f'fpn{number}', op)

    def forward(self, maps: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Maps (B, C, H, W), one for each of ``out_strides`` o -> (B, C, H s/o, W s/o), rounded down, at least 1 x 1.

        Raises:
            ValueError: If there are more or fewer maps.
        """
        if len(maps) != len(self.out_strides):
            raise ValueError(
                f'the multi-scale adapter takes one map for each of out_strides={self.out_strides}; got {len(maps)}'
            )
        return tuple(self.level(i, x) for i, x in enumerate(maps))

    def level(self, index: int, x: Tensor) -> Tensor:
        """Map number ``index`` of ``out_strides`` alone, so that a backbone need not keep those it has passed."""
        op = getattr(self, f'fpn{self.STRIDES.index(self.out_strides[index]) + 1}')
        # Contiguous, since mmcv's operators read channels-last maps wrongly.
        return _apply(op, pad_to_window(x, op.kernel_size if isinstance(op, nn.MaxPool2d) else 1)).contiguous()


def _apply(op: nn.Module, x: Tensor) -> Tensor:
    if type(op) is not nn.Sequential or not ops.may_use_weights(x, op):
        return op(x)
    for layer in op:
        x = ops.deconvolve(x, layer)
    return x


def check_strides(out_strides: Sequence[int]) -> Tuple[int, ...]:
    """Strides of a pyramid as a tuple.

    Raises:
        ValueError: If they are not some of 4, 8, 16, 32, in this order.
    """
    strides = (out_strides,) if isinstance(out_strides, int) else tuple(out_strides)
    if not strides or strides != tuple(stride for stride in MultiScaleAdapter.STRIDES if stride in strides):
        raise ValueError(f'out_strides must be some of {MultiScaleAdapter.STRIDES}, in this order; got {strides}')
    return strides


@torch.fx.wrap
def pad_to_window(x: Tensor, window: int) -> Tensor:
    """Pad a map that is smaller than its max-pooling window: a small image keeps its coarsest level."""
    height, width = (max(0, window - n) for n in x.shape[-2:])
    return F.pad(x, (0, width, 0, height), value=float('-inf')) if height or width else x
