"""Where checkpoints come from: web addresses, repositories of the Hugging Face hub, and the names of the model zoo.

Each leads to a file of this machine. A download is kept under its whole address, since many addresses end in the same
file name; where an address or the hub tells the SHA-256 of a file, it is compared.
"""

import difflib
import hashlib
import os
import re
from contextlib import suppress
from typing import List, Optional
from urllib.parse import urlparse

import torch

from ..errors import CheckpointError, printable

WEB = ('http://', 'https://')
HUB = ('hf-hub:', 'hf_hub:')  # timm's prefixes, the second one from before 2023
ZOO = 'xcit_mm://'
_HUB_ADDRESS = re.compile(r'hf[-_]hub:([\w.-]+(?:/[\w.-]+)?)(?:@([^:@]+))?(?::([^:@]+))?')
# What timm and transformers call a model's weights, in the order in which they are preferred.
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
_PICKLES = ('.bin', '.pth', '.pt', '.tar', '.ckpt')
# PyTorch's convention: eight digits of the SHA-256 or more, at the end of the name. A date is none.
_HASH = re.compile(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})(?:\.[A-Za-z]\w*)+$')


def is_address(source: str) -> bool:
    """True if it names something to fetch, and no file of this machine."""
    return '://' in source or source.startswith(HUB)


def resolve(source: str) -> str:
    """The address behind ``xcit_mm://NAME``, for a name of :func:`xcit_mm.list_models`; other sources as they are.

    Raises:
        CheckpointError: If there are no published weights of that name.
    """
    if not source.startswith(ZOO):
        return source
    from ..published import find_weights, weights_by_name

    name = source[len(ZOO) :]
    found = find_weights(name)
    if found is None:
        close = difflib.get_close_matches(name.lower(), weights_by_name(), n=3, cutoff=0.5)
        hint = f'did you mean {" or ".join(close)}?' if close else 'xcit_mm.list_models() has all names'
        raise CheckpointError(f'there are no published weights of the name {printable(name)!r}; {hint}')
    return found.address


def fetch(source: str, local_only: bool = False) -> str:
    """The file behind an address.

    Args:
        source (str): ``http://…``, ``https://…`` or ``hf-hub:OWNER/NAME[@REVISION][:FILE]``.
        local_only (bool): Take what another process has fetched just now, and look nowhere else.

    Raises:
        CheckpointError: If it cannot be fetched, or is not the file that its address promises.
    """
    return _fetch_hub(source, local_only) if source.startswith(HUB) else _fetch_web(source, local_only)


# Web addresses


def cache_path(address: str) -> str:
    """Where a download is kept: in PyTorch's cache, in a folder that belongs to this one address."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return os.path.join(torch.hub.get_dir(), 'checkpoints', 'xcit_mm', digest, _file_name(address))


def _shared_path(address: str) -> str:
    """Where other programs keep a download: under its file name alone, of whichever address came first."""
    return os.path.join(torch.hub.get_dir(), 'checkpoints', _file_name(address))


def _file_name(address: str) -> str:
    name = re.sub(r'[^\w.-]', '_', os.path.basename(urlparse(address).path))
    return name if name.strip('.') else 'checkpoint'


def _fetch_web(address: str, local_only: bool) -> str:
    path = cache_path(address)
    expected = _HASH.search(os.path.basename(path))
    shared = _shared_path(address)
    if expected and not os.path.exists(path) and os.path.isfile(shared) and _sha256(shared).startswith(expected[1]):
        return shared
    if not os.path.exists(path) and not local_only:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, path, expected and expected[1])
        except (OSError, RuntimeError, ValueError) as error:
            _remove_folder(path)
            raise CheckpointError(_not_downloaded(address, path, error)) from None
    elif expected and os.path.exists(path):
        _check_hash(path, expected[1], f'Remove that file to have {address} downloaded again')
    return path


def _not_downloaded(address: str, path: str, error: Exception) -> str:
    text = f'{address} could not be downloaded: {error}. '
    twin = hub_twin(address)
    if twin:
        text += f'The Hugging Face hub has the same weights as {twin}. '
    shared = _shared_path(address)
    if os.path.isfile(shared):
        text += f'There is a file {shared}, of an address that nobody knows; if it is the right one, name it. '
    return text + f'Without network, fetch it elsewhere and put it at {path}, or name a local file'


def discard(path: str) -> None:
    """Remove a download that turned out to be no checkpoint."""
    os.remove(path)
    _remove_folder(path)


def _remove_folder(path: str) -> None:
    with suppress(OSError):  # another process is downloading into it
        os.rmdir(os.path.dirname(path))


def hub_twin(address: str) -> Optional[str]:
    """The hub's address of the weights that a server of the original release or of MMPretrain has."""
    from ..published import all_models

    for model in all_models():
        if model.timm_name and address in (model.weights, model.weights_mmpretrain):
            return f'hf-hub:timm/{model.timm_name}'
    return None


