"""A model folder for timm and the Hugging Face hub: ``model.safetensors``, ``config.json`` and a model card."""

import json
import os
import re
from dataclasses import dataclass, replace
from typing import Any, List, Optional, Tuple

from mmengine.config import Config

from ..datasets.reading import config_in_checkpoint, preprocessor_of, test_pipeline
from ..errors import CheckpointError, UsageError, printable
from ..published import SIZE_NAMES, Weights, all_weights

WEIGHTS, CONFIG, CARD = 'model.safetensors', 'config.json', 'README.md'
# What timm's own configs of XCiT say.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# RobustBench's, for CIFAR; its models for ImageNet have none.
NORMALISED = {
    'CIFAR-10': ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    'CIFAR-100': ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
NOT = (0.0,) * 3, (1.0,) * 3
DATASETS = {'ImageNet-1k': 'imagenet-1k', 'CIFAR-10': 'cifar10', 'CIFAR-100': 'cifar100'}  # names of the hub
# Where the publishers state the licence of the weights.
LICENCES = {
    'XCiT': 'the licence of https://github.com/facebookresearch/xcit, which names no other one for its weights',
    'timm': "the licence of the original release; the model's card on the hub says which holds for its conversion",
    'MMPretrain': 'the licence of https://github.com/open-mmlab/mmpretrain, and of the original release',
    'DINO': 'the licence of https://github.com/facebookresearch/dino, which names no other one for its weights',
    'RobustBench': 'the licence of https://github.com/RobustBench/robustbench for all weights that it does not except',
}
CLASSES = {'ImageNet-1k': 1000, 'ImageNet-1k without labels': 0, 'CIFAR-10': 10, 'CIFAR-100': 100}


@dataclass(frozen=True)
class Images:
    """The input of a model, in timm's terms.

    Attributes:
        size (int): Edge in pixels.
        crop (float): Share of the resized image's short side that is kept.
        mean, std (tuple): Of the channels in RGB order, for values from 0 to 1.
        origin (str): Where these values come from, in words.
    """

    size: int
    crop: float
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    origin: str


def describe_images(meta: dict, published: Optional[Weights], in_channels: int) -> Images:
    """The images that a checkpoint's model was trained on, from the config in it or from what was published.

    Args:
        meta (dict): Meta of the checkpoint. It holds the text of MMEngine's config, which is parsed and never run.
        published (Weights, optional): If the file is a published one.
        in_channels (int): Input channels of the model.

    Raises:
        UsageError: If the images are BGR, which timm's are never.
    """
    images = Images((published.size if published else None) or 224, 1.0, IMAGENET_MEAN, IMAGENET_STD, 'assumed')
    if in_channels != 3:
        images = replace(images, mean=(0.5,) * in_channels, std=(0.5,) * in_channels)
    if published:
        images = replace(images, origin=f'of {published.name}')
        mean, std = (
            NORMALISED.get(published.data, NOT) if published.source == 'RobustBench' else (images.mean, images.std)
        )
        return replace(images, mean=mean, std=std)
    cfg = config_in_checkpoint({'meta': meta})
    if cfg is None:
        return images
    preprocessor = preprocessor_of(cfg)
    scaling: Any = preprocessor.get('mean'), preprocessor.get('std')
    if not all(_are_numbers(values, in_channels) for values in scaling):
        return images
    if in_channels == 3 and not (preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')):
        raise UsageError(
            'the config in the checkpoint feeds its images as they are loaded (no to_rgb=True in data_preprocessor), '
            'in BGR with most loading, and timm feeds RGB; --to timm writes the tensors alone'
        )
    size, crop = _size_and_crop(cfg, images.size)
    mean, std = (tuple(round(value / 255, 6) for value in values) for values in scaling)
    return Images(size, crop, mean, std, 'of the config in the checkpoint')


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def _are_numbers(values, count: int) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == count and all(type(v) in (int, float) for v in values)


def _size_and_crop(cfg: Config, size: int) -> Tuple[int, float]:
    """Edge of the test images in pixels, and the share that a centre crop keeps."""
    resized = None
    for step in test_pipeline(cfg):
        value: Any = step.get('crop_size') if step.get('type') == 'CenterCrop' else step.get('scale')
        edge = min(value) if _are_numbers(value, 2) else value
        if type(edge) is not int or edge < 1:
            continue
        if step.get('type') == 'CenterCrop':
            return edge, round(min(edge / (resized or edge), 1.0), 4)
        resized = size = edge
    return size, 1.0


def find_published(source: str, path: str, arch, num_classes: int) -> Optional[Weights]:
    """The published weights that a file is, by its address or else by the name of the file; None if it is another.

    Args:
        source (str): File or address that was given.
        path (str): Its file on this machine.
        arch (Arch): Arch of the tensors, since a user's own file may have the same name.
        num_classes (int): Classes of its head; 0 if there is none.
    """
    from ..models.xcit import ARCHS

    hub = re.match(r'hf[-_]hub:([^@:]+)', source)
    names = (f'hf-hub:{hub[1]}' if hub else source, os.path.basename(path))
    for weights in all_weights():
        sizes = ARCHS[weights.arch]
        if (
            weights.holds in ('classifier', 'backbone', 'full run')
            and (weights.address in names or f'xcit_mm://{weights.name}' in names or _file_name(weights) in names)
            and (sizes['embed_dims'], sizes['depth'], sizes['num_heads'], weights.patch_size)
            == (arch.embed_dims, arch.depth, arch.num_heads, arch.patch_size)
            and num_classes in (0, CLASSES[weights.data])
        ):
            return weights
    return None


def _file_name(weights: Weights) -> Optional[str]:
    return weights.address.rsplit('/', 1)[1] if weights.address.startswith('https://') else None


def timm_arch(arch) -> Tuple[str, dict]:
    """timm's name of an :class:`~xcit_mm.conversion.arch.Arch`, and what differs from it as timm's arguments.

    Raises:
        CheckpointError: If timm has no such model.
    """
    from ..models.xcit import ARCHS

    if arch.patch_size == 4:
        raise CheckpointError(
            'timm has no patches of 4: it would build the model with patches of 16 from these tensors, and its outputs '
            'would be wrong. --to timm writes the tensors; they need a model whose first two convolutions have '
            'stride 1'
        )
    sizes = arch.embed_dims, arch.depth, arch.num_heads
    named = {(a['embed_dims'], a['depth'], a['num_heads']): name for name, a in ARCHS.items()}
    name = named.get(sizes, 's12')
    name = name if name not in ('m12', 'l12') else 's12'
    published = ARCHS[name]
    theirs = dict(
        embed_dim=published['embed_dims'],
        depth=published['depth'],
        num_heads=published['num_heads'],
        mlp_ratio=4.0,
        tokens_norm=published.get('tokens_norm', True),
        in_chans=3,
    )
    ours = dict(
        embed_dim=arch.embed_dims,
        depth=arch.depth,
        num_heads=arch.num_heads,
        mlp_ratio=arch.mlp_ratio,
        tokens_norm=arch.tokens_norm,
        in_chans=arch.in_channels,
    )
    different = {key: value for key, value in ours.items() if value != theirs[key]}
    return f'xcit_{SIZE_NAMES[name[0]]}_{name[1:]}_p{arch.patch_size}_224', different


def class_names(meta: dict, count: int) -> Optional[List[str]]:
    names = _dict(meta.get('dataset_meta')).get('classes') or meta.get('CLASSES')
    if isinstance(names, (list, tuple)) and len(names) == count and all(isinstance(name, str) for name in names):
        return list(names)
    return None


def write_config(folder: str, arch, num_classes: int, images: Images, names: Optional[List[str]]) -> None:
    """``config.json`` as timm reads it."""
    name, different = timm_arch(arch)
    config = {
        'architecture': name,
        'num_classes': num_classes,
        'num_features': arch.embed_dims,
        'global_pool': 'token',
        **({'label_names': names} if names else {}),
        **({'model_args': different} if different else {}),
        'pretrained_cfg': {
            'custom_load': False,
            'input_size': [arch.in_channels, images.size, images.size],
            'fixed_input_size': True,
            'interpolation': 'bicubic',
            'crop_pct': images.crop,
            'crop_mode': 'center',
            'mean': list(images.mean),
            'std': list(images.std),
            'num_classes': num_classes,
            'pool_size': None,
            'first_conv': 'patch_embed.proj.0.0',
            'classifier': 'head',
        },
    }
    with open(os.path.join(folder, CONFIG), 'w', encoding='utf-8') as file:
        json.dump(config, file, indent=2)
        file.write('\n')


def write_card(
    folder: str,
    title: str,
    arch,
    num_classes: int,
    images: Images,
    published: Optional[Weights],
    origin: str,
    names: Optional[List[str]],
) -> None:
    """``README.md``: the header that the hub reads, the model card, and what is known of the data.

    What is not known is marked TODO for the person who uploads it; nothing is made up.
    """
    task = 'image-classification' if num_classes else 'image-feature-extraction'
    header = [f'tags: [{task}, timm, xcit]', 'library_name: timm', f'pipeline_tag: {task}']
    if published:
        header.insert(0, f'license: {published.licence.lower()}')
        if published.data in DATASETS:
            header.append(f'datasets: [{DATASETS[published.data]}]')
    head = f'a linear head of {num_classes} classes' if num_classes else 'no head'
    channels = f'{arch.in_channels} channels{" (RGB)" if arch.in_channels == 3 else ""}'
    lines = [
        '---',
        *header,
        '---',
        f'# {title}',
        '',
        f'{arch} ([XCiT: Cross-Covariance Image Transformers](https://arxiv.org/abs/2106.09681)) with {head}, '
        f'converted by xcit_mm from `{printable(origin, 200)}`.',
        '',
        '## Use',
        '',
        f'- Images: {images.size} x {images.size}, {channels}, mean {_listed(images.mean)}, '
        f'standard deviation {_listed(images.std)} for values from 0 to 1 ({images.origin})',
        '- Other sizes work; the accuracy is that of this one.',
        '',
        '```python',
        'import timm',
        '',
        "model = timm.create_model('hf-hub:OWNER/NAME', pretrained=True)  # or 'local-dir:FOLDER'",
        '```',
        '',
        '```python',
        "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='hf-hub:OWNER/NAME')))  # OpenMMLab",
        '```',
        '',
        '## Evaluation',
        '',
        f'Published {published.metric} {published.value} % ({published.data}); not measured anew by the conversion.'
        if published
        else 'TODO: which number, on which images, by which command.',
        '',
        '## Data',
        '',
        f'- Trained on: {published.data if published else "TODO: name, origin and licence of the images and labels"}',
        f'- Classes: {_list_of_names(names) if names else num_classes or "none, the model gives features"}',
        *_remarks(published),
        '',
        '## Licence',
        '',
        f'{published.licence}: {LICENCES[published.source]}. The data have terms of their own.'
        if published
        else 'TODO: that of the weights, which those that the training started from and the data may restrict. '
        'xcit_mm itself is Apache-2.0 and makes no claim on what is trained with it.',
        '',
    ]
    with open(os.path.join(folder, CARD), 'w', encoding='utf-8') as file:
        file.write('\n'.join(lines))


def _remarks(published: Optional[Weights]) -> List[str]:
    """Limits that published weights take from their data."""
    if published is None:
        return ['- TODO: who or what is in the images, what is missing from them, what the model must not be used for']
    lines = []
    if published.data.startswith('ImageNet'):
        lines.append('- Photographs from the web, labelled by crowd workers: people and places are unevenly shown')
    if published.source == 'RobustBench':
        lines.append('- Trained against small perturbations (l-inf), not against other changes of the images')
    if published.source == 'DINO':
        lines.append('- Trained without labels')
    return lines


def _list_of_names(names: List[str]) -> str:
    shown = ', '.join(printable(name, 60) for name in names[:20])
    return shown if len(names) <= 20 else f'{shown}, and {len(names) - 20} more in config.json'


def _listed(values) -> str:
    return ', '.join(f'{value:g}' for value in values)
