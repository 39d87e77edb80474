"""Segmentation: images, label maps, classes, settings and metrics match."""

import os
from collections import Counter
from typing import Iterator, List, Optional, Sequence

from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from ..datasets.config import (
    Data,
    check_exist,
    find_loaders,
    find_type,
    innermost_datasets,
    list_files,
    some,
    stems,
    suffixes,
)
from ..errors import UsageError
from .classes import compare_classes

ADE20K_IMAGES = {'training': 20210, 'validation': 2000}
IGNORED = 255
# One learns edges, the other takes class names as text; their num_classes is not that of the data.
OTHER_HEADS = ('STDCHead', 'SideAdapterCLIPHead')
IOU_METRICS = ('mIoU', 'mDice', 'mFscore')
OTHER_FILES = {
    '.json': 'JSON, as LabelMe and COCO write polygons; labelme2voc.py of LabelMe makes maps of them',
    '.txt': 'texts, as YOLO writes polygons; draw them into maps first',
    '.xml': 'XML, as VOC and CVAT write boxes; segmentation needs maps',
    '.npy': 'arrays of NumPy; save them as PNG with PIL.Image.fromarray(labels.astype("uint8")).save(...)',
    '.mat': 'files of MATLAB; save their labels as PNG',
}


def check_maps(data: Data) -> None:
    """Check that every image has its map of classes, and every map its image."""
    if not finds_files(data):
        return
    image_suffix, map_suffix = data.setting('img_suffix'), data.setting('seg_map_suffix')
    images, maps = data.path(prefix(data, 'img_path')), prefix(data, 'seg_map_path')
    check_exist(data, [images])
    image_names = stems(images, image_suffix)
    if not image_names:
        raise UsageError(
            f'{data}: there is no image (*{image_suffix}) in {images}. It holds '
            f'{suffixes(list(list_files(images)))}.{_suffix_hint(images, "img_suffix")} {_advice(data, images)}'
        )
    _count_others(data, images, image_suffix, 'img_suffix', maps is not None and data.path(maps) == images)
    listed = data.path(data.cfg.get('ann_file')) if data.cfg.get('ann_file') else None
    wanted = image_names
    if listed and os.path.isfile(listed):
        wanted = _listed(data, listed, image_names, image_suffix)
    without_image = wanted - image_names
    without_map = set()
    if maps is not None:
        map_names = stems(data.path(maps), map_suffix)
        without_map = wanted - map_names
        if without_map == wanted:
            _no_maps(data, data.path(maps), map_suffix, image_names)
        if wanted is image_names:
            without_image = map_names - image_names
    if without_map or without_image:
        found = [
            f'{what}: {len(names)} ({some(names)})'
            for names, what in ((without_map, 'images without a map'), (without_image, 'missing images'))
            if names
        ]
        counts = f'{len(image_names)} images' + (f' and {len(map_names)} maps' if maps is not None else '')
        advice = _advice(data, images)
        whole = 'The whole ADE20K has 20,210 images for training and 2,000 for validation, each with a map. '
        raise UsageError(
            f'{data} is incomplete: {counts} in {images} and {data.path(maps)}; {"; ".join(found)}. '
            f'{whole if "ADEChallengeData" in advice else ""}To use a part of it, list the '
            f'names, without suffix, in a text file, and give that as ann_file. {advice}'
        )
    expected = ADE20K_IMAGES.get(os.path.basename(images.rstrip('/')))
    if data.name == 'ADE20KDataset' and wanted is image_names and expected and len(image_names) != expected:
        print(f'Note: {images} has {len(image_names)} images; in the whole ADE20K it has {expected}.', flush=True)


def finds_files(data: Data) -> bool:
    """True if MMSegmentation's base class finds images and maps, and not a custom class."""
    found_by = next(parent for parent in data.kind.__mro__ if 'load_data_list' in parent.__dict__)
    return found_by.__name__ == 'BaseSegDataset'


def prefix(data: Data, key: str) -> Optional[str]:
    """A folder of ``data_prefix``, by the config or the type."""
    prefixes = data.setting('data_prefix')
    return prefixes.get(key) if hasattr(prefixes, 'get') else None


