"""The report of a run: a page with metrics by class, confusion matrix, curves and the worst predictions."""

import html
import math
from numbers import Real
from pathlib import Path
from typing import Dict, List, Sequence

import cv2
import numpy as np

from ...visualization.colours import colours_of
from ...visualization.predictions import draw_classes, draw_detections, draw_map, side_by_side, write_picture
from .analysis import SCORE, Analysis
from .data import Data, Picture
from .maps import apply_values, has_colours, read_map
from .show import open_picture

WORST, WIDTH = 12, 480  # pictures, and pixels of each
LEAST_TILE = 240  # pixels of the long side of an image
NAMED = 30  # most classes that a confusion matrix or a legend names
CURVES = 10  # at most, those with the smallest area under them first
STYLE = (
    'body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}'
    'table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}'
    'td:first-child,th:first-child{text-align:left}img{max-width:100%}pre{background:#f4f4f4;padding:1em;overflow:auto}'
    '.bad{color:#b00}.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:8px}'
)


def write_report(
    folder: Path,
    data: Data,
    split: str,
    records: List[dict],
    analysis: Analysis,
    metrics: Dict[str, float],
    facts: Sequence[str],
    commands: Sequence[str],
) -> Path:
    """Write ``report.html`` and its pictures.

    Args:
        folder (Path): Folder of the run.
        data (Data): The data that was trained on.
        split (str): The split that was tested.
        records (list[dict]): Of :class:`.records.Records`.
        analysis (Analysis): Analysis of the records.
        metrics (dict): Metrics of the test.
        facts (Sequence[str]): Lines about the run: model, schedule, speed, memory.
        commands (Sequence[str]): Commands to run next.

    Returns:
        Path: The page.
    """
    pictures = folder / 'report'
    pictures.mkdir(exist_ok=True)
    draw_confusion(analysis.confusion, data.classes, pictures / 'confusion.png')
    if analysis.curves:
        draw_curves(analysis.curves, pictures / 'precision_recall.png')
    worst = _draw_worst(data, split, records, analysis, pictures)
    title = f'{data.root}: {data.task}'
    body = [
        f'<h1>{html.escape(title)}</h1>',
        f'<p>{len(records)} images of {split}; '
        + ', '.join(f'{html.escape(key)} <b>{value:.4g}</b>' for key, value in headline(metrics).items())
        + '</p>',
        '<pre>' + html.escape('\n'.join(facts)) + '</pre>',
        '<h2>By class</h2>',
        _table(data.classes, analysis),
        '<h2>The run</h2><img src="train/curve.png" alt="loss and validation">'
        if (folder / 'train' / 'curve.png').exists()
        else '',
        '<h2>Confusion</h2><p>Rows are the truth. A square is the share of its row.</p>'
        '<img src="report/confusion.png" alt="confusion matrix">',
        '<h2>Precision and recall</h2><img src="report/precision_recall.png" alt="precision and recall">'
        if analysis.curves
        else '',
        '<h2>The worst predictions</h2>',
        _worst_words(data.task),
        '<div class="grid">'
        + ''.join(
            f'<figure><img src="report/{html.escape(path.name)}" alt=""><figcaption>{html.escape(name)}</figcaption>'
            '</figure>'
            for path, name in worst
        )
        + '</div>',
        '<h2>What was found in the data</h2><img src="found.jpg" alt="labelled images">',
        _problems(data),
        '<h2>Next</h2><pre>' + html.escape('\n'.join(commands)) + '</pre>',
    ]
    page = folder / 'report.html'
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<title>{html.escape(title)}</title><style>{STYLE}</style>' + '\n'.join(body) + '</html>\n',
        encoding='utf-8',
    )
    return page


def headline(metrics: Dict[str, float]) -> Dict[str, float]:
    """The overall metrics, without those by class."""
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, Real) and not key.endswith('_precision')
    }


def _table(classes: List[str], analysis: Analysis) -> str:
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in ['class', *analysis.columns])
    rows = []
    for name, row in zip(classes, analysis.rows):
        cells = ''.join(f'<td>{_number(value)}</td>' for value in row)
        rows.append(f'<tr><td>{html.escape(name)}</td>{cells}</tr>')
    return f'<table><tr>{head}</tr>{"".join(rows)}</table>'


def _number(value: float) -> str:
    if isinstance(value, int):
        return f'{value:,}'
    return 'n/a' if math.isnan(value) else f'{value:.1f}'


