"""An ordinary config for a recipe: it inherits from a published one, and says what differs."""

import textwrap
from pathlib import Path
from typing import Dict

from .data import Data
from .recipe import Recipe

WIDTH = 100


def config_text(data: Data, recipe: Recipe, annotations: Dict[str, str], run: Path) -> str:
    """The text of the config.

    Args:
        data (Data): With splits.
        recipe (Recipe): Recipe for the data.
        annotations (dict): Files of :func:`.write.write`, by split.
        run (Path): The folder of the run.
    """
    parts = {
        'classification': _classifier,
        'detection': _detector,
        'instance-segmentation': _detector,
        'semantic-segmentation': _segmentor,
    }[data.task](data, recipe, {split: str(Path(path).resolve()) for split, path in annotations.items()})
    name = f'XCiT-{recipe.arch.upper()}/{recipe.patch_size}'
    return '\n'.join(
        [
            f'"""{name} on {data.root}: {len(data.classes)} classes, {len(data.of("train"))} images to train on.',
            '',
            'Written by xcit-mm finetune. An ordinary config: change what you like, and train again with',
            '',
            f'    xcit-mm train {run / "config.py"} --out-dir {run / "train"}',
            '"""',
            '',
            f"_base_ = __import__('xcit_mm').config_path({recipe.base!r})",
            '',
            f'classes = {_tuple(data.classes)}',
            *parts,
            *_schedule(recipe),
            *_hooks(recipe),
            '',
        ]
    )


def _tuple(names) -> str:
    """Names as a tuple, in lines of at most :data:`WIDTH` characters."""
    text = ', '.join(map(repr, names)) + (',' if len(names) == 1 else '')
    if len(text) < WIDTH - 12:
        return f'({text})'
    # Names with spaces stay whole.
    parts = textwrap.wrap(', '.join(repr(name).replace(' ', '\0') for name in names), WIDTH - 4, break_long_words=False)
    return '(\n' + '\n'.join(f'    {part}' for part in parts).replace('\0', ' ') + ',\n)'


def _palette(data: Data) -> str:
    return f', palette={[tuple(colour) for colour in data.palette]}' if data.palette else ''


def _backbone(recipe: Recipe, indent: str = '        ') -> str:
    """The changes of the backbone."""
    settings = [f"arch='{recipe.arch}'", f'patch_size={recipe.patch_size}']
    if recipe.frozen_norms:
        settings.append('norm_eval=True')
    if recipe.weights and not recipe.whole:
        settings.append(f"init_cfg=dict(type='Pretrained', checkpoint={recipe.weights!r})")
    elif recipe.head:
        settings.append('init_cfg=None')
    return f'dict(\n{indent}' + f',\n{indent}'.join(settings) + f',\n{indent[:-4]})'


def _loader(recipe: Recipe, batch: int, dataset: str, more: str = '') -> str:
    return (
        f'dict(\n    batch_size={batch},\n    num_workers={recipe.workers},\n    persistent_workers=True,\n{more}'
        f'    dataset=dict({dataset}),\n)'
    )


def _loaders(recipe: Recipe, annotations: Dict[str, str], dataset, train_more: str = '', batch: int = 0):
    """The three data loaders; ``dataset`` gives the arguments of the data set for a file and a pipeline."""
    test = annotations.get('test', annotations['val'])
    batch, train = batch or recipe.batch, dataset(annotations['train'], 'train_pipeline')
    lines = [
        f'train_dataloader = {_loader(recipe, recipe.batch, train, train_more)}',
        f'val_dataloader = {_loader(recipe, batch, dataset(annotations["val"], "test_pipeline"))}',
    ]
    if test == annotations['val']:
        return [*lines, 'test_dataloader = val_dataloader']
    return [*lines, f'test_dataloader = {_loader(recipe, batch, dataset(test, "test_pipeline"))}']


def _classifier(data: Data, recipe: Recipe, annotations: Dict[str, str]):
    size = recipe.size
    flip = "\n    dict(type='RandomFlip', prob=0.5, direction='horizontal')," if recipe.flip else ''
    least = 0.35 if recipe.pretrained else 0.5

    def dataset(path: str, pipeline: str) -> str:
        return (
            f"\n        _delete_=True,\n        type='CustomDataset',\n        data_root='',\n"
            f'        ann_file={path!r},\n        data_prefix={data.root!r},\n'
            f'        metainfo=dict(classes=classes),\n        pipeline={pipeline},\n    '
        )

    return [
        'model = dict(',
        f'    data_preprocessor=dict(num_classes={len(data.classes)}),',
        f'    backbone={_backbone(recipe)},',
        f'    head=dict(num_classes={len(data.classes)}, in_channels={recipe.channels}),',
        '    train_cfg=None,  # no mixing of images: runs of this length do better without',
        ')',
        '',
        "bicubic = dict(backend='pillow', interpolation='bicubic')",
        'train_pipeline = [',
        "    dict(type='LoadImageFromFile'),",
        f"    dict(type='RandomResizedCrop', scale={size}, crop_ratio_range=({least}, 1.0), **bicubic),{flip}",
        "    dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.3),",
        "    dict(type='PackInputs'),",
        ']',
        'test_pipeline = [',
        "    dict(type='LoadImageFromFile'),",
        f"    dict(type='ResizeEdge', scale={size}, edge='short', **bicubic),",
        f"    dict(type='CenterCrop', crop_size={size}),",
        "    dict(type='PackInputs'),",
        ']',
        *_loaders(
            recipe, annotations, dataset, "    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),\n"
        ),
        'val_evaluator = dict(topk=(1,))',
        'test_evaluator = val_evaluator',
    ]


