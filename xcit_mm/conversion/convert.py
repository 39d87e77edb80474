"""Convert a checkpoint to another layout, and verify that both models compute the same outputs.

The new file is written under a temporary name, read back, and run in the implementation it is meant for. Then it is
renamed, so there is never a partial or wrong file.
"""

import logging
import os
import shutil
import tempfile
import warnings
from collections import Counter, OrderedDict
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from ..checkpoint.contents import checked
from ..checkpoint.layouts import (
    LAYOUTS,
    Found,
    Layout,
    StateDict,
    content_of,
    find_layout,
    locate,
    tensors_of,
)
from ..checkpoint.loading import _safe_torch_load, read_checkpoint
from ..errors import CheckpointError, UsageError, printable
from ..models.adapter import MultiScaleAdapter
from ..models.xcit import XCiT
from . import hub_folder
from .arch import Arch, infer_arch

TARGETS = ('xcit_mm', 'official', 'mmpretrain', 'timm')
CHOICES = (*TARGETS, 'hf')  # the last one a folder
TOLERANCE = 1e-4
# Height and width of the images for the comparison; the second is not a multiple of the patch size.
TEST_SIZES = ((96, 64), (57, 83))


@dataclass(frozen=True)
class Conversion:
    """What was found, written and measured.

    Attributes:
        source_layout, target_layout (str): What :class:`~xcit_mm.checkpoint.Layout` calls them.
        arch (Arch): The backbone.
        num_classes (int): Classes of the linear head; 0 if there is none.
        source_tensors, target_tensors (int): How many were taken and written.
        left_out (list[str]): What the old file holds and the new one does not, in words.
        compared (str): Whose models were run on the two files, in words.
        deviations (dict): Largest difference of an output relative to its largest value, by the image's
            (height, width).
    """

    source_layout: str
    target_layout: str
    arch: Arch
    num_classes: int
    source_tensors: int
    target_tensors: int
    left_out: List[str]
    compared: str
    deviations: Dict[Tuple[int, int], float]


def convert(source: str, target: str, to: str, force: bool = False) -> Conversion:
    """Write a checkpoint's tensors in another layout.

    Args:
        source (str): File or web address, in any layout that this project loads.
        target (str): File to write; one that ends in ``.safetensors`` holds the tensors alone. With 'hf' a folder.
        to (str): 'xcit_mm', 'official' (what the original release has for such a model: a classifier, a backbone, or
            a detector or segmentor), 'mmpretrain', 'timm', or 'hf': a folder with ``model.safetensors``,
            ``config.json`` and a model card, which timm's ``create_model('local-dir:FOLDER')`` and the hub take.
        force (bool): Replace ``target`` if it exists.

    Raises:
        UsageError: If ``target`` cannot be written, or the implementation to compare with cannot be imported.
        CheckpointError: If ``source`` is not a complete XCiT, does not fit the layout, or the two models disagree. In
            every case ``target`` is unchanged.
    """
    if to not in CHOICES:
        raise UsageError(f'there is no layout {to!r}; choose one of {", ".join(CHOICES)}')
    target = target.rstrip(os.sep) or target
    _check_target(target, to, force)
    old = _read(source)
    layout = _layout_for(to, old)
    try:
        # On the meta device first: a file may claim an arch much larger than its tensors.
        with torch.device('meta'), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='for .*: copying from a non-meta parameter')
            _Ours(old).load(old.path)
        ours: Any = _Ours(old)
        theirs: Any = (_TimmFolder if to == 'hf' else _IMPLEMENTATIONS.get(layout.name, _Ours))(old)
    except ValueError as error:  # XCiT's, about its arguments
        raise CheckpointError(f'{source}: {error}') from None
    except RuntimeError as error:  # PyTorch's and MMEngine's, about names and shapes
        raise _not_converted(source, error) from None
    tensors = layout.from_native(old.state)
    safetensors = to == 'hf' or target.endswith('.safetensors')
    meta = old.meta if layout.container == 'state_dict' and not safetensors else None

    suffix = '' if to == 'hf' else '.safetensors' if safetensors else '.pth'
    temporary = os.path.join(os.path.dirname(target), f'.{os.path.basename(target)}.{os.getpid()}{suffix}')
    written = os.path.join(temporary, hub_folder.WEIGHTS) if to == 'hf' else temporary
    try:
        if to == 'hf':
            _describe(old, temporary, os.path.basename(target))
        _write(tensors, meta, layout, old.arch, written, target)
        _check_written(tensors, old, layout, written, target)
        deviations = _deviations(ours.load(old.path), theirs.load(temporary), old.arch.in_channels)
        if not all(deviation <= TOLERANCE for deviation in deviations.values()):  # NaN fails too
            raise CheckpointError(
                f'{source} was not converted: {theirs.title} computes something else from the new file than '
                f'{ours.title} from the old one. Relative deviation {in_words(deviations)}, expected at most '
                f'{TOLERANCE:g}. Where it is nan, the weights themselves are broken'
            )
        if to == 'hf' and os.path.isdir(target):
            for name in os.listdir(temporary):
                os.replace(os.path.join(temporary, name), os.path.join(target, name))
        else:
            os.replace(temporary, target)
    except CheckpointError:
        raise
    except RuntimeError as error:  # PyTorch's, about names and shapes
        raise _not_converted(source, error) from None
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary)
        elif os.path.exists(temporary):
            os.unlink(temporary)
    left_out = old.left_out
    if old.meta and meta is None:
        left_out = [*left_out, f'meta ({", ".join(map(str, old.meta))})']
    return Conversion(
        source_layout=old.layout.name,
        target_layout=layout.name,
        arch=old.arch,
        num_classes=old.num_classes,
        source_tensors=old.num_tensors,
        target_tensors=len(tensors),
        left_out=left_out,
        compared=f'{ours.title} with the old file, {theirs.title} with the new one',
        deviations=deviations,
    )


