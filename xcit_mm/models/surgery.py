"""A patch embedding taken from another checkpoint and left as it is (``--surgery`` of the original release)."""

from mmengine.runner import CheckpointLoader
from torch import nn

from ..checkpoint import CheckpointError
from ..registry import MODELS
from .xcit import XCiT


@MODELS.register_module()
class SurgeryXCiT(XCiT):
    """XCiT whose patch embedding comes from a trained model and does not learn; batch norms in it stay in eval mode.

    The release offers it because it can stabilise the training of very large models. The file is read when training
    begins, and replaces what ``init_cfg``, ``load_from`` or a resumed checkpoint hold for the patch embedding.

    Args:
        patch_checkpoint (str): File or address of a model with the same width and patch size.
        **kwargs: As for :class:`XCiT`.

    Raises:
        CheckpointError: When training begins, if the file has no patch embedding of this form.
    """

    def __init__(self, patch_checkpoint: str, **kwargs):
        super().__init__(**kwargs)
        self.patch_checkpoint, self.patch = patch_checkpoint, None
        self.patch_embed.requires_grad_(False)

    def init_weights(self):
        """The runner calls this when it trains, not when it tests."""
        super().init_weights()
        checkpoint = CheckpointLoader.load_checkpoint(self.patch_checkpoint, map_location='cpu')
        state = next((checkpoint[key] for key in ('state_dict', 'model') if key in checkpoint), checkpoint)
        part = 'patch_embed.'
        self.patch = {name.rpartition(part)[2]: value for name, value in state.items() if part in name}
        try:
            self.patch_embed.load_state_dict(self.patch)
        except RuntimeError as error:
            raise CheckpointError(
                f'the patch embedding of {self.patch_checkpoint} (patch_checkpoint) is not that of this model: {error}'
            ) from None

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        # The children follow, and take what is written here.
        state_dict.update({f'{prefix}patch_embed.{name}': value for name, value in (self.patch or {}).items()})

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.patch_embed.eval()
        return self
