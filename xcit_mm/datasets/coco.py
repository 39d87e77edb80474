"""COCO data sets that check their annotations: wrong ones are skipped and counted in training, refused in testing.

MMDetection silently drops boxes without area and unknown categories, fails on many other mistakes in the middle of an
epoch, and assigns wrong labels if the file lists its categories in another order than the config.
"""

import io
import logging
from collections import Counter
from contextlib import redirect_stdout
from functools import lru_cache
from typing import Any, List, Sequence

from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from ..compat import Mixin
from ..errors import UsageError
from .annotations import (
    HARMLESS,
    NO_MASK,
    Reasons,
    advice,
    check_boxes,
    check_categories,
    counted,
    mend_backslashes,
    read_tables,
    some,
    sort_out,
    unify_ids,
)
from .config import side_by_side

NAMED_CLASSES = 10
BOXES_ALONE = (
    'the config asks for masks ("segmentation"). With boxes alone, train a Faster R-CNN, such as '
    'configs/faster_rcnn_xcit_s12_16_3x_coco.py, or set model.roi_head.mask_head=None in a config of Mask R-CNN; or '
    'let xcit-mm finetune FOLDER choose and write the config'
)


class CheckedLoading(Mixin):
    """Mixin for MMDetection's :class:`mmdet.datasets.CocoDataset` and what inherits its way to read a file.

    Labels follow the classes of the config by name, whatever the order and the ids of the categories in the file.
    Training skips wrong annotations, and one warning counts them by mistake. In testing they would change what is
    measured, so those that the metric cannot take are refused.

    Attributes:
        annotations (CheckedAnnotations, optional): In test mode the file's, for the metric.
        img_ids (list): Ids of the images, after all filters and ``indices``.
        objects (Counter): Objects by label in these images, without crowd and what is left out.
        why_nothing (str): What was left out, for the message if nothing is left.

    Raises:
        UsageError: If the file is not in COCO's format or uses an id twice; if a class of the config is not exactly
            one of its categories; if nothing is left to train on; or, in testing, if annotations are wrong.
    """

    annotations: Any = None

    def load_data_list(self) -> List[dict]:
        """As MMDetection's."""
        self.COCOAPI = self._read
        try:
            return super().load_data_list()
        finally:
            del self.COCOAPI

    def _read(self, path: str) -> 'CheckedAnnotations':
        classes = self.metainfo['classes']
        self.annotations = CheckedAnnotations(
            path,
            name=self.ann_file,
            classes=classes,
            with_masks=any(getattr(transform, 'with_mask', False) for transform in self.pipeline.transforms),
            test_mode=self.test_mode,
            images_in=self.data_prefix.get('img') or '',
            by_type='COCO' if tuple(classes) == MMDetCocoDataset.METAINFO['classes'] else '',
        )
        return self.annotations

    def filter_data(self) -> List[dict]:
        """As MMDetection's, and count what is left."""
        kept = super().filter_data()
        annotations, self.annotations = self.annotations, self.annotations if self.test_mode else None
        shown = _subset(kept, self._indices)
        self.img_ids = [info['img_id'] for info in shown]
        instances = (instance for info in shown for instance in info['instances'])
        self.objects = Counter(instance['bbox_label'] for instance in instances if not instance.get('ignore_flag'))
        images = self._left_out(kept)
        parts = [f'{len(self.data_list)} images, left out: {counted(images)}'] if images else []
        parts.append(f'{len(annotations.content["annotations"])} annotations')
        if annotations.left_out:
            parts.append(f'left out: {counted(annotations.left_out)}')
        if annotations.aside:
            parts.append(f'no objects to train on: {counted(annotations.aside)}')
        why = advice({**annotations.left_out, **annotations.aside}, annotations.content)
        self.why_nothing = f'{self.ann_file} ({"; ".join(parts)}){why}'
        if not shown:
            taken = f'indices={self._indices} takes none of the {len(kept)} images' if kept else 'no image is left'
            raise UsageError(f'{taken} of {self.why_nothing}')
        log_objects(self, len(shown), images)
        return kept

    def _left_out(self, kept: List[dict]) -> Reasons:
        if len(kept) == len(self.data_list):
            return {}
        least = (self.filter_cfg or {}).get('min_size', 0)
        there = {id(info) for info in kept}
        reasons: Reasons = {}
        for info in self.data_list:
            if id(info) not in there:
                small = min(info['width'], info['height']) < least
                reason = f'a side of less than {least} pixels (filter_cfg.min_size)' if small else 'no object'
                reasons.setdefault(reason, []).append(info['img_id'])
        return reasons


def log_objects(dataset: MMDetCocoDataset, images: int, left_out: Reasons) -> None:
    """One line of how many objects of each class a data set has."""
    classes = dataset.metainfo['classes']
    counts = [f'{name} {dataset.objects[label]}' for label, name in enumerate(classes)]
    print_log(
        f'{dataset.ann_file}: {images} images with {sum(dataset.objects.values())} objects '
        f'({some(counts, NAMED_CLASSES)}){f"; images that are left out: {counted(left_out)}" if left_out else ""}',
        'current',
    )


def _subset(items: list, indices) -> list:
    """The items that BaseDataset selects by ``indices``."""
    if indices is None:
        return items
    if isinstance(indices, int):
        return items[:indices] if indices >= 0 else items[indices:]
    return [items[i] for i in indices]


