"""Paths of the installed configs, and names of the published models."""

import difflib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Dict, List, Optional

PACKAGE = Path(__file__).resolve().parent
# Distributions by the module that they install.
SAME_MODULE = {
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}


def mim_dir() -> Path:
    """The folder of ``configs``, ``tools`` and ``model-index.yml``: ``.mim`` in an installation, else the checkout.

    Raises:
        FileNotFoundError: If neither has them.
    """
    for folder in (PACKAGE / '.mim', PACKAGE.parent):
        if (folder / 'model-index.yml').is_file() and (folder / 'configs').is_dir():
            return folder
    raise FileNotFoundError(f'xcit_mm: there are no configs in {PACKAGE / ".mim"}; install xcit_mm again')


def config_path(name: str) -> str:
    """The file of an installed config, for ``_base_`` of a config elsewhere.

    ``_base_ = __import__('xcit_mm').config_path('mask_rcnn_xcit_s12_8_3x_coco')``

    Args:
        name (str): Name of a config of this package, or its path in ``configs``, with or without ``.py``; or a name
            of :func:`list_models`. With ``package::`` before it, a config of another package, such as
            'mmseg::_base_/models/upernet_r50.py', which MMEngine itself does not find where the package is installed
            as onedl-mmsegmentation.

    Returns:
        str: An absolute path.

    Raises:
        FileNotFoundError: If there is no such config; the message names similar ones.
    """
    package, _, relative = name.rpartition('::')
    configs = (_mim_dir_of(package) if package else mim_dir()) / 'configs'
    relative = relative if relative.endswith('.py') else f'{relative}.py'
    path = configs / relative
    if path.is_file():
        return str(path)
    if not package:
        from .published import find_weights

        weights = find_weights(name)
        if weights:
            return str(mim_dir() / weights.config)
    known = [str(p.relative_to(configs))[: -len('.py')] for p in sorted(configs.rglob('*.py'))]
    close = difflib.get_close_matches(relative[: -len('.py')], known, n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(close)}?' if close else f'see the files in {configs}'
    raise FileNotFoundError(f'{package or "xcit_mm"} has no config {name!r}; {hint}')


def _mim_dir_of(package: str) -> Path:
    """The folder of another package's configs, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f'{package} is not installed, so there are no configs of it')
    return Path(spec.submodule_search_locations[0]) / '.mim'


def warn_of_mixed_packages() -> None:
    """Warn on stderr of packages that overwrite each other's files: which files remain is undefined.

    OpenMMLab's original releases and their continuation have the same modules under other package names, and so have
    mmcv and mmcv-lite, which brings the original mmengine with it.
    """
    for module, names in SAME_MODULE.items():
        found = [name for name in names if _is_installed(name)]
        if len(found) > 1:
            print(
                f'{" and ".join(found)} are both installed, and each overwrites files of the other in {module}. '
                f'Uninstall them (pip uninstall -y {" ".join(found)}), then reinstall the one that your project needs',
                file=sys.stderr,
                flush=True,
            )


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def load_config(name: str) -> dict:
    """The variables of a config of this package, all its bases merged, for pure-Python configs.

    ``with read_base(): from xcit_mm.configs.NAME.config import *`` is the way to inherit from them.
    """
    from mmengine.config import Config

    return Config.fromfile(config_path(name)).to_dict()


def model_index() -> Dict[str, dict]:
    """Entries of the metafile by model name, with ``Config`` and ``Weights`` among the keys.

    After those of the metafile come the other names of :func:`list_models`, with these two keys and ``Name`` alone.
    """
    import yaml

    from .published import all_weights

    folder = mim_dir()
    entries: Dict[str, dict] = {}
    for metafile in yaml.safe_load((folder / 'model-index.yml').read_text(encoding='utf-8'))['Import']:
        models = yaml.safe_load((folder / metafile).read_text(encoding='utf-8'))['Models']
        entries.update((model['Name'], model) for model in models)
    for weights in all_weights():
        entries.setdefault(weights.name, dict(Name=weights.name, Config=weights.config, Weights=weights.address))
    return entries


def list_models(pattern: str = '*', source: Optional[str] = None) -> List[str]:
    """Names of all published weights of XCiT.

    Each is a name for :func:`create_backbone`, and ``xcit_mm://NAME`` an address for every place that takes a
    checkpoint; :func:`model_info` tells more of it.

    Args:
        pattern (str): Shell-style, such as ``'xcit_s12_*'`` or ``'*small_12_p8*'``.
        source (str, optional): Only those of 'XCiT' (the original release), 'timm', 'MMPretrain', 'DINO' or
            'RobustBench'.
    """
    import fnmatch

    from .published import all_weights

    names = [weights.name for weights in all_weights() if source in (None, weights.source)]
    return sorted(fnmatch.filter(names, pattern))


def model_info(name: str):
    """Source, arch, patch size, data, licence, published number, address and config of published weights.

    Args:
        name (str): A name of :func:`list_models`, or of the original release, such as 'xcit_small_12_p8_224_dist'.

    Returns:
        xcit_mm.published.Weights

    Raises:
        ValueError: If there are no published weights of that name; the message names similar ones.
    """
    from .published import find_weights

    found = find_weights(name)
    if found is None:
        close = difflib.get_close_matches(name.lower(), list_models(), n=3, cutoff=0.5)
        hint = f'did you mean {" or ".join(close)}?' if close else 'list_models() has all names'
        raise ValueError(f'there are no published weights of the name {name!r}; {hint}')
    return found
