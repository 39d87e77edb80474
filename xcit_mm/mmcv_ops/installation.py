"""Putting the operators into mmcv's folder, taking them out, and saying which are in use.

Nothing here imports mmcv, PyTorch or the rest of this package, so that it works, and can tell what is wrong, whatever
state they are in.
"""

import ast
import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

NAME = '_ext.py'
SET_ASIDE = '.set-aside-by-xcit_mm'  # added to the name of a compiled extension that does not load
TEXT = '''\
# Written by `python -m xcit_mm.mmcv_ops install`; `python -m xcit_mm.mmcv_ops uninstall` removes it.
"""mmcv's operators by torchvision and PyTorch. Python prefers a compiled `_ext.*.so` beside this file."""

try:
    from xcit_mm.mmcv_ops.ext import *
    from xcit_mm.mmcv_ops.ext import __getattr__
except ModuleNotFoundError as error:
    if (error.name or '').split('.')[0] != 'xcit_mm':
        raise
    raise ImportError(
        f"mmcv's operators are those of xcit_mm here, and there is no xcit_mm. Install it again, or delete {__file__} "
        'and install mmcv with operators of its own'
    ) from error
# The end.
'''


class InstallationError(Exception):
    """What was found and what to do."""


class Target(NamedTuple):
    """mmcv as this Python would import it."""

    folder: Path
    compiled: List[Path]  # extensions that Python would prefer to ours
    trouble: Optional[str]  # why the compiled extension does not load

    @property
    def file(self) -> Path:
        return self.folder / NAME

    @property
    def state(self) -> str:
        """State of our file: 'absent', 'whole', 'broken' (ours, but cut off or of another version) or 'foreign'."""
        try:
            text = self.file.read_text(encoding='utf-8', errors='replace')
        except FileNotFoundError:
            return 'absent'
        except OSError as error:
            raise InstallationError(f'{self.file} cannot be read: {error}') from error
        if text == TEXT:
            return 'whole'
        start = TEXT.splitlines()[0]
        ours = text.startswith(start) or start.startswith(text.strip())
        return 'broken' if ours else 'foreign'


def find() -> Target:
    """Find mmcv and see whether it has compiled operators that work.

    Raises:
        InstallationError: If this Python has no mmcv.
    """
    # Ignore a folder mmcv in the current one, such as a checkout; an editable installation counts.
    path = [entry for entry in sys.path if os.path.abspath(entry or '.') != os.getcwd()]
    spec = PathFinder.find_spec('mmcv', path) or importlib.util.find_spec('mmcv')
    if spec is None or not spec.origin:
        remains = f' (only remains of one, in {next(iter(spec.submodule_search_locations or ()))})' if spec else ''
        raise InstallationError(
            f'{sys.executable} has no mmcv{remains}. Install one, without a compiler: pip install mmcv-lite, or '
            'pip install onedl-mmcv; or run this with the Python that has it'
        )
    folder = Path(spec.origin).parent
    if not (folder / 'ops').is_dir():
        raise InstallationError(f'the mmcv in {folder} has no folder ops; mmcv 2.0 or later is needed')
    compiled = [folder / f'_ext{suffix}' for suffix in EXTENSION_SUFFIXES if (folder / f'_ext{suffix}').exists()]
    load = (
        'import torch, sys, importlib.util as util; util.module_from_spec(util.spec_from_file_location(*sys.argv[1:]))'
    )
    return Target(folder, compiled, _run(load, 'mmcv._ext', str(compiled[0])) if compiled else None)


def install(replace: bool = False) -> str:
    """Write ``_ext.py`` into mmcv's folder and try it; return what was done.

    Args:
        replace (bool): Set a compiled extension that does not load aside; :func:`uninstall` puts it back.

    Raises:
        InstallationError: If there is a compiled extension in the way, or the file cannot be written or does not work;
            then everything is as it was.
    """
    target = find()
    if target.compiled and not target.trouble:
        raise InstallationError(
            f'{target.compiled[0]} has compiled operators that work; they are used. For those of xcit_mm install an '
            'mmcv without any: pip uninstall the one here and pip install mmcv-lite'
        )
    if target.compiled and not replace:
        raise InstallationError(
            f'{target.compiled[0]} has compiled operators that do not load, probably made for another PyTorch: '
            f'{target.trouble}. `python -m xcit_mm.mmcv_ops install --replace` sets them aside and uses ours'
        )
    if target.state == 'foreign':
        raise InstallationError(f'{target.file} was not written by xcit_mm; move it away if you do not need it')
    if target.state == 'whole' and not target.compiled:
        _try(target)
        return f'{target.file} is there already, and works'

    before = target.file.read_bytes() if target.file.exists() else None
    try:
        for path in target.compiled:
            os.replace(path, f'{path}{SET_ASIDE}')
        _write(target.file, TEXT.encode())
        _try(target)
    except BaseException:
        for path in target.compiled:
            if os.path.exists(f'{path}{SET_ASIDE}'):
                os.replace(f'{path}{SET_ASIDE}', path)
        if before is None:
            target.file.unlink() if target.file.exists() else None
        else:
            _write(target.file, before)
        raise
    return f'wrote {target.file}: mmcv has its operators from torchvision and PyTorch now'


