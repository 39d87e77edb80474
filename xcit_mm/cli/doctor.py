"""``xcit-mm doctor``: what is installed, what runs on which device, what is missing, and the command that fixes it."""

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Dict, List, NamedTuple, Optional

from ..package import PACKAGE, SAME_MODULE

FAMILY = 'pip install "xcit_mm[onedl]"'
# Required modules and the command that installs each; optional ones and what needs them.
REQUIRED: Dict[str, str] = {
    'torch': 'pip install torch torchvision',
    'torchvision': 'pip install torchvision, in the version of this PyTorch',
    'numpy': 'pip install numpy',
    'mmengine': FAMILY,
    'mmcv': FAMILY,
    'mmpretrain': FAMILY,
    'mmdet': FAMILY,
    'mmseg': FAMILY,
}
OPTIONAL: Dict[str, str] = {
    'pycocotools': 'detectors and their metric',
    'matplotlib': 'curves and reports',
    'rich': 'progress bars and tables',
    'onnx': 'xcit-mm export',
    'onnxruntime': 'xcit-mm export',
    'huggingface_hub': 'addresses that begin with hf-hub:',
    'timm': 'xcit-mm benchmark, teachers of distillation',
    'tensorboard': 'xcit-mm train --tensorboard',
    'gradio': 'tools/attention_page.py',
    'sklearn': 'tools/make_digits.py',
    'skimage': 'tools/make_digits.py',
}
PACKAGES = {'sklearn': 'scikit-learn', 'skimage': 'scikit-image'}
LEAST_SPACE = 5e9  # bytes: a training run of S12 with three checkpoints


class Finding(NamedTuple):
    """A line of the report.

    Attributes:
        name (str): What was checked.
        found (str): Its version or state.
        mend (str, optional): The command that fixes it; None if nothing is wrong.
        is_needed (bool): True if the project does not work without it.
    """

    name: str
    found: str
    mend: Optional[str] = None
    is_needed: bool = True


def examine() -> List[Finding]:
    """Check everything. Imports the libraries, which takes some seconds."""
    found = [
        Finding('xcit_mm', f'{importlib.import_module("xcit_mm").__version__} in {PACKAGE}'),
        Finding('Python', f'{platform.python_version()} ({sys.executable}), {platform.platform()}'),
    ]
    found += [_library(name, mend) for name, mend in REQUIRED.items()]
    found += _families()
    found += [_operators(), *_devices()]
    found += [_optional(name, use) for name, use in OPTIONAL.items()]
    found.append(_space())
    return found


def _distribution(module: str) -> Optional[str]:
    for name in SAME_MODULE.get(module, (PACKAGES.get(module, module),)):
        try:
            return f'{name} {importlib.metadata.version(name)}'
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _library(name: str, mend: str) -> Finding:
    version = _distribution(name)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return Finding(name, 'is not installed', mend)
        return Finding(name, f'{version or name} does not import: it needs {error.name}', f'pip install {error.name}')
    except Exception as error:  # compiled parts built for other versions raise many kinds
        line = (str(error).splitlines() or [''])[0][:200]
        hint = 'python -m xcit_mm.mmcv_ops install' if 'mmcv' in str(error) else f'see docs/install.md, or {mend}'
        return Finding(name, f'{version or name} does not import: {type(error).__name__}: {line}', hint)
    return Finding(name, version or str(getattr(module, '__version__', 'installed')))


def _families() -> List[Finding]:
    """Distributions that were installed over each other."""
    found = []
    for module, names in SAME_MODULE.items():
        there = [name for name in names if _is_installed(name)]
        if len(there) > 1:
            found.append(
                Finding(
                    module,
                    f'{" and ".join(there)} are installed over each other',
                    f'pip uninstall -y {" ".join(there)}, then reinstall the one that your other packages need',
                )
            )
    return found


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _operators() -> Finding:
    """Where mmcv's operators come from."""
    from ..mmcv_ops import installation

    try:
        target = installation.find()
    except installation.InstallationError as error:
        return Finding('mmcv operators', 'mmcv is not installed', str(error))
    if target.compiled and not target.trouble:
        return Finding('mmcv operators', f'compiled ({target.compiled[0].name})')
    if target.compiled:
        return Finding(
            'mmcv operators',
            f'compiled, but cannot be loaded ({target.trouble})',
            'python -m xcit_mm.mmcv_ops install --replace',
        )
    if target.state == 'whole':
        return Finding('mmcv operators', 'torchvision and PyTorch, by xcit_mm')
    return Finding('mmcv operators', 'none', 'python -m xcit_mm.mmcv_ops install')


def _devices() -> List[Finding]:
    try:
        import torch
    except Exception:  # reported with the required modules
        return []
    found = [Finding('CPU', f'{os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch')]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            one = torch.cuda.get_device_properties(number)
            found.append(_gpu(torch, number, one))
    elif shutil.which('nvidia-smi'):
        build = torch.version.cuda or 'none'
        found.append(
            Finding(
                'GPU',
                f'nvidia-smi is installed, but PyTorch (CUDA {build}) sees no GPU',
                'install the PyTorch of your driver: https://pytorch.org/get-started/locally',
            )
        )
    else:
        found.append(Finding('GPU', 'none'))
    return found


def _gpu(torch, number: int, one) -> Finding:
    text = f'{one.name}, {one.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}'
    name = f'GPU {number}'
    try:
        torch.ones(8, device=f'cuda:{number}').sum().item()
    except RuntimeError as error:
        return Finding(
            name, f'{text}: {str(error).splitlines()[0]}', 'a PyTorch built for this GPU: https://pytorch.org'
        )
    return Finding(name, text)


def _optional(name: str, use: str) -> Finding:
    version = _distribution(name)
    if version:
        return Finding(name, version, is_needed=False)
    return Finding(name, f'is not installed; for {use}', f'pip install {PACKAGES.get(name, name)}', is_needed=False)


def _space() -> Finding:
    free = shutil.disk_usage('.').free
    text = f'{free / 1e9:.0f} GB free in {os.getcwd()}'
    mend = 'free some, or train with --out-dir on another disk' if free < LEAST_SPACE else None
    return Finding('disk', text, mend, is_needed=False)


def main() -> None:
    argparse.ArgumentParser(
        description='Report what is installed, the devices, what is missing, and the command that fixes it. '
        'The exit code is 1 if a required part is missing.',
        epilog='example: xcit-mm doctor > report.txt',
    ).parse_args()
    findings = examine()
    for one in findings:
        mark = 'ok' if one.mend is None else '!!' if one.is_needed else '--'
        print(f'{mark}  {one.name:16} {one.found}' + (f'\n{"":20} -> {one.mend}' if one.mend else ''))
    wrong = [one for one in findings if one.mend and one.is_needed]
    if wrong:
        print(f'\n{len(wrong)} things to fix, marked !!', file=sys.stderr)
        sys.exit(1)
    print('\nEverything required is installed.')


if __name__ == '__main__':
    main()
