"""A backbone by its name, as timm's users know it."""

import re
from typing import Tuple, Union

from ..checkpoint import CheckpointError  # noqa: F401  (also registers the loaders of checkpoints)
from ..package import list_models, model_index
from .quiet import quiet

_OUR_NAME = re.compile(r'xcit_([ntsml](?:12|24))_(8|16)(?:_|$)')
_RELEASE_NAME = re.compile(r'xcit_(nano|tiny|small|medium|large)_(12|24)_p(8|16)(?:_|$)')


def create_backbone(name: str, checkpoint: Union[str, bool, None] = None, **kwargs):
    """Build the XCiT backbone of that name, in eval mode.

    ``create_backbone('xcit_s12_8', 'https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p8_224.pth')(images)``

    Args:
        name (str): Arch and patch size, such as 'xcit_s12_8'; a model of :func:`xcit_mm.list_models`; or a name of
            the original release and of timm, such as 'xcit_small_12_p8_224'.
        checkpoint (str | bool, optional): A file or an address in any layout that was published (of a classifier,
            detector, segmentor or of self-supervised training); True for the published weights of a model of
            :func:`xcit_mm.list_models`; None for start values.
        **kwargs: Further arguments of :class:`xcit_mm.models.XCiT`, such as ``out_type``, by default 'cls_token', and
            'pyramid' for the names of detectors and segmentors; ``out_indices``; ``frozen_stages``.

    Returns:
        xcit_mm.models.XCiT: Called with normalised RGB images (B, 3, H, W), it returns a tuple of features.

    Raises:
        ValueError: If there is no such name, or no published weights under it.
        CheckpointError: If the checkpoint does not fit.
    """
    from ..models import XCiT

    arch, patch_size = _parse(name)
    # A dense model has no class token to take the features from.
    kwargs.setdefault('out_type', 'cls_token' if name.startswith('xcit_') else 'pyramid')
    if checkpoint is True:
        checkpoint = _published_weights(name)
    if checkpoint:
        kwargs['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
    backbone = XCiT(arch=arch, patch_size=patch_size, **kwargs)
    if kwargs.get('init_cfg'):
        with quiet():
            backbone.init_weights()
    return backbone.eval()


def _parse(name: str) -> Tuple[str, int]:
    from ..models.xcit import ARCHS

    ours, release = _OUR_NAME.search(name), _RELEASE_NAME.search(name)
    arch, patch = (ours[1], ours[2]) if ours else (release[1][0] + release[2], release[3]) if release else (None, 0)
    if arch not in ARCHS:
        raise ValueError(
            f'there is no XCiT backbone {name!r}; names are xcit_ARCH_PATCH, with ARCH one of {", ".join(ARCHS)} and '
            f"PATCH 8 or 16, such as 'xcit_s12_8', and those of xcit_mm.list_models()"
        )
    return arch, int(patch)


def _published_weights(name: str) -> str:
    entry = model_index().get(name)
    if entry is None:
        names = list_models('{}_*in1k'.format('xcit_{}_{}'.format(*_parse(name))))
        raise ValueError(
            f'there are no published weights under the name {name!r}; name one of {", ".join(names)}, or the file or '
            f'address of a checkpoint'
        )
    return entry['Weights']