def _detector(data: Data, recipe: Recipe, annotations: Dict[str, str]):
    with_mask = data.task == 'instance-segmentation'
    size, long = recipe.size, round(recipe.size * 1333 / 800)
    scales = [(round(long * 1.25), round(size * share / 16) * 16) for share in (0.75, 0.875, 1.0, 1.125, 1.25)]
    flip = "\n    dict(type='RandomFlip', prob=0.5)," if recipe.flip else ''
    count, channels = len(data.classes), recipe.channels
    metric = "['bbox', 'segm']" if with_mask else "'bbox'"
    # From random weights the pyramid and the heads do not learn without norms.
    norm = '' if recipe.pretrained else ", norm_cfg=dict(type='xcit_mm.SyncBN')"
    mask_head = f', mask_head=dict(num_classes={count}{norm})' if with_mask else ''

    def dataset(path: str, pipeline: str) -> str:
        return (
            f"\n        data_root='',\n        ann_file={path!r},\n"
            f'        data_prefix=dict(img={data.root + "/"!r}),\n'
            f'        metainfo=dict(classes=classes{_palette(data)}),\n        pipeline={pipeline},\n    '
        )

    evaluator = 'val_evaluator' if 'test' not in annotations else f'dict(ann_file=None, metric={metric})'
    return [
        'model = dict(',
        f'    backbone={_backbone(recipe)},',
        f'    neck=dict(in_channels={[channels] * 4}{norm}),',
        f'    roi_head=dict(bbox_head=dict(num_classes={count}){mask_head}),',
        ')',
        '',
        'train_pipeline = [',
        "    dict(type='LoadImageFromFile'),",
        f"    dict(type='LoadAnnotations', with_bbox=True{', with_mask=True' * with_mask}),{flip}",
        f"    dict(type='RandomChoiceResize', scales={scales}, keep_ratio=True),",
        "    dict(type='PhotoMetricDistortion'),",
        "    dict(type='PackDetInputs'),",
        ']',
        'test_pipeline = [',
        "    dict(type='LoadImageFromFile'),",
        f"    dict(type='Resize', scale=({long}, {size}), keep_ratio=True),",
        f"    dict(type='LoadAnnotations', with_bbox=True{', with_mask=True' * with_mask}),",
        '    dict(',
        "        type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')",
        '    ),',
        ']',
        *_loaders(recipe, annotations, dataset, batch=1),
        f'val_evaluator = dict(ann_file=None, metric={metric})',
        f'test_evaluator = {evaluator}',
    ]


def _segmentor(data: Data, recipe: Recipe, annotations: Dict[str, str]):
    size, count, channels = recipe.size, len(data.classes), recipe.channels
    long = size * 4
    flip = "\n    dict(type='RandomFlip', prob=0.5)," if recipe.flip else ''
    norm = '' if recipe.pretrained else ", norm_cfg=dict(type='xcit_mm.SyncBN')"
    heads = (
        [
            f'    neck=dict(in_channels={[channels] * 4}, out_channels={channels}{norm}),',
            f'    decode_head=dict(in_channels={[channels] * 4}, num_classes={count}),',
        ]
        if recipe.head == 'sem_fpn'
        else [
            f'    decode_head=dict(in_channels={[channels] * 4}, num_classes={count}),',
            f'    auxiliary_head=dict(in_channels={channels}, num_classes={count}),',
        ]
    )
    maps = str(Path(annotations['train']).parent / 'maps')

    def dataset(path: str, pipeline: str) -> str:
        return (
            f"\n        _delete_=True,\n        type='BaseSegDataset',\n        data_root='',\n"
            f'        ann_file={path!r},\n        data_prefix=dict(img_path={data.root!r}, seg_map_path={maps!r}),\n'
            f"        img_suffix='',\n        seg_map_suffix='.png',\n"
            f'        metainfo=dict(classes=classes{_palette(data)}),\n        reduce_zero_label=False,\n'
            f'        pipeline={pipeline},\n    '
        )

    return [
        'model = dict(',
        f'    data_preprocessor=dict(size=({size}, {size})),',
        f'    backbone={_backbone(recipe)},',
        *heads,
        ')',
        '',
        'train_pipeline = [',
        "    dict(type='xcit_mm.LoadImageFromFile'),",
        "    dict(type='xcit_mm.LoadSegMap', reduce_zero_label=False),",
        f"    dict(type='RandomResize', scale=({long}, {size}), ratio_range=(0.5, 2.0), keep_ratio=True),",
        f"    dict(type='RandomCrop', crop_size=({size}, {size}), cat_max_ratio=0.75),{flip}",
        "    dict(type='PhotoMetricDistortion'),",
        "    dict(type='PackSegInputs'),",
        ']',
        'test_pipeline = [',
        "    dict(type='LoadImageFromFile'),",
        f"    dict(type='Resize', scale=({long}, {size}), keep_ratio=True),",
        "    dict(type='LoadAnnotations', reduce_zero_label=False),",
        "    dict(type='PackSegInputs'),",
        ']',
        *_loaders(recipe, annotations, dataset, batch=1),
    ]


