"""Detection: annotations, images, metrics and the model match, checked before any data is parsed."""

import json
import os
import re
from typing import Optional

from mmengine.config import Config
from mmengine.registry import MODELS

from ..datasets.annotations import find_file
from ..datasets.config import (
    MMPRETRAIN_SUFFIXES,
    Data,
    find_loaders,
    find_type,
    innermost_datasets,
    some,
    transforms_of,
)
from ..errors import UsageError

LOOKED_AT = 20
PART = 1 << 16  # bytes to inspect at the start and at the end of a file
FILE_NAME = rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)+")'
TO_COCO = (
    'convert it to COCO, for instance with supervision (pip install supervision): '
    'DetectionDataset.from_{}(...).as_coco(...)'
)
# Of a folder that is given for a file, by the suffix that most of its files have.
FOLDERS = {
    '.xml': f'Pascal VOC; {TO_COCO.format("pascal_voc")}',
    '.txt': f'YOLO; {TO_COCO.format("yolo")}',
    '.json': 'LabelMe, if there is one for each image; convert it with labelme2coco (pip install labelme2coco)',
}
# Transforms of MMDetection that need masks, whatever the model gives.
USE_MASKS = ('CopyPaste', 'InstaBoost')


def check_coco(data: Data) -> None:
    """Check that the annotations are a whole JSON file that names images of the folder; it is not parsed."""
    annotations = data.path(data.cfg.get('ann_file'))
    images = data.path(data.prefix('img'))
    if os.path.isdir(annotations):
        raise UsageError(
            f'{data}: {annotations} is a folder, expected a COCO annotation file. {_folder_of(annotations)}'
        )
    if not os.path.isfile(annotations):
        return
    with open(annotations, 'rb') as file:
        start = file.read(PART)
        size = os.path.getsize(annotations)
        file.seek(max(0, size - PART))
        end = file.read().rstrip()
    other = _other_format(start.lstrip(b'\xef\xbb\xbf').lstrip(), annotations)
    if other:
        raise UsageError(
            f'{data}: {annotations} ({size} bytes) is no COCO annotation file, but {other}. {data.advice()}'
        )
    if not start.lstrip(b'\xef\xbb\xbf').lstrip().startswith((b'{', b'[')) or not end.endswith((b'}', b']')):
        raise UsageError(
            f'{data}: {annotations} is not a whole COCO annotation file: {size} bytes, beginning with {start[:16]!r} '
            f'and ending with {end[-16:]!r}, expected a JSON object {{...}}. It may be cut off. '
            f'{data.advice()}'
        )
    found = re.findall(FILE_NAME, start) or re.findall(FILE_NAME, end)  # some tools write the images last
    names = [_unquoted(name) for name in found[:LOOKED_AT]]
    if not names or any(_is_there(name, images) for name in names):
        return
    what = f'{images} has none of the first {len(names)} images that {annotations} names, such as {names[0]}'
    raise UsageError(f'{data}: {what}. {_why_not_there(names, images)}{data.advice()}')


def _unquoted(name: bytes) -> str:
    try:
        return json.loads(name)
    except ValueError:
        return name.decode(errors='replace').strip('"')


def _is_there(name: str, folder: str) -> bool:
    return os.path.exists(os.path.join(folder, name)) or ('\\' in name and find_file(name, folder) is not None)


def _why_not_there(names, images: str) -> str:
    """What the folder has instead of images."""
    for name in names:
        stem = os.path.splitext(name)[0]
        for suffix in (*MMPRETRAIN_SUFFIXES, *map(str.upper, MMPRETRAIN_SUFFIXES)):
            if os.path.exists(os.path.join(images, stem + suffix)):
                return (
                    f'It has {os.path.basename(stem + suffix)}: the suffixes differ; correct "file_name" in the file. '
                )
    for name in names:
        short = os.path.basename(name)
        if short != name and os.path.exists(os.path.join(images, short)):
            return (
                f'It has {short}: "file_name" begins with the folder {os.path.dirname(name)} once more; set '
                f'data_prefix.img to the folder above, or correct the file. '
            )
        parent = os.path.dirname(images.rstrip('/'))
        if os.path.exists(os.path.join(parent, name)):
            return f'{os.path.join(parent, name)} is there: set data_prefix.img to the folder above. '
    below = next((root for root, _, files in os.walk(images) if os.path.basename(names[0]) in files), None)
    if below:
        return f'{os.path.join(below, os.path.basename(names[0]))} is there: correct data_prefix.img. '
    return f'It holds {some(entry.name for entry in os.scandir(images)) or "nothing"}. '


def _folder_of(folder: str) -> str:
    suffixes = [os.path.splitext(entry.name)[1].lower() for entry in os.scandir(folder) if entry.is_file()]
    for suffix, what in FOLDERS.items():
        if suffixes.count(suffix) > len(suffixes) / 2:
            return f'It holds {suffixes.count(suffix)} files *{suffix}: it looks like {what}'
    return f'It holds {some(entry.name for entry in os.scandir(folder)) or "nothing"}; set ann_file to a file'