def _describe(old: '_Checkpoint', folder: str, title: str) -> None:
    """Make the folder of a model with its config and card."""
    published = hub_folder.find_published(old.source, old.path, old.arch, old.num_classes)
    images = hub_folder.describe_images(old.meta, published, old.arch.in_channels)
    names = hub_folder.class_names(old.meta, old.num_classes)
    try:
        os.mkdir(folder)
        hub_folder.write_config(folder, old.arch, old.num_classes, images, names)
        hub_folder.write_card(folder, title, old.arch, old.num_classes, images, published, old.source, names)
    except OSError as error:
        raise UsageError(f'{folder} could not be written ({error.strerror}); nothing was left behind') from None
    if images.origin == 'assumed':
        print_log(
            f'{old.source} does not say which images its model takes: config.json says {images.size} pixels and '
            f'{"the mean and deviation of ImageNet" if old.arch.in_channels == 3 else "a mean and deviation of 0.5"}. '
            f'Correct it there if that is wrong',
            'current',
            logging.WARNING,
        )


def _not_converted(source: str, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error.naming(source)
    return CheckpointError(f'{source} was not converted: {printable(" ".join(str(error).split()), 400)}')


def in_words(deviations: Dict[Tuple[int, int], float]) -> str:
    """For example '3.1e-07 at 96x64 and 2.9e-07 at 57x83'."""
    return ' and '.join(f'{value:.1e} at {height}x{width}' for (height, width), value in deviations.items())


def _check_target(target: str, to: str, force: bool) -> None:
    """Check that the target can be written, before any work."""
    folder, name = os.path.dirname(target) or '.', os.path.basename(target)
    if os.path.isdir(target) and to != 'hf':
        raise UsageError(f'{target} is a folder; name the file to write in it')
    if to == 'hf' and os.path.isfile(target):
        raise UsageError(f'{target} is a file; --to hf writes a folder')
    is_empty = os.path.isdir(target) and not os.listdir(target)
    if os.path.exists(target) and not force and not is_empty:
        raise UsageError(f'{target} exists already; choose another name, or replace it with --force')
    if not os.path.isdir(folder):
        raise UsageError(f'there is no folder {folder} for {name}; make it, or choose another')
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f'the folder {folder} cannot be written to ({error.strerror}); choose another for {name}'
        ) from None
    if to == 'mmpretrain' and target.endswith('.safetensors'):
        raise UsageError(f'MMPretrain reads no .safetensors files, got {target}; choose a name that ends in .pth')


