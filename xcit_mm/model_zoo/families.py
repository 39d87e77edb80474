"""``docs/configs/``: a page for each family of configs, made from the configs and from what was published for them."""

import ast
import re
from pathlib import Path
from typing import Dict, List, NamedTuple

from mmengine.config import Config

from ..published import TOP1, TOP1_MMPRETRAIN, all_models, all_weights, read_table
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
        'digits',
        r'.*digits.*',
        'Digits',
        'Small models for a small data set that the project makes: see the [tutorial](../tutorial.md). '
        'Results and times are measured on two cores of an AMD EPYC.',
    ),
    Family(
        'mask_rcnn', r'mask_rcnn_', 'Mask R-CNN on COCO', 'Boxes and masks, 3x schedule: [detection](../detection.md).'
    ),
    Family('faster_rcnn', r'faster_rcnn_', 'Faster R-CNN on COCO', 'Boxes alone; nobody published such models.'),
    Family(
        'sem_fpn',
        r'sem_fpn_',
        'Semantic FPN on ADE20K',
        '80k iterations; the faster of the two segmentors: [segmentation](../segmentation.md).',
    ),
    Family(
        'upernet',
        r'upernet_',
        'UperNet on ADE20K',
        '160k iterations; the more accurate of the two segmentors: [segmentation](../segmentation.md).',
    ),
    Family(
        'ablations',
        r'ablation_',
        'Ablations',
        'Table 4 of the paper: each changes one switch of the backbone ([studies](../studies.md)).',
    ),
    Family(
        'robust',
        r'debenedetti',
        'Robust models',
        'Adversarially trained, by Debenedetti et al. ([paper](https://arxiv.org/abs/2209.07399)); for testing.',
    ),
    Family(
        'dino',
        r'(dino|knn|linear)_',
        'DINO',
        'Training without labels, with its k-NN and linear evaluation: [self-supervision](../self_supervision.md).',
    ),
    Family(
        'imagenet',
        r'xcit_.*_in1k',
        'Classification on ImageNet-1k',
        'From scratch, distilled, and at 384x384: [classification](../classification.md).',
    ),
    Family(
        'transfer',
        r'xcit_',
        'Transfer sets',
        'ImageNet models fine-tuned on smaller data sets; no number is published for these models.',
    ),
)
ABOUT = ('config', 'trains', 'reaches')
WEIGHTS = 'weights'
RECIPE = ('length', 'images per process', 'learning rate', 'starts from')
HEADLINES = {
    'classification': (TOP1, TOP1_MMPRETRAIN),
    'detection': ('box AP', 'mask AP'),
    'segmentation': ('mIoU',),
}
# Names of the configs by the words of the paper's table 4.
ABLATIONS = {
    'linear patch projection': 'linear_patches',
    'without LPI': 'no_lpi',
    'without XCA': 'no_xca',
    'without l2 normalisation': 'no_l2_norm',
    'without learned temperature': 'no_temperature',
}


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
            'Names are flat under `configs/`; each begins with what it trains and the command. A page has the settings '
            'of its configs, the published results and the weights; [Models](../models.md) has all side by side.',
            '',
            *lines,
            '',
        ]
    )
    return pages


