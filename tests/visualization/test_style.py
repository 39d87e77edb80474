"""The look of plots: colours that are told apart, and settings that are given back."""

from itertools import combinations

import numpy as np
import pytest

from xcit_mm.visualization.predictions import draw_detections, fill, line_width
from xcit_mm.visualization.style import COLOURS, DPI, FONT, MARKERS, line_style, plots

# What is left of linear RGB with each kind of colour blindness (Viénot et al., 1999; tritanopia: Brettel et al., 1997).
SEEN_WITH = {
    'full sight': np.eye(3),
    'protanopia': [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    'deuteranopia': [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    'tritanopia': [[1, 0.14461, -0.14461], [0, 0.85924, 0.14076], [0, 0.85924, 0.14076]],
}


@pytest.mark.parametrize('sight', SEEN_WITH)
def test_the_first_lines_of_a_plot_are_told_apart(sight):
    rgb = np.array([[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in COLOURS[:5]])
    seen = np.clip(rgb**2.2 @ np.array(SEEN_WITH[sight]).T, 0, 1) ** (1 / 2.2)
    assert min(np.abs(a - b).max() for a, b in combinations(seen, 2)) > 0.1
    assert len(set(COLOURS)) == len(set(MARKERS)) == 10


def test_the_settings_of_the_caller_come_back(tmp_path):
    matplotlib = pytest.importorskip('matplotlib')
    before = dict(matplotlib.rcParams)
    with plots() as plt:
        figure, axis = plt.subplots(figsize=(2, 1))
        axis.plot([1, 2], [1, 2], **line_style(0, ours=True))
        assert axis.xaxis.label.get_size() == FONT
        figure.savefig(tmp_path / 'plot.png')
        plt.close(figure)
    changed = {key for key, value in matplotlib.rcParams.items() if value != before[key]}
    assert changed <= {'backend', 'backend_fallback'} and (tmp_path / 'plot.png').stat().st_size > 10 * DPI


@pytest.mark.parametrize('side', [160, 640, 3000])
def test_a_box_parts_from_a_background_of_its_own_colour(side):
    colour = (0, 114, 178)
    image = np.full((side, side, 3), colour, np.uint8)
    drawn = draw_detections(image, np.array([[side / 4, side / 2, side / 2, side * 0.75]]), [0], ['a'], [colour])
    if line_width(image) > 1:
        assert (drawn[round(0.7 * side)] != colour).any()


def test_small_instances_are_covered_more_than_large_ones():
    shares = [fill(share) for share in (0, 0.001, 0.05, 0.5, 1)]
    assert shares == sorted(shares, reverse=True) and 0.2 < shares[-1] < shares[0] < 0.7
