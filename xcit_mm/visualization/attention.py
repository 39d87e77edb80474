"""The two attentions of a trained XCiT as tensors.

Both are computed from the inputs of the layers during a normal forward pass, so they cost little and work at any image
size: class attention has one query, and XCA's matrix is channels by channels.
"""

from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Callable, List, Optional, cast

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..checkpoint import CheckpointError, find_layout, read_checkpoint
from ..conversion.arch import Arch, infer_arch
from ..conversion.hub_folder import describe_images, find_published
from ..datasets.reading import ModelInput, channels_of, config_in_checkpoint, model_input
from ..errors import UsageError
from ..models import XCiT
from ..models.xcit import XCABlock

TOKENS_AT_A_TIME = 8192


def load_backbone(checkpoint: str, device: str = 'cpu') -> XCiT:
    """Load the classification or self-supervised backbone of a checkpoint; the arch is inferred from its tensors.

    Args:
        checkpoint (str): File or address in any layout; of a DINO run, the teacher is taken.
        device (str): Where the backbone goes.

    Returns:
        XCiT: In eval mode, with ``out_type='cls_token'``.

    Raises:
        CheckpointError: If it cannot be read, holds no XCiT, or one without a class token.
    """
    loaded = _load(checkpoint)
    layout, tensors = find_layout(loaded)
    if layout is None:
        raise CheckpointError(f'{checkpoint} holds no XCiT; expected a classifier or a self-supervised backbone')
    prefix = 'backbone.'
    state = {k[len(prefix) :]: v for k, v in layout.to_native(tensors).items() if k.startswith(prefix)}
    if 'cls_token' not in state:
        raise CheckpointError(
            f'{checkpoint} holds an XCiT without a class token, as detectors and segmentors have; attention maps need '
            f'the checkpoint of a classifier or of self-supervised training'
        )
    try:
        arch = asdict(infer_arch(state, loaded.get('state_dict', loaded)._metadata.source['patch_size']))
    except CheckpointError as error:
        raise error.naming(checkpoint) from None
    patch_size, in_channels = arch.pop('patch_size'), arch.pop('in_channels')
    backbone = XCiT(arch=arch, patch_size=patch_size, in_channels=in_channels, out_type='cls_token')
    backbone.load_state_dict({key: value for key, value in state.items() if not key.startswith('pyramid.')})
    return backbone.eval().to(device)


def _load(checkpoint: str) -> dict:
    try:
        return read_checkpoint(checkpoint)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from None


def load_input(checkpoint: str, backbone: XCiT, cfg: Optional[Config] = None) -> ModelInput:
    """How the images of a backbone are read and normalised.

    Args:
        checkpoint (str): As for :func:`load_backbone`. A checkpoint of a training run holds its config.
        backbone (XCiT): The backbone of that checkpoint.
        cfg (Config, optional): Config of the model, instead of the one in the checkpoint. Without either, images are
            read in colour and normalised as published for these weights, else as for ImageNet.

    Raises:
        UsageError: If there is no config and the backbone does not take 3 channels, or the loading step of the config
            is unknown.
    """
    loaded = _load(checkpoint)
    cfg = cfg or config_in_checkpoint(loaded)
    channels = channels_of(backbone) or 3
    if cfg is None:
        path = loaded.get('state_dict', loaded)._metadata.source['path']
        first: Any = backbone.blocks[0]
        heads = first.attn.num_heads
        arch = Arch(backbone.embed_dims, backbone.depth, heads, 4.0, True, backbone.patch_size, channels)
        published = find_published(checkpoint, path, arch, num_classes=0)
        if published:  # robust models have another normalisation, or none
            images = describe_images({}, published, channels)
            mean, std = (tuple(255 * value for value in values) for values in (images.mean, images.std))
            return model_input()._replace(mean=mean, std=std)
    if cfg is None and channels != 3:
        raise UsageError(
            f'the model of {checkpoint} takes images of {channels} channel{"s" * (channels > 1)}, expected 3, and the '
            f'checkpoint does not say how they are read and normalised; give its config (--config)'
        )
    return model_input(cfg)