def _schedule(recipe: Recipe):
    """Optimizer, learning rates and loop. Segmentors count iterations, as their library does."""
    by_epoch = recipe.task != 'semantic-segmentation'
    warm_up = min(500, recipe.total // 20) if recipe.total >= 60 else 0  # iterations; three at least, or none
    wrapper = (
        ["    type='AmpOptimWrapper',", "    loss_scale='dynamic',"] if recipe.amp else ["    type='OptimWrapper',"]
    )
    lines = [
        '',
        'optim_wrapper = dict(',
        *wrapper,
        f'    optimizer=dict(lr={recipe.lr:g}),',
        f'    clip_grad=dict(max_norm={1.0 if recipe.task == "classification" else 10.0}),',
    ]
    if recipe.layer_decay < 1:
        lines += [
            "    constructor='xcit_mm.LayerDecayOptimWrapperConstructor',",
            f'    paramwise_cfg=dict(layer_decay_rate={recipe.layer_decay:g}),',
        ]
    lines += [
        ')',
        f'epochs, iterations = {recipe.epochs}, {recipe.iterations}  # iterations of an epoch',
        'param_scheduler = [',
        *(
            [f"    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end={warm_up}),"]
            if warm_up
            else []
        ),
        '    dict(',
        f"        type='CosineAnnealingLR', eta_min={recipe.lr / 100:.2g}, by_epoch=False,",
        f'        begin={warm_up}, end=epochs * iterations, T_max=epochs * iterations - {warm_up},',
        '    ),',
        ']',
    ]
    if by_epoch:
        lines.append(f'train_cfg = dict(max_epochs=epochs, val_interval={recipe.val_interval})')
    else:
        lines.append(
            f'train_cfg = dict(max_iters=epochs * iterations, val_interval={recipe.val_interval} * iterations)'
        )
    lines.append(f'auto_scale_lr = dict(base_batch_size={recipe.batch * recipe.gpus})')
    return lines


def _hooks(recipe: Recipe):
    by_epoch = recipe.task != 'semantic-segmentation'
    interval = f'{recipe.val_interval}' + ('' if by_epoch else ' * iterations')
    validations = max(1, recipe.epochs // recipe.val_interval)
    patience = max(5, round(0.4 * validations))
    lines = [
        'default_hooks = dict(',
        f'    logger=dict(interval={max(1, min(50, recipe.iterations))}),',
        '    checkpoint=dict(',
        f"        interval={interval}, max_keep_ckpts=1, save_best={recipe.monitor!r}, rule='greater'",
        '    ),',
        ')',
        'custom_hooks = [',
        "    dict(type='xcit_mm.IterationSeedHook'),",
        "    dict(type='xcit_mm.CheckpointFitHook'),",
        "    dict(type='xcit_mm.BadImagesHook'),",
        '    # The average is what is validated and saved. Its horizon grows from the first iterations on.',
        '    dict(',
        "        type='xcit_mm.EMAHook', ema_type='MomentumAnnealingEMA', gamma=10,",
        f'        momentum={recipe.ema_momentum:g}, update_buffers=True, evaluate=True,',
        "        priority='ABOVE_NORMAL',",
        '    ),',
        f"    dict(type='EarlyStoppingHook', monitor={recipe.monitor!r}, rule='greater', patience={patience}),",
        f"    dict(type='xcit_mm.CurveHook', monitor={recipe.monitor!r}),",
        ']',
        'randomness = dict(seed=0)',
    ]
    if recipe.whole:
        lines.append(f'load_from = {recipe.weights!r}')
    return lines
