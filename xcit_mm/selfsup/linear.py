"""Linear evaluation of frozen features (DINO, section 4.1 and appendix F.2)."""

import torch
from mmpretrain.models import ImageClassifier
from torch import Tensor

from ..registry import MODELS

# Linear classifiers of the original release, which hold nothing else.
_PUBLISHED = ('linear.', 'module.linear.')


@MODELS.register_module()
class LinearProbe(ImageClassifier):
    """A linear classifier on the features of a frozen XCiT.

    The features are the class tokens after the last blocks, each normalised by the backbone's last norm, and
    optionally the mean of the patch tokens. Only the head learns; the backbone is in eval mode and gets no gradients.
    The backbone's weights come from its ``init_cfg``, so a checkpoint of the head alone is enough to test.

    Args:
        backbone (dict): Config of an XCiT; its ``out_type`` and ``out_indices`` are set here.
        num_last_blocks (int): Number of class tokens to concatenate, 1 or 2.
        average_patches (bool): Concatenate the mean of the patch tokens too.
        **kwargs: As for :class:`mmpretrain.models.ImageClassifier`. ``head.in_channels`` must be (num_last_blocks +
            average_patches) times the channels of the backbone.

    Raises:
        ValueError: If ``num_last_blocks`` is not 1 or 2, or ``head.in_channels`` is another number.
    """

    def __init__(self, backbone: dict, num_last_blocks: int = 1, average_patches: bool = False, **kwargs):
        if num_last_blocks not in (1, 2):
            raise ValueError(
                f'LinearProbe: XCiT has class tokens after 2 blocks, got num_last_blocks={num_last_blocks}'
            )
        indices = tuple(range(-num_last_blocks, 0))
        super().__init__(backbone=dict(backbone, out_type='raw', out_indices=indices), **kwargs)
        self.average_patches = average_patches
        wanted = (num_last_blocks + average_patches) * self.backbone.embed_dims
        given = kwargs['head']['in_channels'] if isinstance(kwargs.get('head'), dict) else wanted
        if given != wanted:
            raise ValueError(
                f'LinearProbe: head.in_channels must be {wanted} ({num_last_blocks} class tokens'
                f'{" and the mean of the patches" if average_patches else ""}, of {self.backbone.embed_dims} channels '
                f'each), got {given}'
            )
        self.backbone.requires_grad_(False)
        if not self.backbone.cls_token.is_meta:  # as in the check of a config
            self.backbone.init_weights()

    def train(self, mode: bool = True):
        """The backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def extract_feat(self, inputs: Tensor, stage: str = 'neck') -> tuple:
        """Images (B, 3, H, W) -> one feature (B, in_channels), in a tuple."""
        *earlier, last = self.backbone(inputs)
        features = [self.backbone.norm(tokens[:, 0]) for tokens in earlier] + [last[:, 0]]
        if self.average_patches:
            features.append(last[:, 1:].mean(dim=1))
        return (torch.cat(features, dim=1),)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Accept a file of the head alone, ours or of the original release, and keep the backbone."""
        for name in [name for name in state_dict if name.startswith(_PUBLISHED)]:
            state_dict[f'{prefix}head.fc.{name.rpartition(".")[2]}'] = state_dict.pop(name)
        if any(name.startswith(f'{prefix}head.') for name in state_dict) and not any(
            name.startswith(f'{prefix}backbone.') for name in state_dict
        ):
            own = self.backbone.state_dict()
            state_dict.update({f'{prefix}backbone.{name}': value for name, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)