def _worst_words(task: str) -> str:
    if task == 'classification':
        return '<p>The most confident wrong predictions first, then the correct ones with the smallest margin.</p>'
    scores = '' if task == 'semantic-segmentation' else f' (scores from {SCORE})'
    return f'<p>Truth on the left, prediction on the right{scores}.</p>'


def _problems(data: Data) -> str:
    lines = [f'<li>{html.escape(note)}</li>' for note in data.notes]
    lines += [
        f'<li class="bad">{html.escape(what)} ({html.escape(where)}): {html.escape(mend)}</li>'
        for what, where, mend in data.problems.lines()
    ]
    return f'<ul>{"".join(lines)}</ul>' if lines else ''


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Plot truth x prediction, each row as shares."""
    names = [*classes, 'nothing'] if len(confusion) > len(classes) else list(classes)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = min(12.0, 3 + 0.45 * len(names))
    figure, axes = _figure(side + 1.5, side)
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8)
    axes.set_xlabel('prediction')
    axes.set_ylabel('truth')
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, rotation=60, ha='right')
        axes.set_yticks(range(len(names)), names)
        for i, j in zip(*np.nonzero(confusion)):
            text = f'{confusion[i, j]}' if confusion.max() < 10_000 else f'{shares[i, j]:.0%}'
            axes.text(
                j, i, text, ha='center', va='center', color='white' if shares[i, j] > 0.5 else 'black', fontsize=7
            )
    figure.savefig(path, dpi=110)


def draw_curves(curves: Dict[str, tuple], path: Path) -> None:
    """Plot precision over recall, of the worst classes."""
    figure, axes = _figure(8, 5.5)
    integrate = getattr(np, 'trapezoid', None) or np.trapz
    area = {name: float(integrate(precision, recall)) for name, (recall, precision) in curves.items()}
    for name in sorted(area, key=lambda name: area[name])[:CURVES]:
        recall, precision = curves[name]
        axes.plot(recall, precision, label=name, linewidth=1.2)
    more = f' (the {CURVES} worst of {len(curves)} classes)' if len(curves) > CURVES else ''
    axes.set(xlabel='recall', ylabel=f'precision{more}', xlim=(0, 1.01), ylim=(0, 1.02))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _draw_worst(data: Data, split: str, records: List[dict], analysis: Analysis, folder: Path):
    """Draw the worst predictions; return the pictures with the names of their images."""
    by_path = {picture.path: picture for picture in data.of(split)}
    colours = colours_of(data.classes, data.palette)
    order = sorted(range(len(records)), key=lambda i: -analysis.badness[i])[:WORST]
    drawn = []
    for place, number in enumerate(order):
        record = records[number]
        picture = by_path.get(str(Path(record['path'])))
        if picture is None:
            continue
        try:
            image = open_picture(picture)
        except Exception:  # of any decoder; no metric scored such an image
            continue
        tile = _draw(data, picture, record, image, colours)
        scale = min(1.0, WIDTH / tile.shape[1])
        size = (max(1, round(tile.shape[1] * scale)), max(1, round(tile.shape[0] * scale)))
        path = folder / f'worst_{place:02d}.jpg'
        write_picture(str(path), cv2.resize(tile, size, interpolation=cv2.INTER_AREA))
        drawn.append((path, data.relative(picture.path)))
    return drawn


def _draw(data: Data, picture: Picture, record: dict, image: np.ndarray, colours) -> np.ndarray:
    # Small pictures are enlarged, so that there is room for letters.
    scale = max(1, round(LEAST_TILE / max(image.shape[:2])))
    size = (image.shape[1] * scale, image.shape[0] * scale)
    image = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    if data.task == 'classification':
        truth, found = record['truth'], int(record['scores'].argmax())
        lines = [
            (f'truth: {data.classes[truth]}', colours[truth]),
            (f'{data.classes[found]} {record["scores"][found]:.2f}', colours[found]),
        ]
        return draw_classes(image, lines)
    if data.task == 'semantic-segmentation':
        theirs = apply_values(read_map(picture.map or '', has_colours(data.values)), data.values)
        ours = np.asarray(cv2.imdecode(np.frombuffer(record['map'], np.uint8), cv2.IMREAD_UNCHANGED))
        return side_by_side([draw_map(image, labels, data.classes, colours) for labels in (theirs, ours)])
    boxes, labels, scores = record['predicted']
    sure = scores >= SCORE
    parts = ((record['boxes'], record['labels'], None), (boxes[sure], labels[sure], scores[sure].tolist()))
    return side_by_side(
        [
            draw_detections(image, places * scale, numbers.tolist(), data.classes, colours, sureness)
            for places, numbers, sureness in parts
        ]
    )
