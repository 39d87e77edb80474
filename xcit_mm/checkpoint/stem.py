"""The patch embedding of a file and of a model: what the tensors do not say, and images of other channels than RGB."""

import logging
import os
import re
from typing import Dict, Optional

from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import CheckpointError

# In every layout, the first convolution.
_FIRST = re.compile(r'patch_embed\.proj\.0\.(?:0|conv)\.weight$')
# RobustBench's models for CIFAR are the only published ones with patches of 4.
_PATCHES_OF_4 = re.compile(r'debenedetti2022light[-_]xcit[-_]\w+[-_]cifar100?[-_]linf')


def stated_patch_size(metadata: dict, path: Optional[str]) -> Optional[int]:
    """The patch size that a file states: our backbone writes it into the metadata of its tensors; None: it does not."""
    entries = (entry for entry in dict.values(metadata) if isinstance(entry, dict)) if metadata else ()
    found = next((entry['patch_size'] for entry in entries if entry.get('patch_size') in (4, 8, 16)), None)
    return 4 if found is None and _PATCHES_OF_4.search(os.path.basename(path or '')) else found


def fit_stem(module: nn.Module, state_dict: Dict[str, Tensor], prefix: str, metadata: dict, starts: bool) -> None:
    """Make sure that a file's patch embedding is meant for the backbone's images, before its tensors are copied.

    The patch embeddings for patches of 4 and of 16 have the same tensors. What the file states of them has to be the
    model's patch size; a file that states nothing is taken for either, which is logged for patches of 4.

    A model with other channels than the three of RGB can start from a file for RGB. Its first convolution then gets the
    sum of the weights of red, green and blue for one channel, and for more these three repeated and scaled by 3 / n, so
    that the outputs have the size they had (as timm's ``adapt_input_conv``).

    Args:
        module (nn.Module): The backbone.
        state_dict (dict): Tensors by name in any layout; the first convolution may be replaced.
        prefix (str): The backbone's place in the model that is being loaded.
        metadata (dict): The entry of :class:`~xcit_mm.checkpoint.loading.SourceMetadata` if there is one.
        starts (bool): The backbone's ``init_cfg`` names the file. Otherwise its channels have to be the model's.

    Raises:
        CheckpointError: If the file is for another patch size or for other channels.
    """
    source = metadata.get('source', {})
    who = f'{source["path"]}: ' if source.get('path') else ''
    own = dict(module.named_parameters()).get('patch_embed.proj.0.0.weight')
    if own is None:  # replaced by whoever changes layers from outside
        return
    stated = source.get('patch_size')
    for key in [key for key in state_dict if key.startswith(prefix) and _FIRST.search(key)]:
        weight = state_dict[key]
        if (
            not isinstance(weight, Tensor)
            or weight.dim() != 4
            or weight.shape[:1] + weight.shape[2:] != own.shape[:1] + own.shape[2:]
        ):
            continue  # of another arch; all that differs is named together
        if {module.patch_size, stated} == {4, 16}:
            raise CheckpointError(
                f'{who}it was trained with patches of {stated}, and the model has patch_size={module.patch_size}. The '
                f'tensors are alike, but what they compute would be wrong, so nothing was loaded; set '
                f'patch_size={stated}'
            )
        if module.patch_size == 4 and stated is None and source:
            print_log(
                f'{who}taken for patch_size=4. Its tensors would be the same with patches of 16, whose first two '
                f'convolutions have stride 2 and not 1; from such a file training can start, as RobustBench did',
                'current',
                logging.WARNING,
            )
        theirs, ours = weight.shape[1], own.shape[1]
        if theirs == ours:
            continue
        if theirs != 3 or not weight.is_floating_point():
            raise CheckpointError(
                f'{who}it takes images of {theirs} channels, and the model has in_channels={ours}. Only weights for '
                f'RGB are adapted to other channels; set in_channels={theirs}. Nothing was loaded'
            )
        if not starts:
            raise CheckpointError(
                f'{who}it takes images of 3 channels, and the model has in_channels={ours}, so nothing was loaded. To '
                f'use it as it is, set in_channels=3. To start a training with {ours} channels from it, name it in '
                f"the backbone's init_cfg=dict(type='Pretrained', checkpoint=...), which adapts the first convolution"
            )
        state_dict[key] = _adapted(weight, ours)
        how = 'the sum of R, G and B' if ours == 1 else f'R, G, B repeated and scaled by 3/{ours}'
        print_log(
            f'{who}it takes images of 3 channels, and the model has in_channels={ours}: the weights of the first '
            f'convolution are {how}',
            'current',
            logging.WARNING,
        )


def _adapted(weight: Tensor, channels: int) -> Tensor:
    """(C, 3, k, k) -> (C, channels, k, k)."""
    wide = weight.float()
    if channels == 1:
        wide = wide.sum(dim=1, keepdim=True)
    else:
        wide = wide.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)
    return wide.to(weight.dtype)
