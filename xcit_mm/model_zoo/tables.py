"""The model zoo's tables: published against computed, and measured where there are results."""

import csv
import io
import textwrap
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import UsageError
from ..published import TASKS, TOP1, TOP1_MMPRETRAIN, TOP1_V2, TOP5_MMPRETRAIN, Model
from . import complexity
from .complexity import CONVENTION

TITLES = {
    'classification': 'Classification on ImageNet-1k',
    'detection': 'Mask R-CNN on COCO, 3x schedule',
    'segmentation': 'Semantic FPN (80k) and UperNet (160k) on ADE20K',
}
METRICS = {
    'classification': (TOP1, TOP1_MMPRETRAIN, TOP5_MMPRETRAIN),
    'detection': ('box AP', 'mask AP'),
    'segmentation': ('mIoU',),
}
NONE = '–'


@dataclass
class Row:
    """One model with what was computed for it.

    Attributes:
        model (Model): What was published.
        parameters (Parameters, optional): Those of the config's model; None if its library is not installed.
        multiply_adds (int): MACs of this backbone's layers.
        multiply_adds_mmpretrain (int, optional): Those of MMPretrain's, for classifiers and where it is installed.
        measured (dict[str, float]): Measured accuracies by the names of the published ones.
    """

    model: Model
    parameters: Any
    multiply_adds: int
    multiply_adds_mmpretrain: Optional[int]
    measured: Dict[str, float] = field(default_factory=dict)

    @property
    def comparable(self) -> int:
        """The parameters that the published number counts: table 6 leaves out the adapter's."""
        total, adapter = self.parameters
        return total - adapter if self.model.task == 'segmentation' else total

    @property
    def parameters_agree(self) -> bool:
        """True if the published number, exact or truncated to one decimal, equals the computed one."""
        if self.model.params is not None:
            return self.model.params == self.comparable
        return int(self.comparable / 1e5) == round(self.model.params_m * 10)


def compute(models: Sequence[Model], root: Path) -> List[Row]:
    """Count parameters and MACs.

    Args:
        models (Sequence[Model]): Some of the published models.
        root (Path): The repository, with ``configs/``.
    """
    rows = []
    for model in models:
        backbone = model.arch, model.patch_size
        classifier = model.task == 'classification'
        out_type = 'cls_token' if classifier else 'pyramid'
        rows.append(
            Row(
                model=model,
                parameters=complexity.count_parameters(root / model.config),
                multiply_adds=complexity.backbone_multiply_adds(*backbone, out_type, *model.input_size),
                multiply_adds_mmpretrain=(
                    complexity.mmpretrain_multiply_adds(*backbone, *model.input_size) if classifier else None
                ),
            )
        )
    return rows


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Row], str]
    left: bool = False


def _giga(count: Optional[int]) -> str:
    return NONE if count is None else f'{count / 1e9:.2f}'


def _mega(count: Optional[int]) -> str:
    return NONE if count is None else f'{count / 1e6:.2f}'


def _exact(count: Optional[int]) -> str:
    return NONE if count is None else f'{count:,}'


def _digits(metric: str) -> int:
    return 2 if metric in (TOP1_MMPRETRAIN, TOP5_MMPRETRAIN) else 1


def _published(row: Row, metric: str) -> str:
    value = row.model.metrics.get(metric)
    return NONE if value is None else f'{value:.{_digits(metric)}f}'


def _measured(row: Row, metric: str) -> str:
    if metric not in row.measured:
        return NONE
    value, published = row.measured[metric], row.model.metrics.get(metric)
    difference = '' if published is None else f' ({value - published:+.2f})'
    return f'{value:.2f}{difference}'


def _metric_columns(rows: Sequence[Row]) -> List[_Column]:
    columns: List[_Column] = []
    measured = {metric for row in rows for metric in row.measured}
    metrics = [*METRICS[rows[0].model.task], *([TOP1_V2] if TOP1_V2 in measured else [])]
    for metric in metrics:
        columns.append(_Column(metric, partial(_published, metric=metric)))
        if metric in measured:
            columns.append(_Column(f'{metric} measured', partial(_measured, metric=metric)))
    return columns


def _total(row: Row) -> Optional[int]:
    return row.parameters and row.parameters.total


def _without_adapter(row: Row) -> Optional[int]:
    return row.parameters and row.parameters.total - row.parameters.adapter


def _file(address: str) -> str:
    return address.rsplit('/', 1)[1]


