"""Distinct colours of classes, RGB."""

import colorsys
from typing import Any, List, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..datasets.config import find_loaders, find_type, innermost_datasets

Colour = Tuple[int, int, int]
# Okabe and Ito's, then Tol's: safe for every kind of colour blindness.
FIRST = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (86, 180, 233),
    (240, 228, 66),
    (136, 34, 85),
    (51, 34, 136),
    (153, 153, 153),
)
GOLDEN = 0.618034
LIGHT, DARK = (255, 255, 255), (0, 0, 0)


def class_colours(number: int) -> List[Colour]:
    """``number`` distinct colours; the first ten are safe for every kind of colour blindness."""
    colours: List[Colour] = list(FIRST[:number])
    step = 0
    while len(colours) < number:
        # Golden-section hues are far from all earlier ones; brightness and saturation alternate.
        hue, (saturation, value) = (step * GOLDEN) % 1, ((0.9, 0.95), (0.55, 0.75), (0.95, 0.55))[step % 3]
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
        colour = red, green, blue
        if colour not in colours:
            colours.append(colour)
        step += 1
    return colours


def colours_of(classes: Optional[Sequence[str]], palette=None, number: int = 0) -> List[Colour]:
    """The colours of a data set's own palette, if it has one for each class and no two are the same; else ours.

    Without a palette, a class named background is black.
    """
    names = list(classes or ())
    number = max(number, len(names))
    if isinstance(palette, (list, tuple)) and number:
        given: List[Any] = [tuple(int(part) for part in colour) for colour in palette]
        if len(given) == number and len(set(given)) == number:
            return given
    if 'background' in names:
        colours = class_colours(number - 1)
        colours.insert(names.index('background'), DARK)
        return colours
    return class_colours(number)


def palette_of(cfg: Config) -> Optional[list]:
    """The palette of the test data, from their metainfo in the config or from their class; None if there is none.

    The random colours that a library gives data without a palette do not count: two classes can get the same green.
    """
    loaders = find_loaders(cfg)
    loader = loaders.get('test') or loaders.get('val')
    dataset = next(innermost_datasets(loader['dataset'])) if loader else {}
    given = dataset.get('metainfo') or {}
    if 'palette' in given or 'classes' in given or 'type' not in dataset:
        return given.get('palette')
    kind = find_type(DATASETS, dataset['type'], cfg.get('default_scope') or 'mmengine')
    return (getattr(kind, 'METAINFO', None) or {}).get('palette')


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever has more contrast on that colour."""
    red, green, blue = background
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else LIGHT
