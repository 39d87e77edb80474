"""XCiT: cross-covariance image transformers (El-Nouby et al., NeurIPS 2021, arXiv:2106.09681)."""

import inspect
import math
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Optional, Sequence, Tuple, Union

import torch
import torch.fx
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.init import trunc_normal_
from torch.utils.checkpoint import checkpoint as activation_checkpoint

from .. import ops
from ..checkpoint import CheckpointError, match_state_dict
from ..checkpoint.stem import fit_stem
from ..compat import BatchNorm
from ..errors import UsageError
from ..ops.private import is_compiling
from ..registry import MODELS
from .adapter import MultiScaleAdapter, check_strides
from .attention import XCA, ClassAttention

ARCHS = {
    'n12': dict(embed_dims=128, depth=12, num_heads=4, tokens_norm=False),
    't12': dict(embed_dims=192, depth=12, num_heads=4),
    't24': dict(embed_dims=192, depth=24, num_heads=4),
    's12': dict(embed_dims=384, depth=12, num_heads=8),
    's24': dict(embed_dims=384, depth=24, num_heads=8),
    'm12': dict(embed_dims=512, depth=12, num_heads=8),
    'm24': dict(embed_dims=512, depth=24, num_heads=8),
    'l12': dict(embed_dims=768, depth=12, num_heads=16),
    'l24': dict(embed_dims=768, depth=24, num_heads=16),
}

# Arguments of backbones that the libraries' configs begin with.
OF_OTHER_BACKBONES = (
    *('num_stages', 'style', 'strides', 'dilations', 'zero_init_residual', 'dcn', 'conv_cfg', 'extra'),
    *('depths', 'window_size', 'pretrain_img_size', 'num_layers', 'sr_ratios'),
    *('deepen_factor', 'widen_factor', 'expand_ratio', 'channel_attention'),
)
# Arguments of timm's models, and what stands for them here.
NAMED_ELSEWHERE = {
    'in_chans': 'is in_channels here',
    'img_size': 'is not needed: images of any size are taken; leave it out',
    'num_classes': 'is an argument of heads; a backbone gives features. Leave it out',
    'features_only': "is out_type='featmap', for the maps of out_indices, or 'pyramid'",
    'global_pool': "is out_type='cls_token' or 'avg_featmap' here",
    'pretrained': "is init_cfg=dict(type='Pretrained', checkpoint=...) here; in Python, create_backbone(NAME, True)",
    'checkpoint_path': "is init_cfg=dict(type='Pretrained', checkpoint=...); in Python, create_backbone(NAME, PATH)",
    'eta': 'is layer_scale_init_value here',
}