def _text_columns(rows: Sequence[Row]) -> List[_Column]:
    task = rows[0].model.task
    columns = [_Column('config', lambda row: row.model.name, left=True)]
    here = _Column('MACs here (G)', lambda row: _giga(row.multiply_adds))
    if task == 'classification':
        columns += [
            _Column('parameters published', lambda row: _exact(row.model.params)),
            _Column('parameters here', lambda row: _exact(_total(row))),
            _Column('MACs published (G)', lambda row: _giga(row.model.flops)),
            _Column('on MMPretrain backbone', lambda row: _giga(row.multiply_adds_mmpretrain)),
            here,
        ]
    else:
        columns += [
            _Column('parameters here', lambda row: _exact(_total(row))),
            _Column('original modules (M)', lambda row: f'{row.model.params_original:.2f}'),
        ]
        if task == 'segmentation':
            columns.append(_Column('here without adapter', lambda row: _exact(_without_adapter(row))))
        columns += [_Column(f'{_paper_table(task)} (M)', lambda row: f'{row.model.params_m:.1f}'), here]
    return [*columns, *_metric_columns(rows), _Column('weights', lambda row: _file(row.model.weights), left=True)]


def _markdown_columns(rows: Sequence[Row]) -> List[_Column]:
    task = rows[0].model.task
    columns = [_Column('config', lambda row: f'[{row.model.title}]({row.model.config})', left=True)]
    if task == 'classification':
        columns += [
            _Column('parameters', lambda row: f'{_mega(_total(row))} M'),
            _Column('MACs', lambda row: f'{_giga(row.model.flops)} G'),
        ]
    else:
        if task == 'segmentation':
            columns.append(_Column('method', lambda row: row.model.method, left=True))
        columns.append(_Column('parameters', lambda row: f'{_mega(_total(row))} M'))
        if task == 'segmentation':
            columns.append(_Column('without adapter', lambda row: f'{_mega(_without_adapter(row))} M'))
        columns += [
            _Column(_paper_table(task), lambda row: f'{row.model.params_m:.1f} M'),
            _Column('MACs of the backbone', lambda row: f'{_giga(row.multiply_adds)} G'),
        ]
    columns += _metric_columns(rows)
    return [*columns, _Column('weights', _weights_links, left=True)]


def _paper_table(task: str) -> str:
    return {'detection': 'paper table 5', 'segmentation': 'paper table 6'}[task]


def _weights_links(row: Row) -> str:
    if row.model.weights_mmpretrain:
        return f'[original]({row.model.weights}), [MMPretrain]({row.model.weights_mmpretrain})'
    return f'[`{_file(row.model.weights)}`]({row.model.weights})'


def notes(rows: Sequence[Row]) -> List[str]:
    """Notes on the table of one task; every count is of these rows."""
    task = rows[0].model.task
    known = [row for row in rows if row.parameters]
    agree = f'{sum(row.parameters_agree for row in known)} of {len(rows)} rows'
    if task == 'classification':
        return [
            f'Parameters, head included, are equal to the published ones to the last digit in {agree}. '
            'Top-1 and top-5 are published, in per cent. Full crop: short side resized to the input size, centre crop '
            '(paper and original release, the default of tools/test.py). MMPretrain: short side resized to 256, crop '
            "of 224; at 384 resized to 384x384 (--protocol mmpretrain). MMPretrain's files are conversions of the "
            'original ones.',
            f'{CONVENTION} {_multiply_adds_note(rows)}',
        ]
    height, width = rows[0].model.input_size
    counted = f'MACs are of the backbone with its adapter at {height}x{width}, by the convention of the classifiers.'
    if task == 'detection':
        return [
            f'The paper truncates its parameters to one decimal instead of rounding them. Table 5 is the count of the '
            f'whole detector in {agree}. {counted}'
        ]
    return [
        f"The paper's table 6 is the count without the multi-scale adapter (three deconvolutions and a batch norm with "
        f'patches of 16, one deconvolution with patches of 8), with the auxiliary head of UperNet, truncated to one '
        f'decimal, in {agree}. The paper does not say why it leaves the adapter out. Without adapters the two patch '
        f'sizes differ by less than 0.1 M, so that Semantic FPN has the same printed count with both. {counted}'
    ]


def _multiply_adds_note(rows: Sequence[Row]) -> str:
    known = [row for row in rows if row.multiply_adds_mmpretrain is not None]
    if not known:
        return 'MMPretrain is not installed, so its backbone was not counted.'
    exact = sum(row.multiply_adds_mmpretrain == row.model.flops for row in known)
    more = [row.multiply_adds / (row.multiply_adds_mmpretrain or 1) - 1 for row in known]
    return (
        f'Counted in this way on the backbone of MMPretrain, the published number is exact in {exact} of {len(rows)} '
        f'rows. The layers here, as those of the original code, have {min(more):.1%} to {max(more):.1%} more: the '
        f'queries of the patch tokens in class attention, which are never used. The kernels that run need fewer; see '
        f'xcit_mm.ops.'
    )


def by_task(rows: Sequence[Row]) -> List[List[Row]]:
    """The rows of each task that has any."""
    groups = ([row for row in rows if row.model.task == task] for task in TASKS)
    return [group for group in groups if group]


