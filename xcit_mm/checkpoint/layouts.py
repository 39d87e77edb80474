"""The layouts in which XCiT checkpoints exist, and how each one's tensor names map to ours and back.

Ours are the names of a whole OpenMMLab model: ``backbone.…`` as in :class:`xcit_mm.models.XCiT`, and what else the file
holds (``neck.…``, ``head.fc.…``, ``decode_head.…``) beside it.
"""

import re
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from ..errors import printable

StateDict = Dict[str, Tensor]
Renames = Tuple[Tuple[str, Union[str, Callable[[re.Match], str]]], ...]


@dataclass(frozen=True)
class Layout:
    """One published layout.

    Attributes:
        name (str): What messages call it.
        container (str, optional): Key of the file under which its tensors lie; None: they are the file.
        marker (str): Regular expression that matches the start of one tensor name of this layout and of no other.
        renames (tuple): Pairs of regular expression and replacement that turn its names into ours, applied in order;
            a tensor whose name becomes empty is not taken.
        inverse (tuple, optional): Such pairs that turn our names into its; None: nothing is written in this layout.
        joined_qkv (bool): Class attention's query, key and value are one tensor, as ours, and not three.
    """

    name: str
    container: Optional[str]
    marker: str
    renames: Renames = ()
    inverse: Optional[Renames] = None
    joined_qkv: bool = True

    def recognises(self, state: StateDict) -> bool:
        return any(re.match(self.marker, key) for key in state)

    def to_native(self, state: StateDict) -> StateDict:
        """The same tensors under our names."""
        renamed = {_rename(key, self.renames): value for key, value in state.items()}
        renamed.pop('', None)
        return _join_qkv(renamed)

    def from_native(self, state: StateDict) -> StateDict:
        """Tensors under our names, as this layout names and divides them; the inverse of :meth:`to_native`."""
        if not self.joined_qkv:
            state = _split_qkv(state)
        return {_rename(key, self.inverse or ()): value for key, value in state.items()}

    def left_out(self, state: StateDict) -> List[str]:
        """The names of tensors of this layout that :meth:`to_native` does not take."""
        return [key for key in state if not _rename(key, self.renames)]


