"""The tables, and their place in the docs."""

import json
import os
from pathlib import Path
from typing import List, Sequence

from ...errors import UsageError
from .speed import ratios

MARKS = '<!-- gpu_check -->', '<!-- /gpu_check -->'
LEAST_SHARE = 0.01  # of a kernel that is listed
SECTIONS = ('Correctness', 'Kernels', 'Speed', 'Profile', 'Detector', 'Curve')


def write(found: dict, folder: Path) -> None:
    """Write both files atomically."""
    for name, text in (('gpu_check.json', json.dumps(found, indent=1)), ('gpu_check.md', markdown(found))):
        draft = folder / f'{name}.new'
        draft.write_text(text + '\n', encoding='utf-8')
        os.replace(draft, folder / name)


def markdown(found: dict) -> str:
    """The tables for the docs."""
    about = found['machine']
    of_section = {name: [r for r in found['records'] if r['section'] == name] for name in SECTIONS}
    versions = ', '.join(
        f'{name} {about[name]}' for name in ('cuda', 'driver', 'triton', 'timm', 'mmpretrain') if about.get(name)
    )
    parts = [f'{about["about"]}, {versions}; {about["date"]}, `tools/gpu_check.py`.']
    for name, tables in (
        ('Speed', _speed),
        ('Detector', _detector),
        ('Curve', _curve),
        ('Kernels', _kernels),
        ('Profile', _profile),
    ):
        parts += tables(of_section[name])
    rows = [
        [r['check'], r['name'], f'{r["value"]:.1e}', '' if r['limit'] is None else f'{r["limit"]:.0e}', _verdict(r)]
        for r in _told([r for r in found['records'] if 'value' in r])
    ]
    if rows:
        parts += ['What was compared, of each check the value nearest to its limit:']
        parts += [_table(['check', 'value of', 'found', 'limit', ''], rows)]
    errors = [f'- {r["check"]}: {r["error"]}' for r in found['records'] if 'error' in r]
    parts += ['Failed:\n\n' + '\n'.join(errors)] if errors else []
    parts += ['Not measured for lack of time: ' + '; '.join(found['left_out']) + '.'] if found['left_out'] else []
    return '\n\n'.join(parts)


def _speed(records: Sequence[dict]) -> List[str]:
    rows = [
        [
            row['setting'].replace(' eager,', ''),  # the mode has a column of its own
            f'{1e3 * row["seconds"]:.2f}',
            row['mode'],
            row['peer'],
            f'{1e3 * row["peer_seconds"]:.2f}',
            row['peer_mode'],
            f'{row["times_as_fast"]:.2f}x',
            f'{row["memory_of_peer"]:.2f}x' if row['memory_of_peer'] else '',
        ]
        for row in ratios(records)
    ]
    headings = ['work', 'ours, ms', 'mode', 'best peer', 'ms', 'mode', 'times as fast', 'memory of the peer']
    return [_table(headings, rows)] if rows else []


def _detector(records: Sequence[dict]) -> List[str]:
    rows = [[r['contender'], f'{1e3 * r["seconds"]:.1f}', f'{r["ratio"]:.2f}x'] for r in records if 'contender' in r]
    title = 'A whole training iteration of Mask R-CNN, eager:'
    return [title, _table(['backbone', 'ms', 'over ours'], rows)] if rows else []


def _curve(records: Sequence[dict]) -> List[str]:
    rows = [
        [str(r['setting']['height']), r['contender'], f'{1e3 * r["seconds"]:.2f}', f'{r["peak_memory"] / 1e6:.0f}']
        for r in records
        if r.get('seconds')
    ]
    return ['One image of growing size:', _table(['pixels', 'backbone', 'ms', 'peak memory, MB'], rows)] if rows else []


def _kernels(records: Sequence[dict]) -> List[str]:
    rows = [
        [
            r['part'],
            r['mode'],
            r['tokens'],
            *(f'{1e3 * r[name]:.3f}' for name in ('seconds', 'predicted', 'plain', 'compiled')),
            f'{r["bytes"] / r["seconds"] / 1e12:.2f}',
        ]
        for r in records
        if 'part' in r
    ]
    headings = ['part of a block', 'mode', 'tokens', 'kernels, ms', 'predicted', 'eager', 'compiled', 'kernels, TB/s']
    return ['The Triton kernels beside PyTorch:', _table(headings, rows)] if rows else []


def _profile(records: Sequence[dict]) -> List[str]:
    parts = []
    for record in records:
        if 'work' not in record:
            continue
        parts.append(
            f'Kernels of {record["work"]}: {record["launches"]} launches, {1e3 * record["seconds"]:.2f} ms, '
            f'{record["over_floor"]:.1f} times the floor of {1e3 * record["floor_seconds"]:.2f} ms '
            f'({record["floor_bytes"] / 1e9:.2f} GB at {record["bandwidth"] / 1e12:.2f} TB/s, '
            f'{record["floor_flops"] / 1e9:.0f} GFLOP at {record["matmul_flops"] / 1e12:.0f} TFLOP/s).'
        )
        rows = [
            [f'`{r["kernel"][:70]}`', str(r['calls']), f'{1e3 * r["seconds"]:.3f}', f'{100 * r["share"]:.1f} %']
            for r in records
            if 'kernel' in r and r['check'] == record['check'] and r['share'] > LEAST_SHARE
        ]
        parts.append(_table(['kernel', 'calls', 'ms', 'share'], rows))
    return parts


def _told(records: Sequence[dict]) -> List[dict]:
    """Of each check the record nearest to its limit, all that are beyond it, and those without one."""
    worst = {r['check']: r for r in sorted(records, key=_of_limit)}
    return [r for r in records if r is worst[r['check']] or r['limit'] is None or not r['passed']]


def _of_limit(record: dict) -> float:
    return record['value'] / record['limit'] if record['limit'] else 0.0


def _verdict(record: dict) -> str:
    return 'right' if record['passed'] else '**wrong**'


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ['---'] * len(headings), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def update_docs(source: Path, page: Path) -> None:
    """Put the tables of a finished check between the marks of a page.

    Raises:
        UsageError: If the file is not of this check or is of a CPU, or if the page has no marks.
    """
    try:
        found = json.loads(source.read_text(encoding='utf-8'))
        text = markdown(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{source} was not written by tools/gpu_check.py ({type(error).__name__}: {error})') from None
    if found['plan']['device'] == 'cpu':
        raise UsageError(f'{source} is of a CPU, whose figures mean nothing; run the check with --device cuda')
    old = page.read_text(encoding='utf-8')
    if any(old.count(mark) != 1 for mark in MARKS):
        raise UsageError(f'{page} has no place for the tables, a line {MARKS[0]} and a line {MARKS[1]}')
    before, rest = old.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f'{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}', encoding='utf-8')