@ops.published(proj=nn.Sequential)
class PatchEmbed(nn.Module):
    """Convolutional patch projection (section 4.1): 3x3 stride-2 convolutions, each halving the image, rounding up.

    Three of them for patch size 8, four for 16; each with batch norm, GELU between. Patch size 4 is that of 16 with
    stride 1 in the first two, as in RobustBench's models for CIFAR.

    Args:
        in_channels (int): Channels of the image.
        embed_dims (int): Channels C of the tokens.
        patch_size (int): 4, 8 or 16.
        norm_cfg (dict): Batch norm.
        act_cfg (dict): Activation.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int, norm_cfg: dict, act_cfg: dict):
        super().__init__()
        strides = {4: (1, 1, 2, 2), 8: (2, 2, 2), 16: (2, 2, 2, 2)}[patch_size]
        steps = len(strides)
        widths = [embed_dims >> i for i in range(steps - 1, -1, -1)]
        layers = []
        for i, (c_in, c_out, stride) in enumerate(zip([in_channels, *widths], widths, strides)):
            conv = nn.Conv2d(c_in, c_out, kernel_size=3, stride=stride, padding=1, bias=False)
            layers.append(nn.Sequential(conv, build_norm_layer(norm_cfg, c_out)[1]))
            if i < steps - 1:
                layers.append(build_activation_layer(act_cfg))
        # Named as in every published checkpoint.
        self.proj = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        """(B, 3, H, W) -> tokens (B, N, C) and their grid (ceil(H / p), ceil(W / p)); N is its product."""
        x = ops.embed_patches(image, self.proj)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class PositionEncoding(nn.Module):
    """Fourier position encoding (section 4.1) with a learned 1x1 projection, for any grid.

    The 64 Fourier features of a place are 32 of its row and 32 of its column, so their projection is a sum of one
    vector per row and one per column: H + W small matmuls instead of H x W.

    Args:
        dim (int): Channels C.
        hidden_dim (int): Features per axis.
        temperature (float): Base of the wavelengths.
    """

    def __init__(self, dim: int, hidden_dim: int = 32, temperature: float = 10000.0):
        super().__init__()
        self.hidden_dim, self.temperature = hidden_dim, temperature
        self.token_projection = nn.Conv2d(2 * hidden_dim, dim, kernel_size=1)

    def forward(self, height: int, width: int) -> Tensor:
        """-> (1, height * width, C)."""
        projection, weight = self.token_projection, self.token_projection.weight
        # Not a buffer: no file holds one that is not persistent, and half precision would round it for good.
        wavelengths = fourier_wavelengths(self.hidden_dim, self.temperature, weight)
        rows, cols = (fourier_features(length, wavelengths).to(weight.dtype) for length in (height, width))
        if type(projection) is nn.Conv2d and ops.may_use_weights(weight, projection):
            w_rows, w_cols = weight.flatten(1).chunk(2, dim=1)
            features = F.linear(rows, w_rows, projection.bias)[:, None] + F.linear(cols, w_cols)
            return features.flatten(0, 1)[None]
        rows, cols = rows[:, None].expand(-1, width, -1), cols[None].expand(height, -1, -1)
        features = torch.cat((rows, cols), dim=2).permute(2, 0, 1)[None]
        return projection(features).flatten(2).transpose(1, 2)


@torch.fx.wrap
def fourier_wavelengths(hidden_dim: int, temperature: float, like: Tensor) -> Tensor:
    """One for each pair of sine and cosine, (hidden_dim / 2), fp32, on the device of ``like``."""
    return temperature ** (torch.arange(0, hidden_dim, 2, dtype=torch.float32, device=like.device) / hidden_dim)


@torch.fx.wrap
def fourier_features(length: int, wavelengths: Tensor) -> Tensor:
    """Sines and cosines of the places 1 ... length, scaled to 2 pi: (hidden / 2) -> (length, hidden), fp32."""
    place = torch.arange(1, length + 1, dtype=torch.float32, device=wavelengths.device)
    angle = (place / (length + 1e-6) * (2 * math.pi))[:, None] / wavelengths
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)


@ops.published(conv1=nn.Conv2d, act=nn.GELU, bn=BatchNorm, conv2=nn.Conv2d)
class LPI(nn.Module):
    """Local patch interaction (section 3.3): depthwise 3x3, GELU, batch norm, depthwise 3x3.

    Args:
        dim (int): Channels C.
        norm_cfg (dict): Batch norm.
        act_cfg (dict): Activation.
    """

    def __init__(self, dim: int, norm_cfg: dict, act_cfg: dict):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.act = build_activation_layer(act_cfg)
        self.bn = build_norm_layer(norm_cfg, dim)[1]
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: Tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if isinstance(self.bn, nn.Identity):
            raise UsageError(
                'LPI: its batch norm was taken away, as mmcv.cnn.fuse_conv_bn does: it folds bn into conv1, and since '
                'GELU is between them the outputs would be wrong. torch.fx.experimental.optimization.fuse(model) folds '
                'the batch norms that can be'
            )
        # The tokens already are a channels-last image: nothing is copied.
        image = x.unflatten(1, grid).permute(0, 3, 1, 2)
        image = self.conv2(self.bn(self.act(self.conv1(image))))
        return image.flatten(2).transpose(1, 2)


@ops.published(fc1=nn.Linear, act=nn.GELU, fc2=nn.Linear, drop=nn.Dropout)
class Mlp(nn.Module):
    """Linear, GELU, linear; with dropout after each linear.

    Args:
        dim (int): Channels C.
        hidden_dim (int): Channels between.
        act_cfg (dict): Activation.
        drop (float): Dropout rate.
    """

    def __init__(self, dim: int, hidden_dim: int, act_cfg: dict, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


@ops.published()
class XCABlock(nn.Module):
    """XCA, then LPI, then MLP; each on its layer norm, scaled (LayerScale), dropped by sample and added (figure 1).

    Args:
        dim (int): Channels C.
        num_heads (int): Heads of XCA.
        mlp_ratio (float): Hidden channels of the MLP over C.
        layer_scale (float): Start of the LayerScale weights.
        drop, attn_drop, drop_path (float): Rates.
        norm_cfg, bn_norm_cfg, act_cfg (dict): Layer norm, batch norm of LPI, activation.
    """

    def __init__(
        self, dim, num_heads, mlp_ratio, layer_scale, drop, attn_drop, drop_path, norm_cfg, bn_norm_cfg, act_cfg
    ):
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, dim)[1]
        self.attn = XCA(dim, num_heads, attn_drop, drop)
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.norm3 = build_norm_layer(norm_cfg, dim)[1]
        self.lpi = LPI(dim, bn_norm_cfg, act_cfg)
        self.gamma3 = nn.Parameter(torch.full((dim,), layer_scale))
        self.norm2 = build_norm_layer(norm_cfg, dim)[1]
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_cfg, drop)
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = drop_path

    def _keep(self, x: Tensor) -> Optional[Tensor]:
        """Stochastic depth: a factor for each image, 0 or 1 / (1 - rate), (B, 1, 1); None where all stay."""
        if not self.training or self.drop_path == 0:
            return None
        keep = 1 - self.drop_path
        return x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor, grid: Tuple[int, int], inplace: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C); grid is (rows, columns), N its product. ``inplace``: x may be changed."""
        x = ops.add_xca(x, self.norm1, self.attn, self.gamma1, self._keep(x), inplace)
        x = ops.add_lpi(x, self.norm3, self.lpi, self.gamma3, grid, self._keep(x), inplace=True)
        return ops.add_mlp(x, self.norm2, self.mlp, self.gamma2, self._keep(x), inplace=True)


