"""The layouts in which XCiT checkpoints exist, and how each one's tensor names map to ours.

Ours are the names of a whole OpenMMLab model: ``backbone.…`` as in :class:`xcit_mm.models.XCiT`, and what else the file
holds (``neck.…``, ``head.fc.…``, ``decode_head.…``) beside it.
"""

import re
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from torch import Tensor

StateDict = Dict[str, Tensor]
Renames = Tuple[Tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """One published layout.

    Attributes:
        name (str): What messages call it.
        container (str, optional): Key of the file under which its tensors lie; None: they are the file.
        marker (str): Regular expression that matches the start of one tensor name of this layout and of no other.
        renames (tuple): Pairs of regular expression and replacement that turn its names into ours, applied in order.
    """

    name: str
    container: Optional[str]
    marker: str
    renames: Renames = ()

    def recognises(self, state: StateDict) -> bool:
        return any(re.match(self.marker, key) for key in state)

    def to_native(self, state: StateDict) -> StateDict:
        """The same tensors under our names."""
        return {self._rename(key): value for key, value in state.items()}

    def _rename(self, key: str) -> str:
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key


# The authors' names inside the backbone.
_OFFICIAL: Renames = (
    (r'^backbone\.pos_embeder\.', r'backbone.pos_embed.'),
    (r'^backbone\.fpn(?=\d)', r'backbone.pyramid.fpn'),
    (r'^(backbone\.blocks\.\d+)\.local_mp\.', r'\1.lpi.'),
)
_BARE: Renames = (
    (r'^(?=(cls_token$|patch_embed|pos_embed|blocks|cls_attn_blocks|norm|fpn\d|pyramid))', r'backbone.'),
    (r'^head\.(?=weight|bias)', r'head.fc.'),
)

LAYOUTS = (
    Layout('this project', 'state_dict', r'backbone\.blocks\.\d+\.lpi\.'),
    Layout('this project, backbone alone', 'state_dict', r'blocks\.\d+\.lpi\.', _BARE),
    Layout('original detection or segmentation', 'state_dict', r'backbone\.pos_embeder\.', _OFFICIAL),
    Layout('original classification', 'model', r'pos_embeder\.', _BARE + _OFFICIAL),
    Layout('original self-supervised', None, r'pos_embeder\.', _BARE + _OFFICIAL),
)


def find_layout(checkpoint: dict) -> Tuple[Optional[Layout], StateDict]:
    """The layout of a loaded file, and its tensors by their own names.

    Containers are looked into in the order of :data:`LAYOUTS`, and a file may hold its tensors in another container
    than its layout usually does: names decide, since files get re-saved.

    Returns:
        tuple: The layout, or None for a file that holds no XCiT; and the tensors, ``{}`` if there are none.
    """
    places = [layout.container for layout in LAYOUTS]
    found: StateDict = {}
    for place in dict.fromkeys([*places[:-1], None]):
        state = checkpoint if place is None else checkpoint.get(place)
        tensors = _tensors(state)
        for layout in LAYOUTS if tensors else ():
            if layout.recognises(tensors):
                return layout, tensors
        found = found or tensors
    return None, found


def _tensors(state) -> StateDict:
    """The tensors of a dict, without the ``module.`` that a parallel wrapper adds; {} if it is none."""
    if not isinstance(state, dict):
        return {}
    return {
        re.sub(r'^module\.', '', key): value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def describe(state: StateDict) -> str:
    """The arch that a backbone's tensors (our names, no prefix) belong to, in the words of its arguments."""
    facts = []
    for label, key, size in (
        ('embed_dims', 'blocks.0.gamma1', lambda t: t.numel()),
        ('num_heads', 'blocks.0.attn.temperature', lambda t: t.shape[0]),
    ):
        if key in state:
            facts.append(f'{label}={size(state[key])}')
    blocks = {int(key.split('.')[1]) for key in state if re.match(r'blocks\.\d+\.', key)}
    if blocks:
        facts.insert(1, f'depth={max(blocks) + 1}')
    convs = [key for key in state if re.fullmatch(r'patch_embed\.proj\.\d+\.0\.weight', key)]
    if convs:
        facts.append(f'patch_size={2 ** len(convs)}')
    return ', '.join(facts) or 'no XCiT blocks'