# The Hugging Face hub


def _fetch_hub(address: str, local_only: bool) -> str:
    parts = _HUB_ADDRESS.fullmatch(address)
    if parts is None:
        raise CheckpointError(
            f'{printable(address)} is no address of the Hugging Face hub; expected hf-hub:OWNER/NAME, and after it '
            f'@REVISION and :FILE where needed, such as hf-hub:timm/xcit_small_12_p8_224.fb_dist_in1k@main'
        )
    try:
        import huggingface_hub
        from huggingface_hub.utils import EntryNotFoundError
    except ImportError:
        raise CheckpointError(
            f'{address} needs the package huggingface_hub, which is not installed: pip install huggingface_hub'
        ) from None
    repository, revision, file = parts.groups()
    reason: Optional[Exception] = None
    try:
        for name in [file] if file else _HUB_FILES:
            try:
                path = huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=local_only)
            except EntryNotFoundError as error:  # not in the repository, or not cached and not reachable
                reason = reason or error
            else:
                _check_blob(path, address)
                return path
        if file is None:
            name = _only_weights(address, _list_files(repository, revision, local_only))
            if name:
                return _fetch_hub(f'{address}:{name}', local_only)
    except CheckpointError:
        raise
    except Exception as error:  # the client raises errors of its own and of two libraries for the network
        reason = error
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    raise CheckpointError(
        f'{address} could not be fetched from the Hugging Face hub ({type(reason).__name__}: '
        f'{printable(" ".join(lines), 400)}). Without network (or with HF_HUB_OFFLINE=1) it has to be in the cache: '
        f'hf download {repository} {file or _HUB_FILES[0]}{f" --revision {revision}" if revision else ""}. A private '
        f'or gated one needs HF_TOKEN, a mirror HF_ENDPOINT'
    )


def _list_files(repository: str, revision: Optional[str], local_only: bool) -> List[str]:
    """The files of a repository, or of what the cache has of it."""
    import huggingface_hub

    if not local_only:
        try:
            return huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
        except Exception:  # as when there is no network
            pass
    try:
        folder = huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True)
    except Exception:  # nothing of it is there
        return []
    found = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    return [os.path.relpath(path, folder).replace(os.sep, '/') for path in found]


def _only_weights(address: str, files: List[str]) -> Optional[str]:
    """The one file of weights among others, safetensors before pickles; None if there is none."""
    found = [name for name in files if name.endswith('.safetensors')]
    found = found or [name for name in files if name.endswith(_PICKLES)]
    if len(found) > 1:
        raise CheckpointError(
            f'{address} has {len(found)} files of weights ({", ".join(map(printable, sorted(found)[:6]))}); name one: '
            f'{address}:{printable(sorted(found)[0])}'
        )
    return found[0] if found else None


def _check_blob(path: str, address: str) -> None:
    """The hub's cache calls a large file by its SHA-256."""
    blob = os.path.basename(os.path.realpath(path))
    if re.fullmatch('[0-9a-f]{64}', blob):
        _check_hash(path, blob, f'Remove {os.path.realpath(path)} to have {address} downloaded again')


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for part in iter(lambda: file.read(1 << 20), b''):
            digest.update(part)
    return digest.hexdigest()


def _check_hash(path: str, expected: str, what_to_do: str) -> None:
    found = _sha256(path)
    if not found.startswith(expected):
        raise CheckpointError(
            f'{path} is not the file that was published: its SHA-256 begins with {found[: len(expected)][:16]}, '
            f'expected {expected[:16]}. {what_to_do}'
        )