class ClassAttentionBlock(nn.Module):
    """Class attention, then an MLP on the class token (section 4.1, after CaiT).

    Two particularities decide the published numbers. ``norm1`` and ``gamma1`` act on all tokens, so the patch tokens
    change too; and the second residual starts from the normalised class token, the patch tokens being added to
    themselves.

    Args:
        dim (int): Channels C.
        num_heads (int): Heads.
        mlp_ratio (float): Hidden channels of the MLP over C.
        layer_scale (float): Start of the LayerScale weights.
        tokens_norm (bool): The second norm acts on all tokens, not on the class token alone.
        drop, attn_drop (float): Rates.
        norm_cfg, act_cfg (dict): Layer norm, activation.
    """

    def __init__(self, dim, num_heads, mlp_ratio, layer_scale, tokens_norm, drop, attn_drop, norm_cfg, act_cfg):
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, dim)[1]
        self.attn = ClassAttention(dim, num_heads, attn_drop, drop)
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.norm2 = build_norm_layer(norm_cfg, dim)[1]
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_cfg, drop)
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.tokens_norm = tokens_norm

    def forward(self, cls_token: Tensor, tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """(B, 1, C), (B, N, C) -> the same."""
        # The tokens first: MMPretrain's class activation maps take what the last such norm returned first.
        tokens_normed, cls_normed = self.norm1(tokens), self.norm1(cls_token)
        cls_token = cls_token + self.gamma1 * self.attn(cls_normed, tokens_normed)
        tokens = tokens + self.gamma1 * tokens_normed
        cls_token = self.norm2(cls_token)
        if self.tokens_norm:
            tokens = self.norm2(tokens)
        return cls_token + self.gamma2 * self.mlp(cls_token), 2 * tokens


@MODELS.register_module()
class XCiT(BaseModule):
    """XCiT backbone for MMPretrain, MMDetection and MMSegmentation.

    For small images ``patch_size`` may be 4 too, without a pyramid; see :class:`PatchEmbed`.

    Args:
        arch (str | dict): 'n12', 't12', 't24', 's12', 's24', 'm12', 'm24', 'l12', 'l24', or a dict with
            ``embed_dims``, ``depth``, ``num_heads`` and optionally ``mlp_ratio``, ``tokens_norm``,
            ``layer_scale_init_value``.
        patch_size (int): 8 or 16.
        out_type (str): What the forward pass returns, always as a tuple with one entry per index:

            - 'cls_token': the class token, (B, C).
            - 'featmap': patch tokens as a map, (B, C, ceil(H / p), ceil(W / p)).
            - 'avg_featmap': mean of the patch tokens, (B, C).
            - 'raw': all tokens, (B, N, C), with the class token first after class attention, (B, 1 + N, C).
            - 'pyramid': maps of ``out_strides`` made by :class:`MultiScaleAdapter`.

            With 'pyramid', and with 'featmap' unless ``out_indices`` asks for them, the model has no class token,
            class attention or final norm.
        out_indices (Sequence[int] | int, optional): Blocks to return: the XCA blocks 0 ... depth - 1, and for all types
            but 'pyramid' the two class-attention blocks depth and depth + 1, the last with the final norm, as
            MMPretrain counts them. Negative ones are counted from the end, for 'featmap' and 'pyramid' from the last
            XCA block. Defaults to the published choice for 'pyramid' (blocks 3, 5, 7, 11 of 12 or 7, 11, 15, 23 of 24
            for strides 4, 8, 16, 32), else to -1. Blocks after the last one returned are not run.
        out_strides (Sequence[int]): For 'pyramid': the strides of the maps, some or all of 4, 8, 16 and 32. Name those
            alone that the neck or head uses: the layers of the others are not built.
        in_channels (int): Channels of the image.
        drop_rate, attn_drop_rate (float): Dropout of tokens and projections; of attention weights.
        drop_path_rate (float): Stochastic depth, the same for every block as published.
        layer_scale_init_value (float, optional): Start of LayerScale. Defaults to 1 for depth 12 or less, else 1e-5.
        tokens_norm (bool, optional): See :class:`ClassAttentionBlock`. Defaults to False for 'n12', else True.
        frozen_stages (int): Freeze the patch and position embedding (0), and the first k blocks (k > 0), class
            attention counted on. Frozen parts stay in eval mode. -1 freezes nothing.
        norm_eval (bool): Keep all batch norms in eval mode.
        with_cp (bool): Recompute the blocks in the backward pass instead of storing them (activation checkpointing):
            same outputs, gradients and running statistics, less memory, more time.
        norm_cfg, bn_norm_cfg, act_cfg (dict): Layer norm, batch norm, activation.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=...)`` takes any published XCiT file as it is.

    Raises:
        ValueError: If an argument has a value that is not possible; the message says which are.
    """

    OUT_TYPES = ('cls_token', 'featmap', 'avg_featmap', 'raw', 'pyramid')
    num_class_attention_blocks = 2
    num_extra_tokens = 0  # among the tokens of a block; MMPretrain's class activation maps ask for it

    def __new__(cls, *args, **kwargs):
        """Arguments of MMPretrain's and timm's XCiT get the way to write them here, and not Python's error."""
        own = inspect.signature(cls.__init__).parameters  # a subclass may have some of these names
        hint = cls.explain_arguments(
            {name: value for name, value in kwargs.items() if name == 'arch' or name not in own}
        )
        if hint:
            raise TypeError(f'XCiT: {hint}')
        return super().__new__(cls)

    @staticmethod
    def explain_arguments(given: dict) -> Optional[str]:
        """What to write instead of arguments that other implementations of XCiT have; None if there are none."""
        left = [name for name in OF_OTHER_BACKBONES if name in given]
        left += [name for name in ('embed_dims', 'depth', 'num_heads') if name in given and 'arch' in given]
        if left:
            return (
                f'{", ".join(left)}: left of the base config. Begin your backbone with backbone=dict(_delete_=True, '
                f'...); arch alone says how wide and deep it is'
            )
        for name in given.keys() & NAMED_ELSEWHERE.keys():
            return f'{name} {NAMED_ELSEWHERE[name]}'
        sizes = {'embed_dims': given.get('embed_dim')} if 'embed_dim' in given else {}
        sizes.update((name, given[name]) for name in ('embed_dims', 'depth', 'num_heads', 'mlp_ratio') if name in given)
        if sizes:
            named = next((name for name, arch in ARCHS.items() if sizes == {k: arch.get(k, 4.0) for k in sizes}), None)
            whole = named and len({'embed_dims', 'depth', 'num_heads'} & set(sizes)) == 3
            shown = repr(named) if whole else f'dict({", ".join(f"{k}={v!r}" for k, v in sizes.items())}, ...)'
            return (
                f'the arch is one argument here, with {", ".join(sizes)} in it. Write arch={shown}; it takes a name '
                f'({", ".join(ARCHS)}) or dict(embed_dims=..., depth=..., num_heads=...)'
            )
        fixed = dict(cls_attn_layers=2, qkv_bias=True, use_pos_embed=True, final_norm=True)
        for name in fixed.keys() & given.keys():
            return f'{name} is always {fixed[name]!r} here, as published; leave {name}={given[name]!r} out'
        return None

    def __init__(
        self,
        arch: Union[str, dict] = 's12',
        patch_size: int = 16,
        out_type: str = 'cls_token',
        out_indices: Union[Sequence[int], int, None] = None,
        out_strides: Sequence[int] = MultiScaleAdapter.STRIDES,
        in_channels: int = 3,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: Optional[float] = None,
        tokens_norm: Optional[bool] = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        bn_norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='GELU'),
        init_cfg: Union[dict, Sequence[dict], None] = None,
    ):
        super().__init__(init_cfg=init_cfg)
        self._register_state_dict_hook(_state_patch_size)
        self._is_starting = False  # from the file that init_cfg names
        settings = _arch_settings(arch)
        self.embed_dims = C = settings['embed_dims']
        self.depth = depth = settings['depth']
        mlp_ratio = settings.get('mlp_ratio', 4.0)
        if layer_scale_init_value is None:
            layer_scale_init_value = settings.get('layer_scale_init_value', 1.0 if depth <= 12 else 1e-5)
        if tokens_norm is None:
            tokens_norm = settings.get('tokens_norm', True)
        if patch_size not in (4, 8, 16):
            raise ValueError(f'XCiT: patch_size must be 4, 8 or 16, got {patch_size!r}')
        if out_type not in self.OUT_TYPES:
            raise ValueError(f'XCiT: out_type must be one of {", ".join(self.OUT_TYPES)}; got {out_type!r}')
        for name, rate in dict(
            drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate
        ).items():
            if not 0 <= rate < 1:
                raise ValueError(f'XCiT: {name} must be at least 0 and below 1, got {rate!r}')
        self.patch_size = patch_size
        self.out_type = out_type
        out_strides = check_strides(out_strides)
        if out_type != 'pyramid' and out_strides != MultiScaleAdapter.STRIDES:
            raise ValueError(f"XCiT: out_strides are those of out_type='pyramid', got {out_strides} for {out_type!r}")
        self.out_indices = _out_indices(out_indices, out_type, depth, self.num_class_attention_blocks, out_strides)
        if out_type == 'pyramid' and self.out_indices[-1] < depth - 1:
            warnings.warn(
                f'XCiT: out_indices={self.out_indices} are blocks, not stages, and those after block '
                f'{self.out_indices[-1]} of 0 to {depth - 1} are never run; without out_indices the published ones are',
                stacklevel=2,
            )
        self.with_class_token = out_type not in ('featmap', 'pyramid') or self.out_indices[-1] >= depth
        self.num_layers = depth + self.num_class_attention_blocks * self.with_class_token
        if not -1 <= frozen_stages <= self.num_layers:
            raise ValueError(f'XCiT: frozen_stages must be -1 (none) to {self.num_layers}, got {frozen_stages!r}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        norms = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        rates = dict(drop=drop_rate, attn_drop=attn_drop_rate)
        self.patch_embed = PatchEmbed(in_channels, C, patch_size, bn_norm_cfg, act_cfg)
        self.pos_embed = PositionEncoding(C)
        self.pos_drop = nn.Dropout(drop_rate)
        block = partial(
            XCABlock, C, settings['num_heads'], mlp_ratio, layer_scale_init_value, drop_path=drop_path_rate, **rates
        )
        self.blocks = nn.ModuleList(block(bn_norm_cfg=bn_norm_cfg, **norms) for _ in range(depth))
        if self.with_class_token:
            block = partial(
                ClassAttentionBlock, C, settings['num_heads'], mlp_ratio, layer_scale_init_value, tokens_norm, **rates
            )
            self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
            self.cls_attn_blocks = nn.ModuleList(block(**norms) for _ in range(self.num_class_attention_blocks))
            self.norm = build_norm_layer(norm_cfg, C)[1]
        if out_type == 'pyramid':
            self.out_strides = out_strides
            self.pyramid = MultiScaleAdapter(C, patch_size, bn_norm_cfg, act_cfg, out_strides)

        self._reset_parameters()
        for part in self._unused_parts():
            part.requires_grad_(False)
        self._freeze_stages()

    def _reset_parameters(self):
        """The published start values; convolutions keep PyTorch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.with_class_token:
            trunc_normal_(self.cls_token, std=0.02)

    def init_weights(self):
        """Apply ``init_cfg``; without one the published start values, set at construction, stay."""
        self._is_starting = True
        try:
            super().init_weights()
        except CheckpointError as error:
            configs = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
            raise error.naming(next((c['checkpoint'] for c in configs if 'checkpoint' in c), None)) from None
        finally:
            self._is_starting = False

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        fit_stem(self, state_dict, prefix, local_metadata, self._is_starting)
        match_state_dict(self, state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """Image (B, 3, H, W) of any size from one patch up -> a tuple, see ``out_type``.

        Raises:
            ValueError: If the image is smaller than a patch.
        """
        check_size(image.shape, self.patch_size)
        x, grid = self.patch_embed(image)
        position = self.pos_embed(*grid).to(x.dtype)
        inplace = ops.may_overwrite(x, self.patch_embed)
        x = self.pos_drop(x.add_(position) if inplace else x + position)
        dtype = torch.promote_types(x.dtype, self.blocks[0].gamma2.dtype)
        outs, last = [], self.out_indices[-1]
        for i, block in enumerate(self.blocks):
            if i > last:
                return tuple(outs)
            x = self._run(block, x, grid, self._may_overwrite(x, i))
            for _ in range(self.out_indices.count(i)):
                outs.append(self._format(None, x.to(dtype), grid, len(outs)))
        x = x.to(dtype)
        if last >= self.depth:
            cls_token = self.cls_token.repeat(x.shape[0], 1, 1)
            for i, block in enumerate(self.cls_attn_blocks, start=self.depth):
                if i > last:
                    break
                cls_token, x = self._run(block, cls_token, x)
                if i == self.num_layers - 1:
                    cls_token, x = self.norm(cls_token), self.norm(x)
                for _ in range(self.out_indices.count(i)):
                    outs.append(self._format(cls_token, x, grid, len(outs)))
        return tuple(outs)

    def _may_overwrite(self, x: Tensor, index: int) -> bool:
        """True if only block ``index`` reads its input."""
        before = self.blocks[index - 1] if index else self.pos_drop
        return index - 1 not in self.out_indices and ops.may_overwrite(x, before, self.blocks[index])

    def _run(self, block: nn.Module, *args):
        if self.with_cp and self.training and torch.is_grad_enabled():
            # A compiler recomputes operators but moves the statistics once; it takes no contexts such as these.
            contexts = {} if is_compiling() else dict(context_fn=partial(_recomputing, block))
            return activation_checkpoint(block, *args, use_reentrant=False, **contexts)
        return block(*args)

    def _format(self, cls_token: Optional[Tensor], tokens: Tensor, grid: Tuple[int, int], index: int) -> Tensor:
        """The tokens after a block -> output number ``index``."""
        if self.out_type == 'raw':
            return tokens if cls_token is None else torch.cat((cls_token, tokens), dim=1)
        if self.out_type == 'cls_token':
            return cls_token.squeeze(1)
        if self.out_type == 'avg_featmap':
            return tokens.mean(dim=1)
        channels_last = tokens.transpose(1, 2).view(tokens.shape[0], tokens.shape[2], *grid)
        if self.out_type == 'pyramid':
            return self.pyramid.level(index, channels_last)
        # mmcv's operators (RoIAlign, deformable convolution, ...) read memory as if it were contiguous, without a word.
        return channels_last.contiguous()

    def _unused_parts(self):
        """What no output depends on; no gradient would reach it, and data-parallel training waits for all gradients."""
        last = self.out_indices[-1]
        yield from self.blocks[last + 1 :]
        if not self.with_class_token:
            return
        if last < self.num_layers - 1:
            yield from (*self.cls_attn_blocks[max(last + 1 - self.depth, 0) :], self.norm)
        if last < self.depth or self.out_type in ('featmap', 'avg_featmap'):
            yield self.cls_token
            for block in self.cls_attn_blocks:
                yield from (block.attn, block.mlp, block.gamma2)
                if not block.tokens_norm:
                    yield block.norm2

    def _stages(self):
        """The parts in the order of the data; ``frozen_stages=k`` freezes the first k + 1."""
        stem = nn.ModuleList([self.patch_embed, self.pos_embed, self.pos_drop])
        return [stem, *self.blocks, *(self.cls_attn_blocks if self.with_class_token else ())]

    def _freeze_stages(self):
        for stage in self._stages()[: self.frozen_stages + 1]:
            stage.eval()
            stage.requires_grad_(False)

    def train(self, mode: bool = True):
        """Frozen stages, and with ``norm_eval`` all batch norms, stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Depth of a parameter, for layer-wise learning-rate decay.

        Args:
            param_name (str): Full name of the parameter.
            prefix (str): What comes before this backbone's own names, such as 'backbone.'.

        Returns:
            tuple[int, int]: 0 for the embeddings and the class token, i + 1 for block i, the last for all that
            follows; and the number of depths.
        """
        num_depths = self.num_layers + 2
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        name, *rest = param_name[len(prefix) :].split('.')
        if name in ('patch_embed', 'pos_embed', 'cls_token'):
            return 0, num_depths
        if name in ('blocks', 'cls_attn_blocks'):
            return int(rest[0]) + 1 + (self.depth if name == 'cls_attn_blocks' else 0), num_depths
        return num_depths - 1, num_depths


@torch.fx.wrap
def check_size(shape: torch.Size, patch_size: int) -> None:
    """Refuse images (..., H, W) that are smaller than a patch."""
    height, width = shape[-2:]
    if height < patch_size or width < patch_size:
        raise ValueError(
            f'XCiT: the image is {height}x{width} pixels (height x width), smaller than one patch of '
            f'{patch_size}x{patch_size}; resize or pad it'
        )


def _state_patch_size(backbone: XCiT, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    """Tell a file the patch size, since the tensors of patches of 4 and of 16 have the same names and shapes."""
    local_metadata['patch_size'] = backbone.patch_size


def _arch_settings(arch: Union[str, dict]) -> dict:
    """The numbers behind an arch name, or a checked custom arch."""
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f'XCiT: unknown arch {arch!r}; choose one of {", ".join(ARCHS)}, '
                f"or give a dict with 'embed_dims', 'depth' and 'num_heads'"
            )
        return ARCHS[arch]
    if not isinstance(arch, dict):
        raise ValueError(f'XCiT: arch must be a name ({", ".join(ARCHS)}) or a dict, got {type(arch).__name__}')
    required = {'embed_dims', 'depth', 'num_heads'}
    optional = {'mlp_ratio', 'tokens_norm', 'layer_scale_init_value'}
    missing, unknown = sorted(required - set(arch)), sorted(set(arch) - required - optional)
    if missing or unknown:
        raise ValueError(
            f'XCiT: a custom arch needs {", ".join(sorted(required))} and may have {", ".join(sorted(optional))}; '
            f'missing: {", ".join(missing) or "none"}; unknown: {", ".join(unknown) or "none"}'
        )
    dims, heads = arch['embed_dims'], arch['num_heads']
    if heads < 1 or dims % heads:
        raise ValueError(f'XCiT: num_heads must divide embed_dims, got num_heads={heads} and embed_dims={dims}')
    if dims % 8 or arch['depth'] < 1:
        raise ValueError(
            f'XCiT: embed_dims must be a multiple of 8 and depth at least 1, '
            f'got embed_dims={dims} and depth={arch["depth"]}'
        )
    return arch


def _out_indices(
    indices, out_type: str, depth: int, num_class_attention_blocks: int, out_strides: Tuple[int, ...]
) -> Tuple[int, ...]:
    """Checked, non-negative block indices in the order of the data."""
    if indices is None:
        # Published: (3, 5, 7, 11) of 12 blocks and (7, 11, 15, 23) of 24.
        sixths = dict(zip(MultiScaleAdapter.STRIDES, (2, 3, 4, 6)))
        pyramid = tuple(max(depth * sixths[stride] // 6 - 1, 0) for stride in out_strides)
        indices = pyramid if out_type == 'pyramid' else (-1,)
    given = (indices,) if isinstance(indices, int) else tuple(indices)
    num_layers = depth if out_type == 'pyramid' else depth + num_class_attention_blocks
    counted_from = depth if out_type in ('pyramid', 'featmap') else num_layers
    if not given or any(not isinstance(i, int) or not -counted_from <= i < num_layers for i in given):
        raise ValueError(
            f'XCiT: out_indices must be block indices from {-counted_from} to {num_layers - 1} for '
            f'out_type={out_type!r} at depth {depth}, got {given}'
        )
    resolved = tuple(i + counted_from if i < 0 else i for i in given)
    if any(a > b for a, b in zip(resolved, resolved[1:])):
        raise ValueError(f'XCiT: out_indices must not descend, got {given}')
    if out_type == 'pyramid' and len(resolved) != len(out_strides):
        raise ValueError(
            f"XCiT: out_type='pyramid' needs one out_index for each of out_strides={out_strides}, got {given}"
        )
    if out_type == 'cls_token' and resolved[0] < depth:
        raise ValueError(
            f"XCiT: there is no class token before block {depth}; out_type='cls_token' takes the indices "
            f'{depth} to {num_layers - 1} (or -2, -1), got {given}'
        )
    return resolved


def _recomputing(block: nn.Module):
    """Contexts of the first and of the repeated forward pass: only the first may move the running statistics."""

    mode = ops.current_mode()

    @contextmanager
    def repeated():
        norms = [m for m in block.modules() if isinstance(m, BatchNorm) and m.training and m.track_running_stats]
        state = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            with ops.use(mode):
                yield
        finally:
            for norm, momentum, count in state:
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(count)

    return nullcontext(), repeated()