@dataclass(frozen=True)
class _Checkpoint:
    """A file of any layout, with its tensors by our names."""

    source: str
    path: str
    layout: Layout
    arch: Arch
    state: StateDict
    meta: dict
    num_tensors: int
    left_out: List[str]

    @property
    def num_classes(self) -> int:
        weight = self.state.get('head.fc.weight')
        return 0 if weight is None or weight.dim() != 2 else len(weight)

    @property
    def out_type(self) -> str:
        """The ``out_type`` with which our backbone uses all of these tensors."""
        if any(key.startswith('backbone.pyramid.') for key in self.state):
            return 'pyramid'
        return 'raw' if 'backbone.cls_token' in self.state else 'featmap'

    @property
    def out_strides(self) -> Tuple[int, ...]:
        """Strides of the pyramid: the file has the layers of every map finer than the patches."""
        levels = {key.split('.')[2] for key in self.state if key.startswith('backbone.pyramid.')}
        strides = zip(('fpn1', 'fpn2', 'fpn3', 'fpn4'), MultiScaleAdapter.STRIDES)
        return tuple(stride for level, stride in strides if level in levels or stride >= self.arch.patch_size)

    def beyond_a_classifier(self) -> Dict[str, int]:
        """The parts besides a backbone and one linear head, and how many tensors each has."""
        parts: Counter = Counter()
        for key in self.state:
            if key.startswith('backbone.pyramid.'):
                parts['the pyramid'] += 1
            elif not key.startswith(('backbone.', 'head.fc.')):
                parts[key.split('.')[0]] += 1
        return dict(parts)


def _read(source: str) -> _Checkpoint:
    """Read a file through the loaders that MMEngine calls, and once more as it is to see what they leave out."""
    try:
        loaded = read_checkpoint(source)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from None
    layout, state = find_layout(loaded)
    if layout is None:
        raise CheckpointError(
            f'{source} holds no XCiT. Its first tensors: {", ".join(map(printable, list(state)[:3])) or "none"}; '
            f'expected the names of one of these layouts: {", ".join(layout.name for layout in LAYOUTS)}'
        )
    state = layout.to_native(state)
    for key, tensor in state.items():
        if key.startswith(('backbone.', 'head.fc.')) and not tensor.is_floating_point() and 'num_batches' not in key:
            raise CheckpointError(
                f'{source}: {printable(key)} is of type {tensor.dtype}, expected floating-point numbers'
            )
    origin = loaded.get('state_dict', loaded)._metadata.source
    path = origin['path']
    raw = _read_untranslated(path)
    found = locate(raw)
    layout, tensors = found.layout or layout, found.tensors
    dropped = layout.left_out(tensors)
    taken = {key: value for key, value in tensors.items() if key not in dropped}
    if _num_bytes(taken) != _num_bytes(state):
        raise CheckpointError(
            f'{source} (layout: {layout.name}) cannot be converted without loss: its tensors have {_num_bytes(taken)} '
            f'bytes, and {_num_bytes(state)} by the names of this project. It may hold one tensor under two names, or '
            f'query, key and value in different types'
        )
    try:
        backbone = {key[len('backbone.') :]: v for key, v in state.items() if key.startswith('backbone.')}
        arch = infer_arch(backbone, origin['patch_size'])
    except CheckpointError as error:
        raise error.naming(source) from None
    meta = raw.get('meta')
    return _Checkpoint(
        source=source,
        path=path,
        layout=layout,
        arch=arch,
        state=state,
        meta=meta if isinstance(meta, dict) else {},
        num_tensors=len(taken),
        left_out=_beside(raw, found, dropped),
    )


def _read_untranslated(path: str) -> dict:
    if path.endswith('.safetensors'):
        return {'state_dict': load_safetensors(path)}
    return checked(_safe_torch_load(path, 'cpu'))


def _num_bytes(state: StateDict) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _beside(raw: dict, found: Found, dropped: List[str]) -> List[str]:
    """What a file holds besides the tensors that are taken from it, in words."""
    inside = content_of(raw, found.place)
    items = {key: value for key, value in inside.items() if not isinstance(value, Tensor)}
    dropped = [*dropped, *(key for key in tensors_of(inside) if not key.startswith(found.prefix))]
    if found.place is not None:
        items.update({key: value for key, value in raw.items() if key != found.place})
    if isinstance(items.get('meta'), dict):
        del items['meta']  # carried over, or named by the caller
    words = []
    for key, value in items.items():
        if tensors_of(value):
            words.append(f'{key} ({len(tensors_of(value))} tensors)')
        elif _is_short(value):
            words.append(printable(f'{key}={value}'))
        else:
            words.append(printable(key))
    for part, number in Counter(key.split('.')[0] for key in dropped).items():
        words.append(printable(f'{part} of the {found.place or "file"}') + f' ({number} tensors)')
    return words


def _is_short(value) -> bool:
    if isinstance(value, int):
        return abs(value) < 1 << 64  # Python refuses to print integers of thousands of digits
    return isinstance(value, float) or (isinstance(value, str) and len(value) < 40)


