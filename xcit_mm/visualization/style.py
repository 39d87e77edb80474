"""One look for all plots: the palette of the pictures, one type size, light grids."""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, cast

from .colours import FIRST

# Yellow and light blue are hard to see as lines on white: they come last.
COLOURS = ['#{:02x}{:02x}{:02x}'.format(*FIRST[place]) for place in (0, 3, 2, 4, 1, 7, 8, 9, 5, 6)]
MARKERS = 'osD^vP*Xph'  # told apart without colour too
FONT, SMALL = 11, 8  # points: all text, and the names of single points
DPI = 150


@contextmanager
def plots() -> Iterator:
    """``matplotlib.pyplot`` for files, in this style; the settings of the caller come back afterwards."""
    import matplotlib
    from cycler import cycler

    matplotlib.use('Agg')
    from matplotlib import pyplot

    settings: Any = {
        'font.size': FONT,
        'axes.titlesize': FONT,
        'axes.labelsize': FONT,
        'figure.titlesize': FONT,
        'legend.fontsize': FONT - 2,
        'xtick.labelsize': FONT - 2,
        'ytick.labelsize': FONT - 2,
        'axes.prop_cycle': cycler(color=COLOURS, marker=list(MARKERS)),
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.grid': True,
        'grid.alpha': 0.3,
        'lines.linewidth': 1.5,
        'lines.markersize': 5,
        'legend.frameon': False,
        'figure.dpi': DPI,
        'savefig.dpi': DPI,
        'savefig.bbox': 'tight',
    }
    with pyplot.rc_context(cast(Any, settings)):
        yield pyplot


def line_style(place: int, ours: bool = False) -> Dict[str, Any]:
    """Colour, marker and width of the line at a place of the palette; ``ours`` is drawn wider and on top."""
    return dict(
        color=COLOURS[place % len(COLOURS)],
        marker=MARKERS[place % len(MARKERS)],
        linewidth=2.5 if ours else 1.5,
        zorder=3 if ours else 2,
    )