def _listed(data: Data, path: str, image_names: set, suffix: str) -> set:
    with open(path) as file:
        wanted = {line.strip() for line in file if line.strip()}
    if not wanted:
        raise UsageError(f'{data}: {path} lists no images')
    with_suffix = [name for name in wanted if suffix and name.endswith(suffix) and name[: -len(suffix)] in image_names]
    if len(with_suffix) == len(wanted):
        raise UsageError(
            f'{data}: {path} lists the images with their suffix, such as {some(wanted, 1)}; MMSegmentation adds '
            f'{suffix} itself. List them without'
        )
    return wanted


def _advice(data: Data, images: str) -> str:
    """Where to get missing data; nothing about ADE20K if other images are in its place."""
    names = list(list_files(images))
    if data.name != 'ADE20KDataset' or data.is_own or not names:
        return data.advice()
    if any(os.path.basename(name).startswith('ADE_') for name in names):
        return data.advice()
    return (
        f'These are no images of ADE20K, such as ADE_train_00000001.jpg. For data of your own: '
        f"type='BaseSegDataset' with metainfo=dict(classes=...), see docs/segmentation.md. {data.where_else()}"
    )


def _suffix_hint(folder: str, setting: str) -> str:
    counts = Counter(os.path.splitext(name)[1] for name in list_files(folder))
    known = [suffix for suffix, _ in counts.most_common() if suffix.lower() in Image.registered_extensions()]
    return f" For these, set {setting}='{known[0]}' in the data set." if known else ''


def _count_others(data: Data, folder: str, suffix: str, setting: str, has_maps: bool) -> None:
    """Print which images of a folder are not read."""
    others = [
        name
        for name in list_files(folder)
        if not name.endswith(suffix) and os.path.splitext(name)[1].lower() in Image.registered_extensions()
    ]
    if others and not has_maps:
        print(
            f'Note: {data}: {len(others)} images in {folder} are left out, since {setting} is {suffix!r}: '
            f'{suffixes(others)}.',
            flush=True,
        )


def _no_maps(data: Data, folder: str, suffix: str, image_names: set) -> None:
    """Report that no image has a map: what the folder of maps holds, and which setting reads it."""
    if not os.path.isdir(folder):
        return  # check_exist has said so
    names = list(list_files(folder))
    ends = Counter(
        name[len(stem) :]
        for stem in sorted(image_names)[:50]
        for name in names
        if name.startswith(stem) and name[len(stem) :].lower().endswith(tuple(Image.registered_extensions()))
    )
    kinds = [OTHER_FILES[end] for end in {os.path.splitext(name)[1] for name in names} if end in OTHER_FILES]
    if ends:
        hint = f"Those begin as the images do: set seg_map_suffix='{ends.most_common(1)[0][0]}' in the data set"
    elif kinds:
        hint = f'These are {kinds[0]}. A map is a picture of the size of its image, with the number of the class'
    elif any(name.endswith(suffix) for name in names):
        hint = f'Image and map must have the same name: {some(image_names)} and {some(names)}'
    else:
        hint = 'A map is a picture of the size of its image, with the number of the class of each pixel'
    raise UsageError(
        f'{data}: none of {len(image_names)} images has a map (*{suffix}) in {folder}, which holds {suffixes(names)}. '
        f'{hint}. {_advice(data, data.path(prefix(data, "img_path")))}'
    )


# Settings.


def _segmented(cfg: Config) -> List[Data]:
    """The data sets of all splits that are MMSegmentation's or inherit from them."""
    found = []
    for split, loader in find_loaders(cfg).items():
        for dataset in innermost_datasets(loader['dataset']):
            kind = find_type(DATASETS, dataset['type'], cfg.get('default_scope') or 'mmengine')
            if any(parent.__name__ == 'BaseSegDataset' for parent in getattr(kind, '__mro__', ())):
                found.append(Data(split, dataset, kind))
    return found


def as_list(value) -> list:
    return [value] if isinstance(value, dict) else list(value or ())