def _layout_for(to: str, old: _Checkpoint) -> Layout:
    """The layout to write.

    Raises:
        CheckpointError: If the file holds what the layout has no place for.
    """
    parts = [f'{part} ({number} tensors)' for part, number in old.beyond_a_classifier().items()]
    if 'backbone.cls_token' not in old.state:
        parts.append('no class token')
    if parts and to in ('mmpretrain', 'timm', 'hf'):
        raise CheckpointError(
            f'{old.source} (layout: {old.layout.name}) does not fit --to {to}, which holds a backbone with its class '
            f'token and at most one linear head. Found instead: {", ".join(parts)}. Choose --to xcit_mm or '
            f'--to official; they hold whole detectors and segmentors'
        )
    name = {'xcit_mm': 'this project', 'mmpretrain': 'MMPretrain', 'timm': 'timm', 'hf': 'timm'}.get(to)
    if name is None and parts:
        name = 'original detection or segmentation'
    elif name is None:
        name = 'original classification' if old.num_classes else 'original self-supervised'
    return next(layout for layout in LAYOUTS if layout.name == name)


def _write(tensors: StateDict, meta: Optional[dict], layout: Layout, arch: Arch, path: str, target: str) -> None:
    # Copies: a view would be written with its whole storage, and safetensors refuses views.
    state: Any = OrderedDict(
        (key, t.detach().clone(memory_format=torch.contiguous_format)) for key, t in tensors.items()
    )
    stated = {'patch_size': str(arch.patch_size)} if arch.patch_size == 4 else {}  # cannot be inferred from the tensors
    try:
        if path.endswith('.safetensors'):
            with open(path, 'wb') as file:  # safetensors' own writer creates files that only the owner can read
                file.write(safetensors_bytes(state, metadata={'format': 'pt', **stated}))
        elif layout.container is None:
            torch.save(state, path)
        else:
            if stated and layout.name == 'this project':
                state._metadata = {'backbone': {'patch_size': arch.patch_size}}
            torch.save({**({} if meta is None else {'meta': meta}), layout.container: state}, path)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f'{target} could not be written ({str(error).splitlines()[0]}); is the disk full? Nothing was left behind'
        ) from None


def _check_written(tensors: StateDict, old: _Checkpoint, layout: Layout, path: str, target: str) -> None:
    """Read the file back: it must equal what was to be written, and convert back to the source, bit by bit."""
    written = locate(_read_untranslated(path)).tensors
    if not (_same_bits(written, tensors) and _same_bits(layout.to_native(written), old.state)):
        raise CheckpointError(
            f'{target} read back differs from what was written, so it was removed; check the disk and try again'
        )


def _same_bits(a: StateDict, b: StateDict) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and torch.equal(_bits(a[key]), _bits(b[key]))
        for key in a
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _deviations(ours: nn.Module, theirs: nn.Module, in_channels: int) -> Dict[Tuple[int, int], float]:
    """Run both models on the same seeded images; the largest deviation of all outputs per image size."""
    generator = torch.Generator().manual_seed(0)
    deviations = {}
    for size in TEST_SIZES:
        image = torch.randn(1, in_channels, *size, generator=generator)
        with torch.no_grad():
            pairs = list(zip(ours(image), theirs(image)))
        found = [(a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny) for a, b in pairs]
        deviations[size] = torch.stack(found).max().item()
    return deviations


def _patches_of_stem(arch: Arch) -> int:
    """The patch size with the same convolutions: other implementations know only 8 and 16."""
    return 16 if arch.patch_size == 4 else arch.patch_size


def _set_patch_size(stem: nn.Module, arch: Arch) -> None:
    """Turn another implementation's patches of 16 into patches of 4, as RobustBench does."""
    if arch.patch_size == 4:
        for conv in [module for module in stem.modules() if isinstance(module, nn.Conv2d)][:2]:
            conv.stride = (1, 1)


class _Ours(nn.Module):
    """This project's backbone and linear head, under the names of a whole model; other parts of a file are not run."""

    title = "this project's XCiT"

    def __init__(self, old: _Checkpoint):
        super().__init__()
        arch = asdict(old.arch)
        options = {name: arch.pop(name) for name in ('patch_size', 'in_channels')}
        if old.out_type == 'pyramid':
            options['out_strides'] = old.out_strides
        self.backbone = XCiT(arch, out_type=old.out_type, **options)
        self.head = nn.ModuleDict()
        if old.num_classes and old.out_type == 'raw':
            self.head['fc'] = nn.Linear(old.arch.embed_dims, old.num_classes)
        self.whole = not old.beyond_a_classifier()

    def load(self, path: str) -> nn.Module:
        load_checkpoint(self, path, map_location='cpu', strict=self.whole, logger='silent')
        return self.eval()

    def forward(self, image: Tensor) -> List[Tensor]:
        """Image (1, channels, H, W) -> the maps; or all tokens (1, 1 + N, C) and the logits (1, classes) if any."""
        outputs = list(self.backbone(image))
        return outputs + [fc(outputs[-1][:, 0]) for fc in self.head.values()]


