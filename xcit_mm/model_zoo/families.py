"""``docs/configs/``: a page for each family of configs, made from the configs themselves."""

import ast
import re
from pathlib import Path
from typing import Dict, List, NamedTuple

from mmengine.config import Config

from .tables import markdown_line

FOLDER = 'docs/configs'
NOTE = '<!-- Written by tools/model_zoo.py --update-docs. -->'


class Family(NamedTuple):
    """Configs of one kind.

    Attributes:
        page (str): Name of its page.
        pattern (str): Regular expression of the names of its configs.
        title (str): Title of the page.
        about (str): What its configs have in common, with the page that tells more.
    """

    page: str
    pattern: str
    title: str
    about: str


# The first that matches is the family of a config.
FAMILIES = (
    Family(
        'digits', r'.*digits.*', 'Digits', 'Small models for a small data set that the project makes; see the tutorial.'
    ),
    Family('mask_rcnn', r'mask_rcnn_', 'Mask R-CNN on COCO', 'Boxes and masks, 3x schedule.'),
    Family('faster_rcnn', r'faster_rcnn_', 'Faster R-CNN on COCO', 'Boxes alone; nobody published such models.'),
    Family('sem_fpn', r'sem_fpn_', 'Semantic FPN on ADE20K', '80k iterations; the faster of the two segmentors.'),
    Family('upernet', r'upernet_', 'UperNet on ADE20K', '160k iterations; the more accurate of the two segmentors.'),
    Family('ablations', r'ablation_', 'Ablations', 'Table 4 of the paper: each changes one switch of the backbone.'),
    Family('robust', r'debenedetti', 'Robust models', 'Adversarially trained by Debenedetti et al.; for testing.'),
    Family('dino', r'(dino|knn|linear)_', 'DINO', 'Self-supervised training, with its k-NN and linear evaluation.'),
    Family('imagenet', r'xcit_.*_in1k', 'Classification on ImageNet-1k', 'From scratch, distilled, and at 384x384.'),
    Family('transfer', r'xcit_', 'Transfer sets', 'ImageNet models fine-tuned on smaller data sets.'),
)
COLUMNS = ('config', 'trains', 'length', 'images per process', 'learning rate', 'starts from')


def family_pages(root: Path) -> Dict[str, str]:
    """The pages by their path in the repository, with an overview.

    Args:
        root (Path): The checkout.

    Raises:
        ValueError: If a config belongs to no family.
    """
    members: Dict[str, List[Path]] = {family.page: [] for family in FAMILIES}
    for path in sorted((root / 'configs').glob('*.py')):
        family = next((f for f in FAMILIES if re.match(f.pattern, path.stem)), None)
        if family is None:
            raise ValueError(f'{path.name} belongs to no family in {__name__}.FAMILIES')
        members[family.page].append(path)
    pages = {f'{FOLDER}/{family.page}.md': _page(family, members[family.page]) for family in FAMILIES}
    lines = [markdown_line(('family', 'configs', '')), markdown_line(('---', '---:', '---'))]
    lines += [
        markdown_line((f'[{f.title}]({f.page}.md)', len(members[f.page]), f.about)) for f in FAMILIES if members[f.page]
    ]
    pages[f'{FOLDER}/README.md'] = '\n'.join(
        [
            '# Configs by family',
            '',
            NOTE,
            '',
            'Names are flat under `configs/`; each begins with what it trains and the command. '
            '[Models](../models.md) has the published numbers.',
            '',
            *lines,
            '',
        ]
    )
    return pages


def _page(family: Family, paths: List[Path]) -> str:
    lines = [f'# {family.title}', '', NOTE, '', family.about, '', markdown_line(COLUMNS), markdown_line(['---'] * 6)]
    lines += [_line(path) for path in paths]
    commands = _commands(ast.get_docstring(ast.parse(paths[0].read_text(encoding='utf-8'))) or '')
    if commands:
        lines += ['', f'The commands of `{paths[0].name}`; each config begins with its own:', '']
        lines += ['```bash', commands, '```']
    return '\n'.join([*lines, ''])


def _commands(docstring: str) -> str:
    """The last paragraph of a config's docstring, without indentation."""
    lines = [line.strip() for line in docstring.split('\n\n')[-1].splitlines()]
    text = '\n'.join(lines)
    return re.sub(r'\\\n', '\\\\\n    ', text) if re.match(r'(python )?tools/', text) else ''


def _line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    cfg = Config.fromfile(path)
    loop, loader = cfg.get('train_cfg') or {}, cfg.get('train_dataloader') or {}
    length = f'{loop["max_epochs"]} epochs' if 'max_epochs' in loop else ''
    length = f'{loop["max_iters"]:,} iterations' if 'max_iters' in loop else length
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    start = (backbone.get('init_cfg') or {}).get('checkpoint') or cfg.get('load_from') or ''
    return markdown_line(
        (
            f'[`{path.stem}`](../../configs/{path.name})',
            docstring.split('\n')[0],
            length,
            loader.get('batch_size', '') if length else '',
            f'{optimizer["lr"]:g}' if length and 'lr' in optimizer else '',
            f'[`{start.rsplit("/", 1)[1]}`]({start})' if str(start).startswith('https:') else start,
        )
    )
