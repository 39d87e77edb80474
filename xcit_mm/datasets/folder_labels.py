"""Labels of class folders."""

import re
from typing import Dict, Optional, Sequence

from ..errors import UsageError
from .config import side_by_side

IMAGENET_FOLDER = re.compile(r'n\d{8}')


def folder_labels(
    folders: Sequence[str],
    classes: Optional[Sequence[str]] = None,
    declared: Optional[Sequence[str]] = None,
    of_imagenet: bool = False,
    where: str = 'the data',
) -> Dict[str, int]:
    """Assign a label to each folder.

    MMPretrain numbers the folders in the order of their names as text (1, 10, 2), whatever the classes are called.
    Here a folder named as a class has the label of that class.

    Args:
        folders (Sequence[str]): Their names, as many as classes.
        classes (Sequence[str], optional): In the order of the labels; without them, the folders sorted as text.
        declared (Sequence[str], optional): For each class, the name of its folder (``metainfo.folders``).
        of_imagenet (bool): The classes are ImageNet's own, in the order of its folders ``n01440764``, ....
        where (str): Prefix of the message.

    Returns:
        dict[str, int]: Labels by folder.

    Raises:
        UsageError: If both lists are given and the assignment is ambiguous.
    """
    folders = sorted(folders)
    classes = None if classes is None else list(map(str, classes))
    if declared is not None:
        if sorted(declared) != folders or (classes is not None and len(declared) != len(classes)):
            raise UsageError(
                f'{where}: metainfo.folders names one folder for each class, and differs from the folders that are '
                f'there:{side_by_side(sorted(declared), folders, ("metainfo.folders", "there"))}'
            )
        return {name: label for label, name in enumerate(declared)}
    in_order = {name: label for label, name in enumerate(folders)}
    if classes is None or (of_imagenet and all(map(IMAGENET_FOLDER.fullmatch, folders))):
        return in_order
    if set(classes) == set(folders):
        return {name: label for label, name in enumerate(classes)}
    if all(name.isdigit() and int(name) == label for name, label in in_order.items()):
        return in_order  # the folders are named by the label, as 0, 1, 2 or 000, 001, 002
    if {name.lower() for name in classes} == {name.lower() for name in folders}:
        remedy = 'They differ in upper and lower case alone: write the classes as the folders are called'
    else:
        remedy = (
            'Name the classes as the folders; or say which folder is whose, in the order of the classes, with '
            f'metainfo=dict(classes=..., folders={_short(folders)}) in the data set'
        )
    raise UsageError(
        f'{where}: the folders have other names than the classes of the config, so that they cannot be matched'
        f'.{side_by_side(folders, classes, ("folder", "class"))}\n{remedy}'
    )


def _short(names: Sequence[str]) -> str:
    shown = ', '.join(map(repr, names[:4]))
    return f'({shown}, ...)' if len(names) > 4 else f'({shown})'
