"""The paper's tables 2 to 6 as published, with the other systems, and their pictures."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from ..published import read_table


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number (int): Its number.
        title (str): What it compares.
        file (str): The file of ``data/``, without ending.
        columns (dict): Titles by the names of the file's columns.
        plots (tuple): The pictures: name of the file, column of the x-axis, columns of the y-axis.
    """

    number: int
    title: str
    file: str
    columns: Dict[str, str]
    plots: Tuple[Tuple[str, str, Tuple[str, ...]], ...] = ()

    def rows(self) -> List[dict]:
        """The published rows in the paper's order, by the names of the file's columns."""
        return read_table(self.file)


PARAMS, FLOPS = 'parameters (M)', 'MACs (G)'
TABLES = (
    PaperTable(
        2,
        'ImageNet-1k',
        'paper_table2_imagenet',
        dict(
            model='model',
            distilled='distilled',
            params_m=PARAMS,
            flops_g=FLOPS,
            resolution='resolution',
            top1_imagenet='top-1',
            top1_v2='top-1 ImageNet-V2',
        ),
        (
            ('imagenet_flops', 'flops_g', ('top1_imagenet',)),
            ('imagenet_parameters', 'params_m', ('top1_imagenet',)),
        ),
    ),
    PaperTable(
        3,
        'Self-supervised training on ImageNet-1k',
        'paper_table3_self_supervised',
        dict(
            method='method',
            model='model',
            resolution='resolution',
            params_m=PARAMS,
            flops_g=FLOPS,
            linear='linear top-1',
            knn='k-NN top-1',
        ),
        (('self_supervised_flops', 'flops_g', ('linear', 'knn')),),
    ),
    PaperTable(
        4,
        'Ablations on ImageNet-1k',
        'paper_table4_ablations',
        dict(model='model', ablation='ablation', top1='top-1', outcome='outcome'),
    ),
    PaperTable(
        5,
        'Mask R-CNN on COCO, 3x',
        'paper_table5_coco_mask_rcnn_3x',
        dict(
            backbone='backbone',
            params_m=PARAMS,
            ap_box='box AP',
            ap50_box='box AP50',
            ap75_box='box AP75',
            ap_mask='mask AP',
            ap50_mask='mask AP50',
            ap75_mask='mask AP75',
        ),
        (('coco_parameters', 'params_m', ('ap_box', 'ap_mask')),),
    ),
    PaperTable(
        6,
        'Semantic FPN and UperNet on ADE20K',
        'paper_table6_ade20k',
        dict(
            backbone='backbone',
            params_m_sem_fpn=f'Semantic FPN {PARAMS}',
            miou_sem_fpn='Semantic FPN mIoU',
            params_m_upernet=f'UperNet {PARAMS}',
            miou_upernet='UperNet mIoU',
        ),
        (
            ('ade20k_sem_fpn_parameters', 'params_m_sem_fpn', ('miou_sem_fpn',)),
            ('ade20k_upernet_parameters', 'params_m_upernet', ('miou_upernet',)),
        ),
    ),
)


def family(name: str) -> str:
    """The system that a model belongs to, which is one line in a picture: 'XCiT-S12/8' -> 'XCiT /8'."""
    found = re.match(r'(?:Fix-)?([A-Za-z]+)', name)
    family = found[1] if found else name
    patch = re.search(r'/(\d+)$', name)
    return f'{family} /{patch[1]}' if patch else family


def as_markdown(table: PaperTable) -> str:
    """The table with a heading; XCiT's rows are bold, and what was not published is a dash."""
    lines = [f'## Table {table.number}: {table.title}', '', _line(table.columns.values())]
    lines.append(_line('---' if i == 0 else '---:' for i in range(len(table.columns))))
    for row in table.rows():
        cells = ['–' if row[key] is None else str(row[key]) for key in table.columns]
        ours = any(str(row.get(key) or '').startswith('XCiT') for key in ('model', 'backbone'))
        lines.append(_line(f'**{cell}**' if ours else cell for cell in cells))
    return '\n'.join(lines) + '\n'


def _line(cells) -> str:
    return f'| {" | ".join(cells)} |'


def as_csv(table: PaperTable) -> str:
    """The table with the titles of its columns; empty where nothing was published."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(table.columns.values())
    writer.writerows([row[key] for key in table.columns] for row in table.rows())
    return file.getvalue()


def points(table: PaperTable, x: str, y: str) -> Dict[str, List[Tuple[float, float, str]]]:
    """What a picture shows: (x, y, label) of every row that has both, by family, from small to large."""
    found: Dict[str, List[Tuple[float, float, str]]] = {}
    for row in table.rows():
        if row[x] is None or row[y] is None:
            continue
        name = row.get('model') or row['backbone']
        group = ', '.join(filter(None, [row.get('method') if row.get('method') != 'DINO' else None, family(name)]))
        if (
            row.get('resolution')
            and len({r['resolution'] for r in table.rows() if family(_name(r)) == family(name)}) > 1
        ):
            label = f'{name} at {row["resolution"]}'
        else:
            label = name
        found.setdefault(group, []).append((row[x], row[y], label))
    return {group: sorted(members) for group, members in found.items()}


def _name(row: dict) -> str:
    return row.get('model') or row['backbone']


def draw(tables: Sequence[PaperTable], folder: Path) -> List[Path]:
    """Write the pictures of the tables; accuracy against MACs and against parameters.

    Args:
        tables (Sequence[PaperTable]): Tables; one without pictures adds none.
        folder (Path): Created if missing.
    """
    from ..visualization.style import plots

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with plots() as plt:
        for table in tables:
            for name, x, ys in table.plots:
                figure, axes = plt.subplots(1, len(ys), figsize=(7 * len(ys), 5), squeeze=False)
                for axis, y in zip(axes[0], ys):
                    _draw_points(axis, points(table, x, y))
                    axis.set_xlabel(table.columns[x])
                    axis.set_ylabel(f'{table.columns[y]} (%)')
                figure.suptitle(f'{table.title} (published, table {table.number})')
                figure.tight_layout()
                paths.append(folder / f'{name}.png')
                figure.savefig(paths[-1])
                plt.close(figure)
    return paths


def _draw_points(axis, groups: Dict[str, List[Tuple[float, float, str]]]) -> None:
    from ..visualization.style import SMALL, line_style

    order = sorted(groups, key=lambda group: not group.startswith('XCiT'))  # ours have the first colours
    for group, members in groups.items():
        style = line_style(order.index(group), ours=group.startswith('XCiT'))
        xs, ys, labels = zip(*members)
        axis.plot(xs, ys, label=group, **style)
        for x, y, label in members:
            axis.annotate(
                label.replace(group.split(' /')[0] + '-', ''),
                (x, y),
                fontsize=SMALL,
                xytext=(3, 3),
                textcoords='offset points',
                color=style['color'],
            )
    axis.set_xscale('log')
    ticks = [t for t in (4, 8, 16, 32, 64, 128, 256, 512) if axis.get_xlim()[0] <= t <= axis.get_xlim()[1]]
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.legend(loc='lower right')
