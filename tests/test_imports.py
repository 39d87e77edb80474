"""The rooms of the package stand in one order, and imports point down it: no module imports from a room above its own.

Checkpoints lie below the models, since the models read every published layout by themselves; what needs a model and
its checkpoint (finding the arch, converting) is the room ``conversion``. What was published is data, which the names
of models and the addresses of weights need, so it lies at the bottom.
"""

import ast
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import xcit_mm

PACKAGE = Path(xcit_mm.__file__).parent
# From the ground to the roof; those of one line import nothing of each other.
ORDER = (
    ('errors', 'registry', 'compat', 'published'),
    ('package',),
    ('ops', 'mmcv_ops', 'checkpoint'),
    ('models', 'large_images'),
    ('datasets', 'selfsup'),
    ('evaluation', 'conversion'),
    ('checks',),
    ('resilience',),
    ('engine',),
    ('visualization',),
    ('apis',),
    ('model_zoo',),
    ('benchmark',),
    ('cli',),
    ('__main__',),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}


def modules() -> Dict[str, Path]:
    """The files of the package by the names of their modules."""
    files = [p for p in sorted(PACKAGE.rglob('*.py')) if p.relative_to(PACKAGE).parts[0] not in ('configs', '.mim')]
    return {'.'.join(('xcit_mm', *p.relative_to(PACKAGE).with_suffix('').parts)): p for p in files}


def imports(name: str, path: Path, known: Set[str]) -> Iterator[Tuple[int, str]]:
    """Line and module of each import of the package's own, also those inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(name.split('.')[: -node.level]) if node.level else ''
            base = '.'.join(part for part in (base, node.module) if part)
            found = [f'{base}.{alias.name}' if f'{base}.{alias.name}' in known else base for alias in node.names]
        else:
            continue
        for module in found:
            if module.split('.')[0] == 'xcit_mm':
                yield node.lineno, f'{module}.__init__' if f'{module}.__init__' in known else module


def graph() -> Dict[str, List[Tuple[int, str]]]:
    files = modules()
    known = set(files) | {name[: -len('.__init__')] for name in files if name.endswith('.__init__')}
    return {name: list(imports(name, path, known)) for name, path in files.items()}


def room(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


def test_every_room_has_its_floor():
    unknown = {room(name) for name in modules()} - set(FLOOR) - {'__init__'}
    assert not unknown, f'add {unknown} to ORDER'


def test_imports_point_down():
    upward = [
        f'{name}:{line} imports {module}'
        for name, found in graph().items()
        for line, module in found
        # xcit_mm/__init__.py is the door, and names what lies behind it.
        if room(name) != '__init__' and room(module) != room(name) and FLOOR[room(module)] >= FLOOR[room(name)]
    ]
    assert not upward, '\n'.join(upward)


def test_no_circle():
    edges = {name: {module for _, module in found if module != name} for name, found in graph().items()}
    while True:  # take away what imports nothing that is left
        free = {name for name, found in edges.items() if not found & set(edges)}
        if not free:
            break
        edges = {name: found for name, found in edges.items() if name not in free}
    assert not edges, f'circular imports among {sorted(edges)}'


def test_tests_share_helpers_through_modules_made_for_it():
    """Those of ``tests/helpers``; nothing is imported from another test or from ``conftest.py``."""
    tests = Path(__file__).parent
    found = [
        f'{path.relative_to(tests)}:{node.lineno}'
        for path in sorted(tests.rglob('*.py'))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ''] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        if any(part == 'conftest' or part.startswith('test_') for part in name.split('.'))
        or name.split('.')[0] == 'tests'
    ]
    assert not found, f'move what is shared into tests/helpers: {", ".join(found)}'