def _heads(cfg: Config) -> Iterator[tuple]:
    for name in ('decode_head', 'auxiliary_head'):
        heads = as_list(cfg.model.get(name))
        for number, head in enumerate(heads):
            yield (f'model.{name}' if len(heads) == 1 else f'model.{name}[{number}]'), head


def check_segmentation(datasets: List[Data], cfg: Config) -> None:
    """Check that data sets of training and testing, pipelines, heads and metrics belong together.

    Args:
        datasets (list[Data]): Those of MMSegmentation that the run uses.
        cfg (Config): Also for what the run does not use: classes of training that a test is compared with.
    """
    if not datasets:
        return
    for data in datasets:
        if not data.classes and not finds_files(data):
            return  # a custom class may have them
        _check_classes(data)
        _check_zero_label(data)
        _check_maps_are_read(data, cfg)
    first = next((data for data in _segmented(cfg) if data.split == 'train' and data.classes), None)
    numbers = {head.get('num_classes') for _, head in _heads(cfg)}
    if first and first.cfg not in [data.cfg for data in datasets] and len(first.known_classes) not in numbers:
        first = None  # a test of a model that these data did not train
    for data in datasets:
        if first is None or data.cfg is first.cfg:
            continue
        compare_classes(first, data)
        zero, of_first = data.setting('reduce_zero_label'), first.setting('reduce_zero_label')
        if data.root == first.root and bool(zero) != bool(of_first):
            raise UsageError(
                f'{data} has reduce_zero_label={zero}, and {first} has reduce_zero_label={of_first}, so that the same '
                f'number in a map would be two classes. Give both the same; True is for maps whose 0 means "no label"'
            )
    for data in datasets:
        _check_heads(data, cfg)
    for split in sorted({data.split for data in datasets} - {'train'}):
        _check_metrics(split, cfg)


def _check_classes(data: Data) -> None:
    classes = data.known_classes
    published = getattr(data.kind, 'METAINFO', {}).get('classes')
    if not classes:
        raise UsageError(
            f'{data} has no classes; give it metainfo=dict(classes=(...), palette=[...]), with the class of number 0 '
            f'first'
        )
    if published and not set(classes) <= set(published):
        raise UsageError(
            f'{data}: {data.name} has classes of its own, {len(published)} from {published[0]} to {published[-1]}, '
            f'and is without {some(set(classes) - set(published))}; of data with other classes the type is '
            f'BaseSegDataset'
        )
    metainfo = data.cfg.get('metainfo') or {}
    if 'label_map' in metainfo:
        raise UsageError(
            f'{data}: MMSegmentation does not read metainfo.label_map. Labels to leave out: ignore_index=NUMBER of the '
            f'data set, or classes that are a part of those of its type; other changes are made in the files'
        )
    palette = metainfo.get('palette')
    if palette and not published and len(palette) != len(classes):
        raise UsageError(f'{data}: metainfo.palette has {len(palette)} colours, and there are {len(classes)} classes')
    if len(classes) == 1:
        raise UsageError(
            f'{data} has one class ({classes[0]}), so that there is nothing to tell apart. Everything else is a class '
            f"too: classes=('background', {classes[0]!r}), num_classes=2"
        )


def _check_heads(data: Data, cfg: Config) -> None:
    classes = data.known_classes
    for path, head in _heads(cfg):
        if str(head.get('type')).split('.')[-1] in OTHER_HEADS:
            continue
        number = head.get('num_classes')
        if number is not None and number != len(classes):
            raise UsageError(
                f'{path}.num_classes is {number}, and {data} has {len(classes)} classes '
                f'({", ".join(map(str, classes[:3]))}{", ..." if len(classes) > 3 else ""}); set it to {len(classes)}, '
                f'or list the classes of your own data in metainfo=dict(classes=...) of all data sets'
            )
        for loss in as_list(head.get('loss_decode')):
            weights = loss.get('class_weight')
            if isinstance(weights, (list, tuple)) and len(weights) != len(classes):
                raise UsageError(
                    f'{path}.loss_decode.class_weight has {len(weights)} numbers, and there are {len(classes)} classes'
                )