def as_text(rows: Sequence[Row]) -> str:
    """Tables for the terminal, with notes."""
    out = []
    for group in by_task(rows):
        columns = _text_columns(group)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
        for column in columns:
            # A narrow heading of several lines keeps the table within a terminal.
            title = '\n'.join(textwrap.wrap(column.title, 11, break_long_words=False, break_on_hyphens=False))
            table.add_column(title, justify='left' if column.left else 'right', no_wrap=True)
        for row in group:
            table.add_row(*(column.cell(row) for column in columns))
        drawn = io.StringIO()
        Console(file=drawn, width=1000).print(table)
        lines = (line.rstrip() for line in drawn.getvalue().splitlines())
        folder = group[0].model.weights.rsplit('/', 1)[0]
        remarks = [*notes(group), f'Weights: {folder}/FILE; all addresses are in --format csv.']
        out += [TITLES[group[0].model.task], *lines, *(textwrap.fill(note, 118) for note in remarks), '']
    return '\n'.join([*out, textwrap.fill(summary(rows), 118), ''])


def task_markdown(rows: Sequence[Row]) -> str:
    """The table of one task with its notes, as it stands in the documentation."""
    columns = _markdown_columns(rows)
    lines = [
        markdown_line(column.title for column in columns),
        markdown_line('---' if column.left else '---:' for column in columns),
        *(markdown_line(column.cell(row) for column in columns) for row in rows),
    ]
    return '\n'.join([*lines, '', '\n\n'.join(textwrap.fill(note, 118) for note in notes(rows))])


def markdown_line(cells) -> str:
    return f'| {" | ".join(map(str, cells))} |'


def as_markdown(rows: Sequence[Row]) -> str:
    """Tables in Markdown, with notes and headings."""
    groups = by_task(rows)
    parts = [f'## {TITLES[group[0].model.task]}\n\n{task_markdown(group)}' for group in groups]
    return '\n\n'.join([*parts, textwrap.fill(summary(rows), 118)]) + '\n'


def as_csv(rows: Sequence[Row]) -> str:
    """All tables as one, with every number exact; empty where something does not apply or is not known."""
    records = [_record(row) for row in rows]
    columns = list(dict.fromkeys(key for record in records for key in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _record(row: Row) -> dict:
    model = row.model
    record = {
        'name': model.name,
        'task': model.task,
        'method': model.method,
        'config': model.config,
        'arch': model.arch,
        'patch_size': model.patch_size,
        'variant': model.variant,
        'parameters_published': model.params if model.params is not None else f'{model.params_m}M',
        'parameters': _total(row),
        'parameters_without_adapter': None if model.task == 'classification' else _without_adapter(row),
        'parameters_original_modules': model.params_original and f'{model.params_original:.2f}M',
        'parameters_agree': row.parameters and ('yes' if row.parameters_agree else 'no'),
        'multiply_adds_height': model.input_size[0],
        'multiply_adds_width': model.input_size[1],
        'multiply_adds_published': model.flops,
        'multiply_adds_on_mmpretrain': row.multiply_adds_mmpretrain,
        'multiply_adds': row.multiply_adds,
    }
    for metric, value in model.metrics.items():
        record[metric] = value
        record[f'{metric} measured'] = row.measured.get(metric)
    record.update({f'{metric} measured': value for metric, value in row.measured.items()})
    record.update(weights=model.weights, weights_mmpretrain=model.weights_mmpretrain)
    return record


def summary(rows: Sequence[Row]) -> str:
    """One line: how many rows equal the published numbers, and why the others do not."""
    known = [row for row in rows if row.parameters]
    agreeing = [row for row in known if row.parameters_agree]
    kinds = {task: sum(row.model.task == task for row in agreeing) for task in TASKS}
    ways = dict(
        classification='to the last digit',
        detection='truncated to one decimal',
        segmentation='without the adapter and truncated to one decimal',
    )
    listed = ', '.join(f'{kinds[task]} {way}' for task, way in ways.items() if kinds[task])
    parts = [f'Summary: parameters as published in {len(agreeing)} of {len(rows)} rows ({listed or NONE})']
    differing = [row.model.name for row in known if not row.parameters_agree]
    if differing:
        parts.append(f'different without an explanation: {", ".join(differing)}')
    if len(known) < len(rows):
        parts.append(f'{len(rows) - len(known)} not computed, since their library is not installed')
    originals = [row for row in known if row.model.params_original is not None]
    if originals:
        same = sum(round(row.parameters.total / 1e6, 2) == row.model.params_original for row in originals)
        parts.append(f'equal to the original modules in {same} of {len(originals)}')
    counted = [row for row in rows if row.multiply_adds_mmpretrain is not None]
    if counted:
        exact = sum(row.multiply_adds_mmpretrain == row.model.flops for row in counted)
        parts.append(f'MACs on the backbone of MMPretrain exact in {exact} of {len(counted)}')
    return '; '.join(parts) + '.'


def check_complete(rows: Sequence[Row]) -> None:
    """Check that all of the documentation's tables can be written.

    Raises:
        UsageError: If a row could not be computed.
    """
    if any(row.parameters is None or (row.model.flops and row.multiply_adds_mmpretrain is None) for row in rows):
        raise UsageError(
            'the tables of the documentation need mmpretrain, mmdet and mmseg installed; one of them is not'
        )
