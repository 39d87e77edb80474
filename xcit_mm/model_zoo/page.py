"""``docs/models.md``: the tables of the published models, and every name with what is known of its weights."""

from itertools import groupby
from typing import Sequence

from ..published import Weights, all_weights
from .tables import TITLES, Row, by_task, check_complete, markdown_line, task_markdown

PATH = 'docs/models.md'
HEAD = """# Models

<!-- Written by tools/model_zoo.py --update-docs. -->

Every published file of XCiT by its name. A name is enough:

```python
from xcit_mm import create_backbone, list_models, model_info

backbone = create_backbone('xcit_tiny_12_p16_224.fb_dist_in1k')  # True as second argument: with its weights
print(list_models('*small_12_p8*'), model_info('dino_xcit_small_12_p8').address)
```

- `create_backbone(NAME, True)` and `Inferencer(NAME)` fetch the weights.
- `xcit_mm://NAME` is an address for everything that takes a checkpoint: `init_cfg`, `load_from`, the tools.
- `hf-hub:OWNER/NAME`, with `@REVISION` and `:FILE` where needed, is any repository of the Hugging Face hub.

```bash
tools/test.py configs/linear_xcit_s12_16_in1k.py xcit_mm://dino_xcit_small_12_p16_linear
tools/test.py configs/xcit_s12_8_dist_in1k.py hf-hub:timm/xcit_small_12_p8_224.fb_dist_in1k
tools/convert_checkpoint.py xcit_mm://xcit_s12_8_dist_in1k xcit_small_12_p8.safetensors --to timm
```

[Checkpoints](checkpoints.md) says how addresses are fetched, kept and checked. Accuracies on this page are
published. Parameters and MACs are computed by `tools/model_zoo.py`.
"""
SOURCES = {
    'XCiT': (
        'The original release',
        '[github.com/facebookresearch/xcit](https://github.com/facebookresearch/xcit). Its own names, such as '
        '`xcit_small_12_p8_224_dist`, are known too.',
    ),
    'timm': (
        'timm, on the Hugging Face hub',
        '[huggingface.co/timm](https://huggingface.co/timm): the same weights as safetensors. A name without its tag '
        'means the same as in the original release.',
    ),
    'MMPretrain': ('MMPretrain', "Conversions of the original files; the numbers are by MMPretrain's protocol."),
    'DINO': (
        'DINO',
        '[github.com/facebookresearch/dino](https://github.com/facebookresearch/dino): backbones trained without '
        'labels, the full runs, and the linear classifiers on them.',
    ),
    'RobustBench': (
        'Robust models',
        'By Debenedetti et al. ([arXiv:2209.07399](https://arxiv.org/abs/2209.07399)), from '
        '[RobustBench](https://github.com/RobustBench/robustbench): adversarially trained. Those for ImageNet take '
        'images from 0 to 1 without normalisation. Those for CIFAR have patches of 4: the patch embedding of 16, of '
        'which the first two convolutions have stride 1.',
    ),
}


def models_page(rows: Sequence[Row]) -> str:
    """The page.

    Args:
        rows (Sequence[Row]): All models with what was computed for them.

    Raises:
        UsageError: If a row could not be computed.
    """
    check_complete(rows)
    parts = [HEAD]
    for group in by_task(rows):
        table = task_markdown(group).replace('](configs/', '](../configs/')
        parts.append(f'## {TITLES[group[0].model.task]}\n\n{table}\n')
    parts.append(f'## All {len(all_weights())} names\n')
    for source, weights_of_source in groupby(all_weights(), lambda weights: weights.source):
        title, remark = SOURCES[source]
        parts.append(f'### {title}\n\n{remark}\n\n{_names(list(weights_of_source))}\n')
    return '\n'.join(parts)


def _names(group: Sequence[Weights]) -> str:
    columns = ('name', 'holds', 'arch', 'patch', 'pixels', 'data', 'licence', 'published', 'config')
    numbers = ('patch', 'pixels')
    lines = [markdown_line(columns), markdown_line('---:' if column in numbers else '---' for column in columns)]
    for weights in group:
        config = weights.config.rsplit('/', 1)[1]
        link = weights.address
        if link.startswith('hf-hub:'):
            link = f'https://huggingface.co/{link[len("hf-hub:") :]}'
        lines.append(
            markdown_line(
                (
                    f'[`{weights.name}`]({link})',
                    weights.holds,
                    weights.arch,
                    weights.patch_size,
                    weights.size or 'any',
                    weights.data,
                    weights.licence,
                    f'{weights.metric} {weights.value}',
                    f'[`{config}`](../{weights.config})',
                )
            )
        )
    return '\n'.join(lines)