def _rename(key: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


_PREFIX: Renames = (
    (
        r'^(?=(cls_token$|(patch_embed|pos_embed|pos_embeder|blocks|cls_attn_blocks|xca_layers|ca_layers|norm|pyramid)\.|fpn\d))',
        r'backbone.',
    ),
    (r'^head\.(?=(weight|bias)$)', r'head.fc.'),
)
_OFFICIAL: Renames = (
    (r'^backbone\.pos_embeder\.', r'backbone.pos_embed.'),
    (r'^backbone\.fpn(?=\d)', r'backbone.pyramid.fpn'),
    (r'^(backbone\.blocks\.\d+)\.local_mp\.', r'\1.lpi.'),
)
_MMPRETRAIN: Renames = (
    (
        r'^backbone\.patch_embed\.proj\.(\d)\.(conv|bn)\.',
        lambda m: f'backbone.patch_embed.proj.{2 * int(m[1])}.{int(m[2] == "bn")}.',
    ),
    (r'^backbone\.pos_embed\.token_projection\.conv\.', r'backbone.pos_embed.token_projection.'),
    (r'^backbone\.xca_layers\.', r'backbone.blocks.'),
    (r'^backbone\.ca_layers\.', r'backbone.cls_attn_blocks.'),
    (r'\.local_mp\.conv1\.bn\.', r'.lpi.bn.'),
    (r'\.local_mp\.(conv\d)\.conv\.', r'.lpi.\1.'),
    (r'\.ffn\.layers\.0\.0\.', r'.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', r'.mlp.fc2.'),
)
_WITHOUT_HEAD: Renames = ((r'^head\..*', ''),)
_WITHOUT_PREFIX: Renames = ((r'^backbone\.', r''), (r'^head\.fc\.', r'head.'))
_TO_TIMM: Renames = ((r'^(backbone\.blocks\.\d+)\.lpi\.', r'\1.local_mp.'),)
_TO_OFFICIAL: Renames = _TO_TIMM + (
    (r'^backbone\.pos_embed\.', r'backbone.pos_embeder.'),
    (r'^backbone\.pyramid\.fpn(?=\d)', r'backbone.fpn'),
)
_TO_MMPRETRAIN: Renames = (
    (
        r'^backbone\.patch_embed\.proj\.(\d)\.([01])\.',
        lambda m: f'backbone.patch_embed.proj.{int(m[1]) // 2}.{("conv", "bn")[int(m[2])]}.',
    ),
    (r'^backbone\.pos_embed\.token_projection\.', r'backbone.pos_embed.token_projection.conv.'),
    (r'^backbone\.blocks\.', r'backbone.xca_layers.'),
    (r'^backbone\.cls_attn_blocks\.', r'backbone.ca_layers.'),
    (r'\.lpi\.bn\.', r'.local_mp.conv1.bn.'),
    (r'\.lpi\.(conv\d)\.', r'.local_mp.\1.conv.'),
    (r'\.mlp\.fc1\.', r'.ffn.layers.0.0.'),
    (r'\.mlp\.fc2\.', r'.ffn.layers.1.'),
)

# Where one marker would match two layouts, the first one counts.
LAYOUTS = (
    Layout('this project', 'state_dict', r'backbone\.blocks\.\d+\.lpi\.', inverse=()),
    Layout('this project, backbone alone', 'state_dict', r'blocks\.\d+\.lpi\.', _PREFIX),
    Layout('original self-supervised, full run', 'teacher', r'backbone\.pos_embeder\.', _WITHOUT_HEAD + _OFFICIAL),
    Layout(
        'original detection or segmentation', 'state_dict', r'backbone\.pos_embeder\.', _OFFICIAL, inverse=_TO_OFFICIAL
    ),
    Layout(
        'original classification',
        'model',
        r'pos_embeder\.',
        _PREFIX + _OFFICIAL,
        inverse=_TO_OFFICIAL + _WITHOUT_PREFIX,
    ),
    Layout(
        'original self-supervised', None, r'pos_embeder\.', _PREFIX + _OFFICIAL, inverse=_TO_OFFICIAL + _WITHOUT_PREFIX
    ),
    Layout(
        'MMPretrain',
        'state_dict',
        r'(backbone\.)?xca_layers\.',
        _PREFIX + _MMPRETRAIN,
        inverse=_TO_MMPRETRAIN,
        joined_qkv=False,
    ),
    Layout(
        'timm',
        None,
        r'blocks\.\d+\.local_mp\.',
        _PREFIX + _OFFICIAL,
        inverse=_TO_TIMM + _WITHOUT_PREFIX,
        joined_qkv=False,
    ),
)


# A tensor of an XCiT by any names, and what comes before the name of its backbone or of the whole model around it.
_XCIT = re.compile(r'((?:[^.]+\.)*?)(?:backbone\.)?(?:blocks\.\d+\.(?:lpi|local_mp)|pos_embeder|xca_layers)\.')
# What DistributedDataParallel and torch.compile put before every name, in either order.
_WRAPPERS = re.compile(r'^(?:(?:module|_orig_mod)\.)+')


class Found(NamedTuple):
    """What a file holds.

    Attributes:
        layout (Layout, optional): None for a file that holds no XCiT, or several that cannot be told apart.
        place (str, optional): Key of the file under which the tensors lie, with dots between keys; None: they are the
            file.
        tensors (dict): The tensors by their own names, without what wrappers put before them; ``{}`` if there are none.
        prefix (str): What else came before their names, such as Lightning's 'model.'.
        beside (list[str]): Other XCiT models among these tensors, by their prefix.
        elsewhere (list[str]): Other XCiT models of the file, by place and prefix.
    """

    layout: Optional[Layout]
    place: Optional[str]
    tensors: StateDict
    prefix: str
    beside: List[str]
    elsewhere: List[str]

    @property
    def title(self) -> str:
        return _title(self.place, self.prefix)


def find_layout(checkpoint: dict) -> Tuple[Optional[Layout], StateDict]:
    """Layout and tensors of :func:`locate`."""
    found = locate(checkpoint)
    return found.layout, found.tensors


def locate(checkpoint: dict) -> Found:
    """Find the XCiT in a loaded file.

    Tensor names decide which dicts of the file, or of its dicts, are models, whatever these dicts are called, since
    files get re-saved. The place only tells apart layouts with the same names, and which of several models is meant.
    """
    models: Dict[Optional[str], Dict[str, StateDict]] = {}
    tensors: StateDict = {}
    place = None
    for here, content in _places(checkpoint):
        inside = tensors_of(content)
        prefixes = {match[1] for match in map(_XCIT.match, inside) if match}
        if prefixes:
            models[here] = {prefix: _below(prefix, inside) for prefix in sorted(prefixes)}
        elif not tensors:
            tensors, place = inside, here
    titles = [_title(here, prefix) for here, inside in models.items() for prefix in inside]
    chosen = _choose(models)
    if chosen is None:
        return Found(None, place, tensors, '', [], titles)
    place, prefix = chosen
    tensors = models[place][prefix]
    matching = [layout for layout in LAYOUTS if layout.recognises(tensors)]
    layout = min(matching, key=lambda layout: layout.container != place, default=None)
    beside = [] if prefix else [_title(None, other) for other in models[place] if other]
    elsewhere = [
        _title(here, other)
        for here, inside in models.items()
        for other in inside
        if (here, other) != (place, prefix) and (here != place or prefix)
    ]
    return Found(layout, place, tensors, prefix, beside, elsewhere)


def _places(checkpoint: dict) -> Iterator[Tuple[Optional[str], dict]]:
    """The dicts in which a model can lie: those of the file, the file itself, and those one step further down."""
    inner = {key: value for key, value in checkpoint.items() if isinstance(key, str) and isinstance(value, dict)}
    yield from inner.items()
    yield None, checkpoint
    for key, value in inner.items():
        yield from ((f'{key}.{name}', item) for name, item in value.items() if isinstance(item, dict))


def content_of(checkpoint: dict, place: Optional[str]) -> dict:
    """The dict at the place of a :class:`Found`."""
    return next(content for here, content in _places(checkpoint) if here == place)


def _below(prefix: str, tensors: StateDict) -> StateDict:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _title(place: Optional[str], prefix: str) -> str:
    """A model's place and prefix in words, for example "'state_dict' model.…"."""
    words = [place and repr(printable(place)), prefix and f'{printable(prefix)}…']
    return ' '.join(filter(None, words)) or 'the file itself'


def _choose(models: Dict[Optional[str], Dict[str, StateDict]]) -> Optional[Tuple[Optional[str], str]]:
    """Place and prefix of the model that the loader of whoever wrote the file takes; None: nothing tells."""
    preferred = [
        'state_dict_ema',  # timm's load_checkpoint: the average, unless told otherwise
        *(['model_ema'] if 'model' not in models else []),  # timm's again; but DeiT's, and the release's, take 'model'
        'state_dict',  # MMEngine's
        *(['teacher'] if 'student' in models else []),  # DINO's
        'model',
        None,
    ]
    place = next((place for place in preferred if place in models), next(iter(models)) if len(models) == 1 else '')
    prefixes = models.get(place, {})
    for prefix in ('', 'teacher.' if 'student.' in prefixes else ''):
        if prefix in prefixes:
            return place, prefix
    return (place, next(iter(prefixes))) if len(prefixes) == 1 else None


def _join_qkv(state: StateDict) -> StateDict:
    """Class attention keeps query, key and value in one tensor here as in the original, others in three."""
    joined = {}
    for key, value in state.items():
        part = re.fullmatch(r'(.*cls_attn_blocks\.\d+\.attn\.)([qkv])\.(weight|bias)', key)
        if part is None:
            joined[key] = value
        elif part[2] == 'q' and all(f'{part[1]}{name}.{part[3]}' in state for name in 'kv'):
            parts = [state[f'{part[1]}{name}.{part[3]}'] for name in 'qkv']
            if parts[0].dim() and all(p.shape == parts[0].shape and p.dtype == parts[0].dtype for p in parts):
                joined[f'{part[1]}qkv.{part[3]}'] = torch.cat(parts)
            else:  # they fit no model, and are named as they are
                joined.update({f'{part[1]}{name}.{part[3]}': p for name, p in zip('qkv', parts)})
    return joined


def _split_qkv(state: StateDict) -> StateDict:
    """The inverse of :func:`_join_qkv`; the parts are copies, since safetensors takes no views of one tensor."""
    split = {}
    for key, value in state.items():
        joined = re.fullmatch(r'(.*cls_attn_blocks\.\d+\.attn\.)qkv\.(weight|bias)', key)
        if joined is None:
            split[key] = value
        else:
            split.update({f'{joined[1]}{name}.{joined[2]}': part.clone() for name, part in zip('qkv', value.chunk(3))})
    return split


def tensors_of(state) -> StateDict:
    """The tensors of a dict, without what parallel and compiling wrappers put before their names; {} if it is none."""
    if not isinstance(state, dict):
        return {}
    return {unwrapped(key): value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}


def unwrapped(name: str) -> str:
    """A tensor's name without ``module.`` and ``_orig_mod.`` before it."""
    return _WRAPPERS.sub('', name)


def arch_numbers(state: StateDict) -> Dict[str, int]:
    """What a backbone's tensors (our names, no prefix) tell about its arch, by the names of XCiT's arguments."""
    numbers = {}
    if 'blocks.0.gamma1' in state:
        numbers['embed_dims'] = state['blocks.0.gamma1'].numel()
    blocks = {key.split('.')[1] for key in state if re.match(r'blocks\.\d+\.', key)}
    if blocks:
        numbers['depth'] = len(blocks)  # counted, since a name can claim any number
    if 'blocks.0.attn.temperature' in state:
        numbers['num_heads'] = state['blocks.0.attn.temperature'].numel()
    convs = [key for key in state if re.fullmatch(r'patch_embed\.proj\.\d\.0\.weight', key)]
    if convs:
        numbers['patch_size'] = 2 ** len(convs)
    return numbers


def describe(state: StateDict) -> str:
    """The arch that a backbone's tensors (our names, no prefix) belong to, in the words of its arguments."""
    return ', '.join(f'{name}={number}' for name, number in arch_numbers(state).items()) or 'no XCiT blocks'
