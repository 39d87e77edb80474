"""Loaders that MMEngine calls for local files and for addresses.

MMEngine's own fall back to unpickling whatever a file asks for. These never do: only plain data and the types in the
allow-list below are read. They also translate XCiT files of every layout, so ``init_cfg``, ``load_from`` and
``tools/test.py`` take them as published; files of other models pass through unchanged.
"""

import argparse
import os
import pickle
import re
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Callable, Dict, Optional

import numpy as np
import torch
from mmengine.dist import barrier
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version
from safetensors import safe_open
from safetensors.torch import load_file as load_safetensors

from ..errors import CheckpointError, printable
from . import sources
from .contents import check_tensors, check_values, checked
from .inspection import NotAllowed, inspect_pth
from .layouts import locate, unwrapped
from .stem import stated_patch_size


def _history_buffer_method(cls: type, name: str):
    """Replaces ``getattr``, by which pickled HistoryBuffers of MMEngine name their statistics."""
    if cls is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr({cls!r}, {name!r})')
    return getattr(HistoryBuffer, name)


def _safe_globals() -> Dict[str, Callable]:
    """Allow-list: types and functions besides tensors and containers that a file may use, by full name.

    The original release's runs hold their Namespace; MMEngine's checkpoints hold HistoryBuffers and numpy values.
    """
    # numpy 1.26 has a numpy._core too, but an empty one.
    core: Any = getattr(np, '_core' if digit_version(np.__version__) >= digit_version('2.0') else 'core')
    dtypes = {type(np.dtype(kind)) for kind in ('bool', 'i4', 'i8', 'u1', 'u4', 'f4', 'f8')}
    numpy_globals = [core.multiarray._reconstruct, core.multiarray.scalar, np.ndarray, np.dtype, *dtypes]
    found = {f'{g.__module__}.{g.__qualname__}': g for g in (argparse.Namespace, HistoryBuffer, *numpy_globals)}
    # NumPy 2 renamed its private package; a file names the one that wrote it.
    for name, item in list(found.items()):
        found[name.replace('numpy._core.', 'numpy.core.')] = item
        found[name.replace('numpy.core.', 'numpy._core.')] = item
    return {**found, 'builtins.getattr': _history_buffer_method}


SAFE_GLOBALS = _safe_globals()


def _safe_torch_load(file: str, map_location):
    """:func:`torch.load` that builds nothing but tensors, containers and :data:`SAFE_GLOBALS`."""
    inspect_pth(file, SAFE_GLOBALS)
    if digit_version(torch.__version__) >= digit_version('2.6'):
        with torch.serialization.safe_globals([(item, name) for name, item in SAFE_GLOBALS.items()]):
            return torch.load(file, map_location=map_location, weights_only=True)
    return torch.load(file, map_location=map_location, pickle_module=_RestrictedPickle, weights_only=False)


class _RestrictedPickle:
    """A pickle module with an allow-list, for PyTorch < 2.6, whose ``weights_only`` has none."""

    _TORCH = {
        'torch._utils': ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'),
        'torch': (*(name for name in dir(torch) if name.endswith('Storage')), 'Size', 'device'),
        'torch.storage': ('TypedStorage', 'UntypedStorage'),
        'collections': ('OrderedDict', 'Counter'),
        'builtins': ('set', 'frozenset', 'complex', 'slice'),
        '_codecs': ('encode',),
    }

    class Unpickler(pickle._Unpickler):  # in Python, for the reason that inspection.py gives
        def find_class(self, module, name):
            module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
            if f'{module}.{name}' in SAFE_GLOBALS:
                return SAFE_GLOBALS[f'{module}.{name}']
            if name in _RestrictedPickle._TORCH.get(module, ()):
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name}')

    @classmethod
    def load(cls, file, **kwargs):
        return cls.Unpickler(file, **kwargs).load()