def published_results() -> Dict[str, Dict[str, str]]:
    """The published numbers of a config by their names, in per cent, and a link to its weights."""
    found: Dict[str, Dict[str, str]] = {}
    for weights in all_weights():
        one = {weights.metric: f'{weights.value:.{_decimals(weights.metric)}f}', WEIGHTS: _link(weights.address)}
        found.setdefault(Path(weights.config).stem, one)  # the first is the original release's
    for model in all_models():
        numbers = {name: f'{model.metrics[name]:.{_decimals(name)}f}' for name in HEADLINES[model.task]}
        found[model.name] = {**numbers, WEIGHTS: _link(model.weights)}
    for row in read_table('robust_xcit'):
        name = f'debenedetti2022light_xcit_{row["arch"]}_{row["dataset"]}_linf'
        found[name]['top-1 under AutoAttack'] = f'{row["autoattack"]:.2f}'
    for row in read_table('paper_table3_self_supervised'):
        if row['method'] == 'DINO' and row['model'].startswith('XCiT'):
            linear = {'linear top-1': f'{row["linear"]:.1f}'}
            if row['resolution'] == 224:
                found[f'dino_{_short(row["model"])}_300e_in1k'].update(linear)
            else:
                found[f'linear_{_short(row["model"])}_{row["resolution"]}_in1k'] = linear
    for row in read_table('paper_table4_ablations'):
        if row['ablation'] in ABLATIONS:
            result = row['outcome'] if row['top1'] is None else f'{row["top1"]:.1f}'
            found[f'ablation_{_short(row["model"])}_{ABLATIONS[row["ablation"]]}_in1k'] = {'top-1': result}
    return found


def _decimals(metric: str) -> int:
    return 2 if metric in (TOP1_MMPRETRAIN, 'clean top-1') else 1


def _short(title: str) -> str:
    """``XCiT-S12/16`` as in the names of configs: ``xcit_s12_16``."""
    return re.sub('[-/]', '_', title).lower()


def _link(address: str) -> str:
    return f'[`{address.rsplit("/", 1)[1]}`]({address})'


def _page(family: Family, paths: List[Path]) -> str:
    results = published_results()
    published = [results.get(path.stem, {}) for path in paths]
    numbers = [name for name in dict.fromkeys(name for row in published for name in row) if name != WEIGHTS]
    rows = [{**_settings(path), **row} for path, row in zip(paths, published)]
    columns = [name for name in (*ABOUT, *numbers, WEIGHTS, *RECIPE) if any(row.get(name) for row in rows)]
    lines = [f'# {family.title}', '', NOTE, '', family.about, '']
    if numbers:
        lines += ['Results are published, in per cent.', '']
    lines += [markdown_line(columns), markdown_line('---:' if name in numbers else '---' for name in columns)]
    lines += [markdown_line(row.get(name, '') for name in columns) for row in rows]
    commands = _commands(ast.get_docstring(ast.parse(paths[0].read_text(encoding='utf-8'))) or '')
    if commands:
        lines += ['', f'The commands of `{paths[0].name}`; each config begins with its own:', '']
        lines += ['```bash', commands, '```']
    return '\n'.join([*lines, ''])


def _commands(docstring: str) -> str:
    """The last paragraph of a config's docstring, without indentation."""
    lines = [line.strip() for line in docstring.split('\n\n')[-1].splitlines()]
    text = '\n'.join(lines)
    return re.sub(r'\\\n', '\\\\\n    ', text) if re.match(r'(\w+=\w+ )*(python )?tools/', text) else ''


def _settings(path: Path) -> Dict[str, str]:
    """What a config says of itself, by column; a result that it reaches here is in its docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    cfg = Config.fromfile(path)
    loop, loader = cfg.get('train_cfg') or {}, cfg.get('train_dataloader') or {}
    length = f'{loop["max_epochs"]} epochs' if 'max_epochs' in loop else ''
    length = f'{loop["max_iters"]:,} iterations' if 'max_iters' in loop else length
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    start = (backbone.get('init_cfg') or {}).get('checkpoint') or cfg.get('load_from') or ''
    measured = re.search(r'\bReaches (.*?)\.\s', f'{docstring}\n', re.S)
    return {
        'config': f'[`{path.stem}`](../../configs/{path.name})',
        'trains': docstring.split('\n')[0],
        'reaches': ' '.join(measured[1].split()) if measured else '',
        'length': length,
        'images per process': str(loader.get('batch_size', '')) if length else '',
        'learning rate': f'{optimizer["lr"]:g}' if length and 'lr' in optimizer else '',
        'starts from': _link(start) if str(start).startswith('https:') else start,
    }
