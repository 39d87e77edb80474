"""Models whose weights are divided between processes."""

from torch import nn


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Policy of PyTorch's FSDP: the weights of one block of XCiT are gathered together.

    XCA and the other parts of a block use weights of their layers without calling these, so smaller units do not work.

    Args:
        module (nn.Module): A part of the model.
        recurse (bool): Whether FSDP asks about the parts of the module or about the module.
        nonwrapped_numel (int): Parameters of the module that no smaller unit has.
    """
    from ..models.xcit import ClassAttentionBlock, XCABlock

    return recurse or isinstance(module, (XCABlock, ClassAttentionBlock))