def load_checkpoint_file(path: str, map_location='cpu'):
    """Read a ``.pth`` or ``.safetensors`` file without running code from it.

    Args:
        path (str): The file.
        map_location: As for :func:`torch.load`.

    Returns:
        dict: The file; for an XCiT file of any layout ``{'state_dict', 'meta'}`` with this project's names.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it cannot be read, or asks for code.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no checkpoint file at {path}')
    try:
        if path.endswith('.safetensors'):
            checkpoint = {'state_dict': _load_safetensors(path, str(map_location or 'cpu'))}
        else:
            checkpoint = _safe_torch_load(path, map_location)
    except NotAllowed as error:
        raise CheckpointError(_refused(path, str(error))) from None
    except Exception as error:  # a damaged file can make a reader raise anything
        raise CheckpointError(_reading_failed(path, str(error))) from None
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, expected a dict of tensors')
    try:
        return _translate(checkpoint, path)
    except CheckpointError as error:
        raise error.naming(path) from None
    except Exception as error:  # a file may attach anything to its tensors and dicts
        reason = printable(f'{type(error).__name__}: {error}', 200)
        raise CheckpointError(
            f'{path} was read, but what it holds is not what torch.save writes of a model ({reason}). Expected a dict '
            f'of tensors by name'
        ) from None


def _load_safetensors(path: str, device: str) -> OrderedDict:
    """The tensors, with the patch size in their metadata if the file states it."""
    with safe_open(path, 'pt') as file:
        stated = (file.metadata() or {}).get('patch_size')
    state: Any = OrderedDict(load_safetensors(path, device=device))
    state._metadata = {'': {'patch_size': int(stated)}} if stated in ('4', '8', '16') else {}
    return state


def _refused(path: str, name: str) -> str:
    return (
        f'{path} was refused: it asks to run {printable(name)!r} while loading, and only tensors and plain '
        f'data are read from checkpoints. If you trust its origin, re-save its tensors alone where it was made: '
        f"torch.save({{'state_dict': model.state_dict()}}, path)"
    )


def _reading_failed(path: str, reason: str) -> str:
    refused = re.search(r'GLOBAL ([\w.]+)', reason)
    if refused:
        return _refused(path, refused[1])
    with open(path, 'rb') as file:
        start = file.read(16)
    return (
        f'{path} is not a checkpoint that can be read: {os.path.getsize(path)} bytes, beginning with {start!r}, '
        f'expected a file of torch.save or safetensors. It may be cut off or a saved web page; download it again. '
        f'({printable(reason.splitlines()[0], 200) if reason else "unexpected end of file"})'
    )


def _translate(checkpoint: dict, path: str) -> dict:
    """Record the file in the metadata of its tensors, and rename those of a bare backbone to a whole model's.

    A file of a whole OpenMMLab model keeps its names, since the model may be MMPretrain's own XCiT; this project's
    backbone translates them itself.
    """
    checkpoint = checked(checkpoint)
    found = locate(checkpoint)
    layout, tensors = found.layout, found.tensors
    metadata = getattr(checkpoint.get('state_dict', checkpoint), '_metadata', {})
    whole_model = found.place == 'state_dict' and (
        # In a file of MMEngine names have a meaning: 'teacher.backbone.…' is a part of a model that has a teacher.
        isinstance(checkpoint.get('meta'), dict)
        if found.prefix
        else any(key.startswith('backbone.') for key in tensors)
    )
    if layout is not None:
        if whole_model:
            check_values(checkpoint['state_dict'])
        check_tensors(tensors)
        if found.elsewhere:
            left = ', '.join(found.elsewhere)
            _say(f'{path} holds several models: {found.title} is taken, {left} not. To load another, save it alone')
    if layout is not None and not whole_model:
        checkpoint = {'state_dict': OrderedDict(layout.to_native(tensors)), 'meta': checkpoint.get('meta', {})}
    state: Any = checkpoint.get('state_dict')
    if isinstance(state, dict):
        names = unwrapped if whole_model and layout is not None else str
        state = checkpoint['state_dict'] = OrderedDict((names(key), value) for key, value in state.items())
    else:
        state = checkpoint = OrderedDict(checkpoint)
    state._metadata = SourceMetadata(metadata, path, layout.name if layout else None)
    return checkpoint


@lru_cache(maxsize=None)  # a tool may read a file more than once
def _say(message: str) -> None:
    print_log(message, 'current')


class SourceMetadata(OrderedDict):
    """Metadata of a state dict that tells every module which file its tensors come from.

    MMEngine and PyTorch look up each module's entry by its prefix and hand it to the module; this is the only way from
    the file to the module, since the tensors themselves are copied into new dicts on the way.
    """

    def __init__(self, original=(), path: Optional[str] = None, layout: Optional[str] = None):
        super().__init__(original)
        self.source = dict(path=path, layout=layout, patch_size=stated_patch_size(self, path))

    def get(self, key, default=None):
        return {**(super().get(key) or default or {}), 'source': self.source}


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename, map_location):
    """Loader for local files: :func:`load_checkpoint_file`."""
    return load_checkpoint_file(filename, map_location)


@CheckpointLoader.register_scheme(prefixes=(*sources.WEB, *sources.HUB, sources.ZOO), force=True)
def load_from_address(filename, map_location=None):
    """Loader for addresses (see :mod:`sources`): download once per machine, then read as a local file.

    A download that is not a checkpoint, such as an error page, is deleted.
    """
    address = sources.resolve(filename)
    checkpoint = failure = None
    if int(os.environ.get('LOCAL_RANK', 0)) == 0:
        try:
            checkpoint = _fetch_and_read(address, map_location)
        except CheckpointError as error:
            failure = error
    barrier()
    if failure is not None:
        raise failure
    if checkpoint is not None:
        return checkpoint
    try:
        return load_checkpoint_file(sources.fetch(address, local_only=True), map_location)
    except FileNotFoundError:
        raise CheckpointError(f'{address} was not loaded; the first process of this machine says why') from None


def _fetch_and_read(address: str, map_location) -> dict:
    """Download the file unless it is cached, and read it."""
    is_web = address.startswith(sources.WEB)
    was_there = not is_web or os.path.exists(sources.cache_path(address))
    path = sources.fetch(address)
    try:
        return load_checkpoint_file(path, map_location)
    except CheckpointError as error:
        if not was_there and path == sources.cache_path(address):
            sources.discard(path)
            raise CheckpointError(
                f'what {address} sent was not kept, and the next try downloads it again: {error}'
            ) from None
        what_to_do = f'Remove that file to have {address} downloaded again' if is_web else f'It is {address}'
        raise CheckpointError(f'{error}. {what_to_do}') from None


def read_checkpoint(source: str, map_location='cpu') -> dict:
    """:func:`load_checkpoint_file` for a file or an address."""
    return (load_from_address if sources.is_address(source) else load_checkpoint_file)(source, map_location)