class CocoDataset(CheckedLoading, MMDetCocoDataset):
    """MMDetection's, with a check of every annotation; see :class:`CheckedLoading`."""


def checked(kind: type) -> type:
    """The class that checks what ``kind`` reads; ``kind`` itself if it reads files in a way of its own."""
    if kind is MMDetCocoDataset:
        return CocoDataset
    own_way = (
        not issubclass(kind, MMDetCocoDataset)
        or issubclass(kind, CheckedLoading)
        or any(
            getattr(kind, name) is not getattr(MMDetCocoDataset, name)
            for name in ('load_data_list', 'full_init', 'COCOAPI')
        )
    )
    return kind if own_way else _checked_subclass(kind)


@lru_cache(maxsize=None)
def _checked_subclass(kind: type) -> type:
    # Spawned workers unpickle the data set, and need a way to create this class again.
    return type(kind.__name__, (CheckedLoading, kind), {'__reduce__': lambda self: (_rebuild, (kind, self.__dict__))})


def _rebuild(kind: type, attributes: dict):
    dataset: Any = object.__new__(_checked_subclass(kind))
    dataset.__dict__.update(attributes)
    return dataset


class CheckedAnnotations(COCO):
    """COCO's annotations from a file, without those that are wrong.

    Categories are in the order of the config's classes, so that their places are the labels; the ids are the file's.

    Args:
        path (str): The file, on this machine.
        name (str): What messages call it.
        classes (Sequence[str]): The classes of the config.
        with_masks (bool): Whether masks are needed.
        test_mode (bool): Refuse what would change the result of a test.
        images_in (str): Folder of the images; Windows paths are replaced by those of the files there.
        by_type (str): Whose classes they are, if the config names none, such as 'COCO'.

    Attributes:
        content (dict): The file as it was read, with all annotations.
        left_out (dict): Ids of annotations by what is wrong with them.
        aside (dict): Ids, by reason, of those that are right but no objects to train on.

    Raises:
        UsageError: See :class:`CheckedLoading`.
    """

    def __init__(
        self,
        path: str,
        name: str,
        classes: Sequence[str],
        with_masks: bool,
        test_mode: bool,
        images_in: str = '',
        by_type: str = '',
    ):
        super().__init__()
        content = read_tables(path, name)
        notes = unify_ids(content, name)
        missing = check_categories(content, classes, name, by_type)
        listed = [category['name'] for category in content['categories'] if category['name'] in classes]
        wanted = [one for one in classes if one in listed]
        if listed != wanted:
            warn(
                f'{name} has the same classes in another order.{side_by_side(listed, wanted, ("file", "config"))}\n'
                f"Labels follow the config; those of MMDetection's own tools follow the file"
            )
        check_boxes(content, name)
        backslashes = mend_backslashes(content['images'], images_in)
        if backslashes:
            notes.append(
                f'{name}: {backslashes} images have paths of Windows, and are read from where they lie in the folder'
            )
        found = sort_out(content, classes, with_masks, test_mode)
        self.name, self.content, self.with_masks = name, content, with_masks
        self.left_out, self.aside = found.wrong, found.aside
        total = len(content['annotations'])
        if total and len(found.wrong.get(NO_MASK, ())) == total:
            raise UsageError(f'{name}: none of its {total} annotations has a mask, but {BOXES_ALONE}')
        serious = {mistake: ids for mistake, ids in found.wrong.items() if mistake not in HARMLESS}
        if test_mode and serious:
            raise UsageError(
                f'{name} is not fit for testing, since the result would not be of all its objects: {counted(serious)}. '
                f'Correct these annotations or take them out'
            )
        if found.wrong:
            left_out = sum(map(len, found.wrong.values()))
            warn(f'{name}: {left_out} of {total} annotations are left out: {counted(found.wrong)}')
        if found.outside:
            warn(
                f'{name}: {len(found.outside)} of {total} boxes reach far outside of their image '
                f'(id {some(map(str, found.outside))})'
            )
        if found.aside:
            notes.append(f'{name}: of {total} annotations no objects to train on: {counted(found.aside)}')
        if missing:
            notes.append(f'{name}: classes of the config that are no category of the file: {some(missing, 5)}')
        for note in notes:
            print_log(note, 'current')
        self.dataset = {
            **content,
            'annotations': found.good,
            'categories': _in_order(content['categories'], classes, missing),
        }
        with redirect_stdout(io.StringIO()):
            self.createIndex()
        # MMDetection's names for them, made before the index was.
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs


def _in_order(categories: List[dict], classes: Sequence[str], missing: Sequence[str]) -> List[dict]:
    """Categories in the order of the classes, others last; one is added for each class missing from the file."""
    ids = {category['id'] for category in categories}
    free = (number for number in range(len(categories) + len(missing) + 1) if not {number, str(number)} & ids)
    as_text = any(isinstance(number, str) for number in ids)
    new = [{'id': str(next(free)) if as_text else next(free), 'name': name} for name in missing]
    label = {name: i for i, name in enumerate(classes)}
    return sorted([*categories, *new], key=lambda category: label.get(category['name'], len(label)))


def warn(message: str) -> None:
    """Warn in the log of the run."""
    print_log(message, 'current', logging.WARNING)