@contextmanager
def _inputs_of(layers: List[nn.Module], read: Callable):
    """Collect ``read(layer, *inputs)`` for each call of the layers inside the context, in order."""
    found = []
    handles = [layer.register_forward_pre_hook(lambda m, args: found.append(read(m, *args))) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def class_attention(backbone: XCiT, images: Tensor, block: int = -1) -> Tensor:
    """What the class token attends to (figure 5 of the paper).

    Args:
        backbone (XCiT): With class attention, in eval mode.
        images (Tensor): (B, 3, H, W) of any size, normalised.
        block (int): Which of the class-attention blocks.

    Returns:
        Tensor: (B, heads, ceil(H / p), ceil(W / p)): the weights of the patches. The weights of a head sum to 1
        together with that of the class token on itself, which is left out.
    """
    rows, columns = (-(-side // backbone.patch_size) for side in images.shape[-2:])
    layer: Any = cast(Any, backbone.cls_attn_blocks[block]).attn
    with _inputs_of([layer], lambda attn, cls_token, tokens: attn.attention(cls_token, tokens)) as found:
        backbone(images)
    return found[0][..., 1:].float().unflatten(-1, (rows, columns))


@torch.no_grad()
def channel_attention(backbone: XCiT, images: Tensor) -> Tensor:
    """XCA's attention between channels (paper, section 3.2), of every block.

    Args:
        backbone (XCiT): In eval mode.
        images (Tensor): (B, 3, H, W) of any size, normalised.

    Returns:
        Tensor: (B, depth, heads, d, d) with d = C / heads; rows are queries and sum to 1.
    """
    with _inputs_of(list(backbone.blocks), lambda block, tokens, *_: _xca_matrix(block, tokens)) as found:
        backbone(images)
    return torch.stack(found, dim=1)


def _xca_matrix(block: XCABlock, x: Tensor) -> Tensor:
    """softmax(temperature * q k^T / (|q| |k|)) from the moments of the tokens: (B, N, C) -> (B, heads, d, d)."""
    attn: Any = block.attn
    C, heads = x.shape[2], attn.num_heads
    moments = x.new_zeros((), dtype=torch.float64)
    for part in x.split(TOKENS_AT_A_TIME, dim=1):
        tokens = nn.functional.pad(block.norm1(part).double(), (0, 1), value=1.0)  # a channel of ones for the bias
        moments = moments + tokens.transpose(1, 2) @ tokens
    weight = torch.cat((attn.qkv.weight, attn.qkv.bias[:, None]), dim=1)[: 2 * C].double()
    q, k = weight.view(2, 1, heads, C // heads, C + 1)
    moments = moments[:, None]
    norm_q, norm_k = ((w @ moments * w).sum(-1).clamp_min(1e-24).sqrt() for w in (q, k))
    cosine = q @ moments @ k.transpose(-2, -1) / (norm_q[..., :, None] * norm_k[..., None, :])
    return (cosine * attn.temperature.double()).softmax(dim=-1).float()


def keep_mass(attention: Tensor, mass: float = 0.6) -> Tensor:
    """The fewest patches that hold a share of the attention.

    Args:
        attention (Tensor): (..., rows, columns), not negative.
        mass (float): Share to keep, above 0 and at most 1.

    Returns:
        Tensor: Bool, of the same shape.

    Raises:
        ValueError: If ``mass`` is out of its range.
    """
    if not 0 < mass <= 1:
        raise ValueError(f'the share of attention to keep must be above 0 and at most 1, got {mass}')
    weights, order = attention.flatten(-2).double().sort(dim=-1, descending=True)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    before = weights.cumsum(dim=-1) - weights  # mass of the larger ones
    kept = torch.zeros_like(weights, dtype=torch.bool).scatter(-1, order, before < mass - 1e-9)
    return kept.view_as(attention)
