"""Plots over growing images: time and memory against the number of tokens."""

from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np

from ..visualization.style import line_style, plots
from .contenders import NAMES, OURS
from .settings import Row

# name of a quantity -> its value of a row, label of the axis
QUANTITIES = {
    'time': (lambda row: row.per_image, 'time per image (s)'),
    'memory': (lambda row: row.peak_memory and row.peak_memory / 2**30, 'peak memory (GiB)'),
}


def slope(tokens: Sequence[float], values: Sequence[float]) -> float:
    """Exponent of the power law that fits best: 1 is proportional to the tokens, 2 to their square."""
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])


def curves(rows: Sequence[Row], quantity: str) -> Dict[str, List[Tuple[int, float, float]]]:
    """(tokens, side of a square image of that size, value) of each contender that has two values or more."""
    found = defaultdict(list)
    for row in rows:
        value = QUANTITIES[quantity][0](row)
        if value:
            side = (row.setting.height * row.setting.width) ** 0.5
            found[row.name].append((row.setting.tokens, side, value))
    return {name: sorted(points) for name, points in found.items() if len({p[0] for p in points}) > 1}


def families(rows: Sequence[Row]) -> Dict[str, List[Row]]:
    """Group the rows that differ only in image size and contender."""
    found = defaultdict(list)
    for row in rows:
        found[row.setting.family].append(row)
    return dict(found)


def slopes(rows: Sequence[Row]) -> List[str]:
    """One line for each family and contender with more than one size."""
    lines = []
    for family, members in families(rows).items():
        found = {quantity: curves(members, quantity) for quantity in QUANTITIES}
        for name, points in found['time'].items():
            tokens = [point[0] for point in points]
            line = f'{name}: time grows as tokens^{slope(tokens, [point[2] for point in points]):.2f}'
            if name in found['memory']:
                memory = found['memory'][name]
                line += f', peak memory as tokens^{slope([p[0] for p in memory], [p[2] for p in memory]):.2f}'
            lines.append(f'{line} from {min(tokens)} to {max(tokens)} tokens ({family})')
    return lines


def draw(rows: Sequence[Row], folder: Path) -> List[Path]:
    """Write the pictures of every family with more than one size.

    ``scaling_*.png``: time and memory against tokens, both logarithmic, with the slopes. ``time_*.png`` and
    ``memory_*.png``: against the side of the image, the two complexity figures of the original release.
    """
    paths = []
    with plots() as plt:
        for family, members in families(rows).items():
            found = {quantity: curves(members, quantity) for quantity in QUANTITIES}
            found = {quantity: lines for quantity, lines in found.items() if lines}
            if 'time' not in found:
                continue
            slug = family.lower().replace('xcit-', '').replace(', ', '_').replace('/', '_').replace(' ', '')
            figures = {'scaling': list(found), **{quantity: [quantity] for quantity in found}}
            for kind, quantities in figures.items():
                figure, axes = plt.subplots(1, len(quantities), figsize=(6 * len(quantities), 4.5), squeeze=False)
                for axis, quantity in zip(axes[0], quantities):
                    _draw_curves(axis, found[quantity], logarithmic=kind == 'scaling')
                    axis.set_ylabel(QUANTITIES[quantity][1])
                figure.suptitle(family)
                figure.tight_layout()
                paths.append(folder / f'{kind}_{slug}.png')
                figure.savefig(paths[-1])
                plt.close(figure)
    return paths


def _draw_curves(axis, lines: Dict[str, List[Tuple[int, float, float]]], logarithmic: bool) -> None:
    for name, points in lines.items():
        tokens, side, values = zip(*points)
        label = f'{name}, slope {slope(tokens, values):.2f}' if logarithmic else name
        style = line_style(NAMES.index(name), ours=name == OURS)
        axis.plot(tokens if logarithmic else side, values, label=label, **style)
    if logarithmic:
        axis.set_xscale('log')
        axis.set_yscale('log')
    axis.set_xlabel('tokens of the XCiT' if logarithmic else 'side of a square image of as many pixels (px)')
    axis.legend()