class _Timm(nn.Module):
    """timm's XCiT, which reads the original release's layout too, with timm's own loader."""

    title = "timm's XCiT"

    def __init__(self, old: _Checkpoint):
        super().__init__()
        self.module = _require('timm.models.xcit', 'timm', 'pip install timm')
        arch = old.arch
        self.model = self.module.Xcit(
            patch_size=_patches_of_stem(arch),
            in_chans=arch.in_channels,
            num_classes=old.num_classes,
            embed_dim=arch.embed_dims,
            depth=arch.depth,
            num_heads=arch.num_heads,
            mlp_ratio=arch.mlp_ratio,
            tokens_norm=arch.tokens_norm,
        )
        _set_patch_size(self.model.patch_embed, arch)

    def load(self, path: str) -> nn.Module:
        load = import_module('timm.models').load_checkpoint
        load(self.model, path, strict=True, filter_fn=self.module.checkpoint_filter_fn)
        return self.eval()

    def forward(self, image: Tensor) -> List[Tensor]:
        """As :meth:`_Ours.forward`."""
        tokens = self.model.forward_features(image)
        return [tokens] + ([self.model.forward_head(tokens)] if self.model.num_classes else [])


class _TimmFolder(_Timm):
    """timm's XCiT as its ``create_model`` builds it from a folder."""

    title = "timm's create_model('local-dir:...')"

    def __init__(self, old: _Checkpoint):
        nn.Module.__init__(self)
        hub_folder.timm_arch(old.arch)  # refuses what timm does not have
        self.timm = _require('timm', 'timm', 'pip install -U timm')

    def load(self, path: str) -> nn.Module:
        try:
            self.model = self.timm.create_model(f'local-dir:{path}', pretrained=True)
        except (AssertionError, ValueError) as error:
            raise UsageError(
                f'timm {self.timm.__version__} does not take a folder ({error}); pip install -U timm'
            ) from None
        return self.eval()


class _MMPretrain(nn.Module):
    """MMPretrain's classifier with its own XCiT."""

    title = "MMPretrain's XCiT"

    def __init__(self, old: _Checkpoint):
        super().__init__()
        _require('mmpretrain.models', 'mmpretrain', 'pip install onedl-mmpretrain (or mmpretrain)')
        backbone = dict(asdict(old.arch), type='XCiT', out_type='raw', patch_size=_patches_of_stem(old.arch))
        head = dict(type='LinearClsHead', num_classes=old.num_classes, in_channels=old.arch.embed_dims)
        with DefaultScope.overwrite_default_scope('mmpretrain'), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Unnecessary conv bias')  # mmcv's: XCiT has it
            self.model = import_module('mmpretrain.registry').MODELS.build(
                dict(type='ImageClassifier', backbone=backbone, head=head if old.num_classes else None)
            )
        _set_patch_size(self.model.backbone.patch_embed, old.arch)

    def load(self, path: str) -> nn.Module:
        # MMEngine's loader would turn the names into ours.
        self.model.load_state_dict(_read_untranslated(path)['state_dict'], strict=True)
        return self.eval()

    def forward(self, image: Tensor) -> List[Tensor]:
        """As :meth:`_Ours.forward`."""
        (tokens,) = self.model.extract_feat(image)
        return [tokens] + ([self.model.head.fc(tokens[:, 0])] if self.model.with_head else [])


_IMPLEMENTATIONS = {
    'original classification': _Timm,
    'original self-supervised': _Timm,
    'timm': _Timm,
    'MMPretrain': _MMPretrain,
}


def _require(module: str, name: str, install: str):
    try:
        return import_module(module)
    except (ImportError, AssertionError) as error:  # OpenMMLab asserts the versions of its parts
        raise UsageError(
            f"a file is only kept after {name}'s own XCiT computed the same from it, and {name} cannot be imported "
            f'({" ".join(str(error).split())}). Install it ({install}), or choose --to xcit_mm, which '
            f'needs no other package'
        ) from None