def load_steps(pipeline: Sequence) -> Iterator[dict]:
    """The steps that read maps, also within TestTimeAug."""
    for step in pipeline or ():
        if isinstance(step, (list, tuple)):
            yield from load_steps(step)
        elif isinstance(step, dict):
            if str(step.get('type')).split('.')[-1] in ('LoadAnnotations', 'LoadSegMap'):
                yield step
            yield from load_steps(step.get('transforms') or ())


def _check_zero_label(data: Data) -> None:
    """Check that data set and pipeline agree on ``reduce_zero_label``; without one, a step follows the data set."""
    of_data = bool(data.setting('reduce_zero_label'))
    for step in load_steps(data.cfg.get('pipeline') or ()):
        value = step.get('reduce_zero_label')
        if value is not None and bool(value) != of_data:
            source = 'says' if 'reduce_zero_label' in data.cfg else 'has by its type'
            raise UsageError(
                f'{data} {source} reduce_zero_label={of_data}, and {step["type"]} of its pipeline '
                f'reduce_zero_label={value}. Give both the same: True if 0 in the maps means "no label" and the first '
                f'class is 1, False if the first class is 0'
            )


def _check_maps_are_read(data: Data, cfg: Config) -> None:
    """Check that the data set names a folder of maps, and its pipeline reads them, where they are needed."""
    metrics = [metric for metric in as_list(cfg.get(f'{data.split}_evaluator')) if _is_iou(metric)]
    if data.split != 'train' and all(metric.get('format_only') for metric in metrics):
        return
    purpose = 'training' if data.split == 'train' else 'IoUMetric'
    if finds_files(data) and prefix(data, 'seg_map_path') is None:
        raise UsageError(
            f'{data} names no folder of label maps, which {purpose} needs: data_prefix=dict(img_path=..., '
            f'seg_map_path=...)'
        )
    steps = [step for step in data.cfg.get('pipeline') or () if isinstance(step, dict)]
    kinds = [find_type(TRANSFORMS, step['type'], cfg.get('default_scope') or 'mmengine') for step in steps]
    ours = all(getattr(kind, '__module__', '').startswith(('mmseg.', 'mmcv.', 'xcit_mm.')) for kind in kinds)
    loads = [name for name in (str(step['type']).split('.')[-1] for step in steps) if name.startswith('Load')]
    if steps and ours and not any('LoadImage' not in name for name in loads):
        raise UsageError(
            f"{data}: no step of its pipeline reads the label maps, which {purpose} needs: dict(type='LoadAnnotations')"
        )


def _is_iou(metric: dict) -> bool:
    return str(metric.get('type')).split('.')[-1] == 'IoUMetric'


def _check_metrics(split: str, cfg: Config) -> None:
    """Check that the metric counts what the heads learn."""
    ignored = {path: head.get('ignore_index', IGNORED) for path, head in _heads(cfg)}
    for metric in as_list(cfg.get(f'{split}_evaluator')):
        if not _is_iou(metric):
            continue
        names = metric.get('iou_metrics', ['mIoU'])
        unknown = set([names] if isinstance(names, str) else names) - set(IOU_METRICS)
        if unknown:
            raise UsageError(
                f'{split}_evaluator.iou_metrics: {some(unknown)}; IoUMetric knows {", ".join(IOU_METRICS)}'
            )
        value = metric.get('ignore_index', IGNORED)
        for path, of_head in ignored.items():
            if of_head is not None and value != of_head:
                raise UsageError(
                    f'{split}_evaluator.ignore_index is {value}, and {path}.ignore_index is {of_head}; pixels that are '
                    f'not learnt are not to be scored. Give both the same; a number of the maps that is no class is '
                    f'ignore_index of the data set, beside 255 in all others'
                )
    classes = next((len(data.classes) for data in _segmented(cfg) if data.classes), 0)
    for path, of_head in ignored.items():
        if of_head not in (None, IGNORED) and not 0 <= of_head < classes:
            raise UsageError(
                f'{path}.ignore_index is {of_head}: ignored pixels arrive there as 255, whatever their number in the '
                f'maps. Leave it out, and set ignore_index={of_head} in the data sets'
            )
