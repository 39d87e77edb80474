"""Results on the console, as CSV and as Markdown; the files are complete after every setting."""

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Dict, List, Sequence

from rich.markup import escape
from rich.table import Table

from ..errors import UsageError
from .contenders import OURS, PEERS
from .memory import MEASURED
from .plots import slopes
from .settings import Row, Setting

EXPLANATION = (
    'Time: median of interleaved rounds, in which every contender does the work once, in one process with the same '
    "weights. Over ours: the time over this project's in the same round, median of the rounds. Deviation: largest "
    "difference of the output from this project's fp32 reference (the paper's form of attention, one module after the "
    'other) over its largest value. rms: the same with root mean squares. Gradient: the deviation of the gradient of '
    'the image. On the CPU with a batch of 1, the gradient of timm and MMPretrain can be wrong: PyTorch 2.10 misreads '
    'the memory layout of the gradient that their patch embedding passes to batch norm. Of peak: MACs of the layers '
    '(not of what replaces them) in this time, over those of a large matmul in the same round and dtype. An '
    'implementation that needs fewer MACs than the layers can exceed 100 %.'
)

# heading -> text of a row's cell, '' for none
COLUMNS = {
    'contender': lambda row: row.name,
    'ms / image': lambda row: _format(row.per_image, '{:.2f}', 1e3),
    'images / s': lambda row: _format(row.per_image and 1 / row.per_image, '{:.2f}'),
    'over ours': lambda row: _format(row.ratio, '{:.2f}x'),
    'peak memory, MB': lambda row: _format(row.peak_memory, '{:.0f}', 1e-6),
    'deviation': lambda row: _format(row.deviation, '{:.1e}'),
    'rms': lambda row: _format(row.rms, '{:.1e}'),
    'gradient': lambda row: _format(row.gradient, '{:.1e}'),
    'of peak': lambda row: _format(row.of_peak, '{:.0f} %', 100),
    'compiled in, s': lambda row: _format(row.compile_seconds, '{:.0f}'),
    'note': lambda row: row.note,
}


def _format(value, template: str, factor: float = 1.0) -> str:
    return '' if value is None else template.format(value * factor)


def cells(rows: Sequence[Row]) -> Dict[str, List[str]]:
    """The columns of a table that are not empty."""
    table = {heading: [text(row) for row in rows] for heading, text in COLUMNS.items()}
    return {heading: column for heading, column in table.items() if any(column)}


def console_table(rows: Sequence[Row]) -> Table:
    """The rows of one setting."""
    table = Table()
    columns = cells(rows)
    for heading in columns:
        table.add_column(heading, justify='left' if heading in ('contender', 'note') else 'right')
    for line in zip(*columns.values()):
        table.add_row(*map(escape, line))
    return table


def verdict(rows: Sequence[Row]) -> str:
    """One sentence about the rows of one setting; '' if there is nothing to compare."""
    ours = next((row for row in rows if row.name == OURS), None)
    peers = [row for row in rows if row.name in PEERS]
    fastest = min((row for row in peers if row.ratio), key=lambda row: row.ratio or 0, default=None)
    sentences = []
    if fastest:
        sentences.append(f'{OURS} is {fastest.ratio:.2f} times as fast as the better peer, {fastest.name}')
    memory = [row.peak_memory for row in peers if row.peak_memory]
    if ours and ours.peak_memory and memory:
        sentences.append(f'takes {ours.peak_memory / min(memory):.2f} times the memory of the more frugal')
    return ', and '.join(sentences)


class Report:
    """All rows of a run.

    Args:
        folder (Path): Where ``benchmark.csv`` and ``benchmark.md`` are written; those of an earlier run are replaced.
        machine (str): What it ran on.
        command (str): How it was called.

    Raises:
        UsageError: If the folder cannot be written to.
    """

    def __init__(self, folder: Path, machine: str, command: str):
        self.folder, self.machine, self.command = folder, machine, command
        self.settings: List[List[Row]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.write()
        except OSError as error:
            raise UsageError(f'{folder} cannot be written to ({error.strerror}); choose another --out') from error

    @property
    def rows(self) -> List[Row]:
        return [row for rows in self.settings for row in rows]

    def add(self, rows: Sequence[Row]) -> None:
        """Take the rows of one setting and write all files."""
        self.settings.append(list(rows))
        self.write()

    def write(self) -> None:
        with open(self.folder / 'benchmark.csv', 'w', newline='', encoding='utf-8') as file:
            names = [field.name for field in fields(Row) if field.name != 'setting']
            settings = [field.name for field in fields(Setting)]
            writer = csv.DictWriter(file, ['name', *settings, 'tokens', *names[1:], 'images_per_second'])
            writer.writeheader()
            for row in self.rows:
                values = asdict(row)
                values.update(values.pop('setting'), tokens=row.setting.tokens)
                values['images_per_second'] = row.per_image and 1 / row.per_image
                writer.writerow(values)
        (self.folder / 'benchmark.md').write_text(self.markdown(), encoding='utf-8')

    def markdown(self) -> str:
        parts = ['# Benchmark', f'`{self.command}`', self.machine, EXPLANATION, MEASURED]
        for rows in self.settings:
            columns = cells(rows)
            lines = ['| ' + ' | '.join(columns) + ' |', '| --- ' + '| ---: ' * (len(columns) - 1) + '|']
            for line in zip(*columns.values()):
                lines.append('| ' + ' | '.join(text.replace('|', '/') for text in line) + ' |')
            parts += [f'## {rows[0].setting}', '\n'.join(lines), verdict(rows)]
        parts += ratio_table(self.settings) + ['\n'.join(f'- {line}' for line in slopes(self.rows))]
        return '\n\n'.join(part for part in parts if part) + '\n'


def ratio_table(settings: Sequence[Sequence[Row]]) -> List[str]:
    """How many times as fast as the better peer, for every model and size; [] if there are not two models."""
    table: Dict[str, Dict[str, float]] = {}
    for rows in settings:
        ratios = [row.ratio for row in rows if row.name in PEERS and row.ratio]
        if ratios:
            size = f'{rows[0].setting.height}x{rows[0].setting.width}'
            table.setdefault(rows[0].setting.family, {})[size] = min(ratios)
    sizes = list(dict.fromkeys(size for ratios in table.values() for size in ratios))
    if len(table) < 2:
        return []
    lines = ['| | ' + ' | '.join(sizes) + ' |', '| --- ' + '| ---: ' * len(sizes) + '|']
    for family, by_size in table.items():
        lines.append(f'| {family} | ' + ' | '.join(_format(by_size.get(size), '{:.2f}x') for size in sizes) + ' |')
    lowest = min(ratio for ratios in table.values() for ratio in ratios.values())
    return ['## Times as fast as the better peer', '\n'.join(lines), f'Lowest: {lowest:.2f}x.']
