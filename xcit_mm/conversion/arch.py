"""The architecture of a backbone, inferred from its tensors."""

from dataclasses import asdict, dataclass
from typing import Any, Dict, Optional

from ..checkpoint import CheckpointError, find_layout, read_checkpoint
from ..checkpoint.layouts import StateDict, arch_numbers
from ..errors import printable
from ..models.xcit import ARCHS


@dataclass(frozen=True)
class Arch:
    """Arguments of :class:`~xcit_mm.models.XCiT` for a backbone that fits a file's tensors."""

    embed_dims: int
    depth: int
    num_heads: int
    mlp_ratio: float
    tokens_norm: bool
    patch_size: int
    in_channels: int

    def __str__(self) -> str:
        sizes = _sizes(asdict(self))
        name = next((name.upper() for name, arch in ARCHS.items() if _sizes(arch) == sizes), None)
        if name is None:
            name = f'(embed_dims={self.embed_dims}, depth={self.depth}, num_heads={self.num_heads})'
        return f'XCiT-{name}/{self.patch_size}'


def _sizes(arch: dict) -> tuple:
    return arch['embed_dims'], arch['depth'], arch['num_heads'], arch.get('mlp_ratio', 4.0)


def infer_arch(state: StateDict, patch_size: Optional[int] = None) -> Arch:
    """Infer the arch of a backbone from the shapes of its tensors.

    ``tokens_norm`` leaves no trace in them: it is that of the published arch with these sizes, else True.

    Args:
        state (dict): The backbone's tensors by our names, without prefix.
        patch_size (int, optional): What the file states beside its tensors, which are the same for 4 and 16.

    Raises:
        CheckpointError: If tensors that determine the arch are missing.
    """
    numbers = arch_numbers(state)
    hidden, conv = state.get('blocks.0.mlp.fc1.bias'), state.get('patch_embed.proj.0.0.weight')
    if len(numbers) < 4 or hidden is None or conv is None or conv.dim() != 4 or not all(numbers.values()):
        raise CheckpointError(
            'the arch cannot be inferred: tensors of the first block or of the patch embedding are missing or '
            'misshapen; expected a whole XCiT backbone'
        )
    parts: Dict[str, set] = {}
    for key in state:
        if key.count('.') >= 2 and key.startswith('blocks.'):
            _, number, part = key.split('.', 2)
            parts.setdefault(number, set()).add(part)
    every = set().union(*parts.values())
    missing = [f'blocks.{number}.{part}' for number, names in parts.items() for part in sorted(every - names)]
    if missing:
        raise CheckpointError(
            f'its blocks have different tensors; missing ({len(missing)}): {", ".join(map(printable, missing[:4]))}. '
            f'Expected a whole XCiT backbone'
        )
    if patch_size == 4 and numbers['patch_size'] == 16:
        numbers['patch_size'] = 4
    found: Dict[str, Any] = dict(numbers, mlp_ratio=hidden.numel() / numbers['embed_dims'], in_channels=conv.shape[1])
    published: Dict[str, Any] = next((arch for arch in ARCHS.values() if _sizes(arch) == _sizes(found)), {})
    return Arch(**found, tokens_norm=published.get('tokens_norm', True))


def read_arch(source: str) -> Arch:
    """The arch of the backbone in a file or at an address.

    Raises:
        CheckpointError: If it cannot be read, or holds no XCiT.
    """
    loaded = read_checkpoint(source)
    layout, tensors = find_layout(loaded)
    if layout is None:
        raise CheckpointError(f'{source} holds no XCiT')
    state = {key[len('backbone.') :]: v for key, v in layout.to_native(tensors).items() if key.startswith('backbone.')}
    try:
        return infer_arch(state, loaded.get('state_dict', loaded)._metadata.source['patch_size'])
    except CheckpointError as error:
        raise error.naming(source) from None