def _other_format(start: bytes, path: str) -> Optional[str]:
    """What a file is instead of COCO's JSON, judging by its first bytes."""
    text = start.decode(errors='replace')
    line = text.splitlines()[0].strip() if text.strip() else ''
    if not line:
        return 'empty'
    if re.match(r'(<\?xml[^>]*>\s*)?<annotation\b', text):
        return (
            f"the Pascal VOC annotation of one image: type='VOCDataset' reads those, with ann_file a list of images "
            f'(ImageSets/Main/train.txt) and a VOCMetric; or {TO_COCO.format("pascal_voc")}'
        )
    if re.match(r'<\?xml[^>]*>\s*<annotations\b', text):
        return 'the XML of CVAT; export the task as COCO 1.0 instead'
    if text[:200].lower().lstrip().startswith(('<!doctype html', '<html')):
        return 'a saved web page; download the file itself'
    if text.startswith('<'):
        return 'XML'
    if start.startswith((b'PK\x03\x04', b'\x1f\x8b', b'7z\xbc\xaf', b'Rar!')):
        return 'an archive; unpack it'
    if start.startswith((b'\x89PNG', b'\xff\xd8\xff', b'BM', b'II*\x00', b'MM\x00*', b'GIF8', b'RIFF')):
        return 'an image'
    if text.startswith('{') and re.search(r'"shapes"\s*:\s*\[', text) and not re.search(r'"images"\s*:', text):
        return (
            'the LabelMe annotation of one image; convert the folder of them to one file with labelme2coco '
            '(pip install labelme2coco)'
        )
    if re.fullmatch(r'\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}', line):
        return f'the YOLO annotation of one image ("class x y width height"); {TO_COCO.format("yolo")}'
    if re.match(r'(train|val|names|nc|path)\s*:', text) or path.endswith(('.yaml', '.yml')):
        return f'YAML, as YOLO describes data sets with; {TO_COCO.format("yolo")}'
    if not text.startswith(('{', '[')):
        if path.lower().endswith('.csv') or line.count(',') >= 3:
            return (
                f'a table of comma-separated values ({line[:60]}); convert it to COCO: images, annotations, categories'
            )
        if path.endswith('.txt') and len(line.split()) <= 2:
            return (
                f'a list of names ({line[:40]}), as Pascal VOC and YOLO have; the annotations lie in a file for each '
                f'image. {TO_COCO.format("pascal_voc").capitalize()}, or from_yolo'
            )
    return None


def leave_out_masks(cfg: Config) -> None:
    """Train and test a detector without masks, such as a Mask R-CNN with ``mask_head=None``, on boxes only.

    Pipelines then load no masks, and metrics compare none; the changes are printed.

    Raises:
        UsageError: If only masks are to be scored.
    """
    if cfg.get('default_scope') != 'mmdet' or not gives_boxes_alone(cfg):
        return
    changed = []
    for split, loader in find_loaders(cfg).items():
        for dataset in innermost_datasets(loader['dataset']):
            pipeline = list(transforms_of(dataset.get('pipeline') or ()))
            if any(str(transform.get('type')).split('.')[-1] in USE_MASKS for transform in pipeline):
                continue
            for transform in pipeline:
                if transform.get('with_mask'):
                    transform['with_mask'] = False
                    changed.append(f'{split}_dataloader loads no masks')
        evaluators = cfg.get(f'{split}_evaluator') or ()
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            metric = evaluator.get('metric') if hasattr(evaluator, 'get') else None
            if metric == 'segm' or (isinstance(metric, (list, tuple)) and list(metric) == ['segm']):
                raise UsageError(
                    f"{split}_evaluator.metric='segm' compares masks, and the model ({cfg.model.type} without a "
                    f"mask_head) gives boxes alone; set it to 'bbox'"
                )
            if isinstance(metric, (list, tuple)) and 'segm' in metric:
                evaluator['metric'] = [one for one in metric if one != 'segm']
                changed.append(f"{split}_evaluator leaves 'segm' out")
    if changed:
        print(f'The model gives no masks: {", ".join(dict.fromkeys(changed))}.', flush=True)


def gives_boxes_alone(cfg: Config) -> bool:
    """True if a detector is known to give no masks."""
    model = cfg.get('model') or {}
    part = 'roi_head' if 'roi_head' in model else 'bbox_head'
    head = model.get(part)
    if not isinstance(head, dict) or head.get('mask_head') or any('mask' in key or 'panoptic' in key for key in model):
        return False
    kind = find_type(MODELS, head.get('type'), 'mmdet')
    known = getattr(kind, '__module__', '').startswith(('mmdet.models.roi_heads', 'mmdet.models.dense_heads'))
    return known and not re.search('Ins|Mask|Seg|SOLO', getattr(kind, '__name__', ''))