def uninstall() -> str:
    """Remove ``_ext.py`` and put back what :func:`install` had set aside; return what was done."""
    target = find()
    state = target.state
    if state == 'foreign':
        raise InstallationError(f'{target.file} was not written by xcit_mm, so it is left alone')
    aside = sorted(target.folder.glob(f'_ext*{SET_ASIDE}'))
    try:
        if state != 'absent':
            target.file.unlink()
        for path in aside:
            os.replace(path, str(path)[: -len(SET_ASIDE)])
    except OSError as error:
        raise _not_writable(target.folder, error) from error
    back = f', and put back {", ".join(path.name[: -len(SET_ASIDE)] for path in aside)}' if aside else ''
    return f'removed {target.file}{back}' if state != 'absent' or aside else f'there is no {target.file}: nothing to do'


def status() -> str:
    """Which mmcv this Python has, and which of its operators come from where."""
    target = find()
    lines = [f'Python      {sys.executable}', f'mmcv        {target.folder}']
    names = _operator_names(target.folder)
    if target.compiled:
        lines.append(
            f'compiled    {target.compiled[0].name}, ' + (target.trouble or f'loads: all {len(names)} operators')
        )
    state = target.state
    known = {'absent': 'not there', 'whole': 'there', 'broken': 'cut off or of another version: install it again'}
    lines.append(
        f'{NAME}     {known.get(state, "not by xcit_mm")}'
        + (', not used' if target.compiled and state != 'absent' else '')
    )
    if state == 'whole' and not target.compiled:
        sources = _sources()
        for source in ('torchvision', 'PyTorch'):
            lines += _listed(source, [name for name in names if sources.get(name) == source])
        lines += _listed('none', [name for name in names if name not in sources])
    elif not target.compiled:
        lines.append('operators   none: `python -m xcit_mm.mmcv_ops install` brings those of torchvision and PyTorch')
    elif target.trouble:
        lines.append(
            'operators   none: `python -m xcit_mm.mmcv_ops install --replace` uses those of torchvision and PyTorch'
        )
    return '\n'.join(lines)


def _listed(label: str, names: List[str]) -> List[str]:
    import textwrap

    return textwrap.wrap(', '.join(names), 118, initial_indent=f'{label:12}', subsequent_indent=' ' * 12)


def _sources() -> Dict[str, str]:
    from .ext import OPERATORS, __all__

    return {**dict.fromkeys(__all__, 'PyTorch'), **OPERATORS}


def _operator_names(folder: Path) -> List[str]:
    """The operators that mmcv's modules look up, read from their source."""
    names = set()
    for path in (folder / 'ops').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_ext' and len(node.args) == 2:
                names.update(ast.literal_eval(node.args[1]))
    return sorted(names)


def _try(target: Target) -> None:
    """Try mmcv's operators in another process; raise if they do not work."""
    code = (
        'import torch; from mmcv.ops import RoIAlign, nms; '
        'boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]]); '
        'kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist(); '
        'assert kept == [0, 2], f"nms kept {kept} in place of [0, 2]"'
    )
    trouble = _run(code)
    if trouble:
        raise InstallationError(
            f'with the operators of xcit_mm, mmcv in {target.folder} does not work: {trouble}. They need xcit_mm '
            'installed in this Python (pip install -e .), PyTorch, and the torchvision that belongs to it'
        )


def _run(code: str, *arguments: str) -> Optional[str]:
    """Run code in another process of this Python; the last line of its output if that fails, else None."""
    # Not run in the current folder, which may be a checkout with a folder mmcv.
    command = [sys.executable, '-c', code, *arguments]
    result = subprocess.run(
        command,
        cwd=tempfile.gettempdir(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lines = result.stdout.decode(errors='replace').strip().splitlines()
    return None if result.returncode == 0 else (lines or [f'ended with code {result.returncode}'])[-1][:300]


def _write(path: Path, content: bytes) -> None:
    """Replace a file atomically."""
    draft = path.with_name(f'{path.name}.{os.getpid()}.new')
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        if draft.exists():
            draft.unlink()
        raise _not_writable(path.parent, error) from error


def _not_writable(folder: Path, error: OSError) -> InstallationError:
    return InstallationError(
        f'{folder} cannot be written to: {error.strerror or error}. Run this as the user who installed mmcv, or use a '
        'virtual environment of your own (python -m venv)'
    )
