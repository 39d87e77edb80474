"""The paper's ablations (table 4): XCiT with one of its parts taken out or made simpler."""

from typing import Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from .. import ops
from ..registry import MODELS
from .attention import XCA
from .xcit import XCABlock, XCiT


@MODELS.register_module()
class AblatedXCiT(XCiT):
    """XCiT without some of its parts; everything else, start values included, is as in :class:`XCiT`.

    Args:
        *args, **kwargs: As for :class:`XCiT`.
        patch_projection (str): 'convolutional', or 'linear': one p x p convolution of stride p.
        lpi (bool): Local patch interaction, with its norm and LayerScale.
        xca (bool): Cross-covariance attention, with its norm and LayerScale.
        l2_norm (bool): The l2 normalisation of queries and keys. Without it the paper's training failed.
        learned_temperature (bool): False: the temperature of XCA is 1.

    Raises:
        ValueError: If an argument has a value that is not possible, or acts on XCA while there is none.
    """

    def __init__(
        self,
        *args,
        patch_projection: str = 'convolutional',
        lpi: bool = True,
        xca: bool = True,
        l2_norm: bool = True,
        learned_temperature: bool = True,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if patch_projection not in ('convolutional', 'linear'):
            raise ValueError(
                f"AblatedXCiT: patch_projection must be 'convolutional' or 'linear', got {patch_projection!r}"
            )
        if not xca and not (l2_norm and learned_temperature):
            raise ValueError('AblatedXCiT: with xca=False there is no l2_norm and no learned_temperature to take out')
        if patch_projection == 'linear':
            in_channels = self.patch_embed.proj[0][0].in_channels
            self.patch_embed = LinearPatchEmbed(in_channels, self.embed_dims, self.patch_size)
        for i, block in enumerate(self.blocks):
            if not l2_norm:
                block.attn = XCAWithoutNorm(block.attn)
            if not learned_temperature:
                ones = torch.ones_like(block.attn.temperature)
                del block.attn.temperature
                block.attn.register_buffer('temperature', ones, persistent=False)
            if not (lpi and xca):
                self.blocks[i] = AblatedBlock(block, lpi, xca)
        self._freeze_stages()

    def _load_from_state_dict(self, *args):
        """By names alone: no published file has these parts, and the layouts are told by the parts that may lack."""
        BaseModule._load_from_state_dict(self, *args)


class LinearPatchEmbed(nn.Module):
    """Linear patch projection, as in ViT. Images are padded with zeros, right and below, to whole patches.

    Args:
        in_channels (int): Channels of the image.
        embed_dims (int): Channels C of the tokens.
        patch_size (int): p.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        """(B, 3, H, W) -> tokens (B, N, C) and their grid (ceil(H / p), ceil(W / p))."""
        height, width = image.shape[-2:]
        x = self.proj(F.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size)))
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class XCAWithoutNorm(XCA):
    """XCA on queries and keys as they are: softmax(temperature * q k^T).

    Args:
        attn (XCA): Whose layers it takes over.
    """

    def __init__(self, attn: XCA):
        nn.Module.__init__(self)
        self.num_heads = attn.num_heads
        self.temperature, self.qkv, self.proj = attn.temperature, attn.qkv, attn.proj
        self.attn_drop, self.proj_drop = attn.attn_drop, attn.proj_drop

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 4, 1)
        attn = self.attn_drop((q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1))
        return self.proj_drop(self.proj((attn @ v).permute(0, 3, 1, 2).reshape(B, N, C)))


class AblatedBlock(XCABlock):
    """A block without its LPI, its XCA, or both.

    Args:
        block (XCABlock): Whose layers it takes over.
        lpi, xca (bool): Which of the two it keeps.
    """

    def __init__(self, block: XCABlock, lpi: bool, xca: bool):
        nn.Module.__init__(self)
        self.drop_path = block.drop_path
        self.with_lpi, self.with_xca = lpi, xca
        if xca:
            self.norm1, self.attn, self.gamma1 = block.norm1, block.attn, block.gamma1
        if lpi:
            self.norm3, self.lpi, self.gamma3 = block.norm3, block.lpi, block.gamma3
        self.norm2, self.mlp, self.gamma2 = block.norm2, block.mlp, block.gamma2

    def forward(self, x: Tensor, grid: Tuple[int, int], inplace: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C); grid is (rows, columns). ``inplace``: x may be changed."""
        if self.with_xca:
            x, inplace = ops.add_xca(x, self.norm1, self.attn, self.gamma1, self._keep(x), inplace), True
        if self.with_lpi:
            x, inplace = ops.add_lpi(x, self.norm3, self.lpi, self.gamma3, grid, self._keep(x), inplace), True
        return ops.add_mlp(x, self.norm2, self.mlp, self.gamma2, self._keep(x), inplace)
