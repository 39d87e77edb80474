"""Build a backbone by its name, as timm does."""

import re
from dataclasses import asdict
from typing import Optional, Tuple, Union

from ..checkpoint import CheckpointError  # noqa: F401  (also registers the loaders of checkpoints)
from ..checkpoint.sources import HUB
from ..package import list_models
from ..published import Weights, find_weights
from .quiet import quiet

_OUR_NAME = re.compile(r'xcit_([ntsml](?:12|24))_(4|8|16)(?:_|$)')
_RELEASE_NAME = re.compile(r'xcit[_-](nano|tiny|small|medium|large)[_-](12|24)[_-]p(4|8|16)(?:_|$)')


def create_backbone(name: str, checkpoint: Union[str, bool, None] = None, **kwargs):
    """Build the XCiT backbone of that name, in eval mode.

    ``create_backbone('xcit_small_12_p8_224.fb_dist_in1k', True)(images)``

    Args:
        name (str): Arch and patch size, such as 'xcit_s12_8'; a name of :func:`xcit_mm.list_models`, which has those of
            timm, MMPretrain, DINO and RobustBench too; one of the original release, such as 'xcit_small_12_p8_224';
            or with True as checkpoint a repository of the Hugging Face hub, 'hf-hub:OWNER/NAME', of any arch.
        checkpoint (str | bool, optional): A file or an address in any layout that was published (of a classifier,
            detector, segmentor or of self-supervised training): ``https://…``, ``hf-hub:OWNER/NAME@REVISION:FILE`` or
            ``xcit_mm://NAME``. True for the published weights of that name; None for initial weights.
        **kwargs: Further arguments of :class:`xcit_mm.models.XCiT`, such as ``out_type``, by default 'cls_token', and
            'pyramid' for the names of detectors and segmentors; ``out_indices``; ``frozen_stages``; ``in_channels``.

    Returns:
        xcit_mm.models.XCiT: Called with normalised RGB images (B, 3, H, W), it returns a tuple of features.

    Raises:
        ValueError: If there is no such name, or no published weights under it.
        CheckpointError: If the checkpoint cannot be fetched or does not fit.
    """
    from ..models import XCiT

    weights = find_weights(name)
    if weights:
        arch: Union[str, dict] = weights.arch
        patch_size = weights.patch_size
    elif checkpoint is True and name.startswith(HUB):
        arch, patch_size = _told_by_tensors(name, kwargs)
    else:
        arch, patch_size = _parse(name)
    if checkpoint is True:
        checkpoint = _published(name, weights)
    # Detectors and segmentors have no class token.
    is_dense = weights.holds in ('detector', 'segmentor') if weights else name.startswith(('mask_', 'sem_', 'uper'))
    kwargs.setdefault('out_type', 'pyramid' if is_dense else 'cls_token')
    if checkpoint:
        kwargs['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
    backbone = XCiT(arch=arch, patch_size=patch_size, **kwargs)
    if kwargs.get('init_cfg'):
        with quiet():
            backbone.init_weights()
    return backbone.eval()


def _told_by_tensors(address: str, kwargs: dict) -> Tuple[dict, int]:
    """Infer arch and patch size from the tensors of a file."""
    from ..conversion.arch import read_arch

    arch = asdict(read_arch(address))
    kwargs.setdefault('in_channels', arch.pop('in_channels'))
    return arch, arch.pop('patch_size')


def _parse(name: str) -> Tuple[str, int]:
    """Arch and patch size of a name that has no published weights."""
    from ..models.xcit import ARCHS

    ours, release = _OUR_NAME.search(name), _RELEASE_NAME.search(name)
    arch, patch = (ours[1], ours[2]) if ours else (release[1][0] + release[2], release[3]) if release else (None, 0)
    if arch not in ARCHS:
        raise ValueError(
            f'there is no XCiT backbone {name!r}; names are xcit_ARCH_PATCH, with ARCH one of {", ".join(ARCHS)} and '
            f"PATCH 4, 8 or 16, such as 'xcit_s12_8', and those of xcit_mm.list_models()"
        )
    return arch, int(patch)


def _published(name: str, weights: Optional[Weights]) -> str:
    """The address of a name's weights."""
    if name.startswith(HUB):
        return name
    if weights is None:
        arch, patch_size = _parse(name)
        names = list_models(f'xcit_{arch}_{patch_size}_*in1k')
        raise ValueError(
            f'there are no published weights under the name {name!r}; name '
            + (f'one of {", ".join(names)}, or ' if names else '')
            + 'the file or address of a checkpoint'
        )
    if weights.holds == 'linear head':
        backbone = name[: -len('_linear')]
        raise ValueError(f'{name!r} are the weights of a linear head alone; those of its backbone are {backbone!r}')
    return weights.address
