"""The data sets of a config: their files, classes and types."""

import inspect
import os
from collections import Counter
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence

from mmengine.config import Config

from ..errors import UsageError

# Where to get each data set, by type.
HOW_TO_GET = {
    'CocoDataset': (
        'COCO 2017: download train2017.zip, val2017.zip and annotations_trainval2017.zip from cocodataset.org '
        'and unpack them side by side'
    ),
    'ADE20KDataset': (
        'ADE20K: download ADEChallengeData2016.zip (scene parsing benchmark, sceneparsing.csail.mit.edu) and unpack it'
    ),
    'ImageNet': 'ImageNet-1k: folders train/<class>/ and val/<class>/ of the ILSVRC 2012 images (image-net.org)',
}
HOW_TO_GET_DIGITS = 'the embedded digits: python tools/make_digits.py data/digits'
MMPRETRAIN_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # MMPretrain's


class Data(NamedTuple):
    """One data set of a config.

    Attributes:
        split (str): 'train', 'val' or 'test'.
        cfg (dict): Its config, without wrappers.
        kind (type, optional): The class that reads it; None if it is unknown.
    """

    split: str
    cfg: dict
    kind: Any

    @property
    def name(self) -> str:
        kind = self.cfg['type']
        return (kind if isinstance(kind, str) else kind.__name__).split('.')[-1]

    @property
    def root(self) -> str:
        return self.cfg.get('data_root') or ''

    def __str__(self) -> str:
        return f'the data for {self.split} ({self.name})'

    def path(self, part: Optional[str]) -> str:
        return os.path.join(self.root, part or '') or '.'

    def prefix(self, key: str) -> Optional[str]:
        """A folder of ``data_prefix``, which is a dict, or one folder alone."""
        prefix = self.cfg.get('data_prefix')
        return prefix.get(key) if isinstance(prefix, dict) else prefix

    def setting(self, key: str):
        """An argument, from the config or the default of the class."""
        if key in self.cfg:
            return self.cfg[key]
        for kind in self.kind.__mro__:
            parameter = inspect.signature(kind.__init__).parameters.get(key)
            if parameter is not None:
                return parameter.default
        return None

    @property
    def classes(self) -> Optional[List[str]]:
        """Class names from the config, else from the type; None if neither lists them.

        Raises:
            UsageError: If they are a string that is no file, or if a name is listed twice.
        """
        # MMPretrain's argument ``classes`` overrides metainfo.
        own = self.cfg.get('classes')
        own = (self.cfg.get('metainfo') or {}).get('classes') if own is None else own
        classes = own if own is not None else getattr(self.kind, 'METAINFO', {}).get('classes')
        if isinstance(classes, str):
            check_names(f'{self}: classes', classes)
            if '://' in classes:
                return None
            with open(os.path.expanduser(classes), encoding='utf-8') as file:
                classes = [line.rstrip('\r\n') for line in file]
        if classes is None:
            return None
        twice = [str(name) for name, number in Counter(classes).items() if number > 1]
        if twice and own is not None:  # a published list is as it is: ImageNet has two kinds of crane
            raise UsageError(f'{self}: classes names {some(twice)} more than once; every class needs a name of its own')
        return list(classes)

    @property
    def known_classes(self) -> List[str]:
        """:attr:`classes`, or an empty list where they are not listed."""
        return self.classes or []

    @property
    def is_own(self) -> bool:
        """True for a user's own data, judging by type and classes; False for published data sets."""
        classes = (self.cfg.get('metainfo') or {}).get('classes') or self.cfg.get('classes')
        return bool(classes) or self.name not in HOW_TO_GET

    def how_to_get(self) -> str:
        return HOW_TO_GET_DIGITS if 'digits' in self.root else HOW_TO_GET.get(self.name, 'the data set')

    def advice(self) -> str:
        """What to do if files are not as expected: get the data set, or correct the settings."""
        own = (self.cfg.get('metainfo') or {}).get('classes') and 'digits' not in self.root
        if not own and self.name in HOW_TO_GET:
            return f'To get it: {self.how_to_get()}. {self.where_else()}'
        if 'digits' in self.root:
            return f'To get it: {self.how_to_get()}'
        settings = {key: self.cfg.get(key) for key in ('data_root', 'ann_file', 'data_prefix') if self.cfg.get(key)}
        shown = ', '.join(f'{key}={value!r}' for key, value in settings.items())
        return f'Files are looked for by the settings {shown}; correct them. {self.where_else()}'

    def where_else(self) -> str:
        root = self.root.rstrip('/') or '.'
        return f'To use a copy elsewhere: --data-root FOLDER, or ln -s FOLDER {root}'


def innermost_datasets(dataset: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else None)
    if inner is None:
        yield dataset
    for child in inner or ():
        yield from innermost_datasets(child)


def transforms_of(pipeline: Sequence) -> Iterator[dict]:
    """The transforms of a pipeline, also nested ones as in TestTimeAug."""
    for item in pipeline:
        if isinstance(item, dict):
            yield item
            yield from transforms_of(item.get('transforms') or ())
        elif isinstance(item, (list, tuple)):
            yield from transforms_of(item)


def find_loaders(cfg: Config) -> dict:
    """Data loaders of the config by their name, 'train', 'val' and 'test'."""
    loaders = {split: cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')}
    return {split: loader for split, loader in loaders.items() if loader}


def find_type(registry, kind, scope: str) -> Optional[type]:
    """The class behind a ``type`` of a config; None if it is unknown."""
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(scope) as scoped:
        return scoped.get(kind)


def check_exist(data: Data, paths: List[str]) -> None:
    missing = [path for path in paths if '://' not in path and not os.path.exists(path)]
    if missing:
        raise UsageError(
            f'{data} is not where the config expects it. Missing: {", ".join(missing)} (from {os.getcwd()}). '
            f'{data.advice()}'
        )


def some(names, limit: int = 3) -> str:
    names = sorted(names)
    return ', '.join(names[:limit]) + (', ...' if len(names) > limit else '')


def list_files(folder: str) -> Iterator[str]:
    """Relative paths of all files below a folder, without hidden ones, as MMEngine lists them."""
    pending = ['']
    while pending:
        inside = pending.pop()
        with os.scandir(os.path.join(folder, inside)) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(os.path.join(inside, entry.name))
                elif not entry.name.startswith('.'):
                    yield os.path.join(inside, entry.name)


def suffixes(names: Sequence[str]) -> str:
    """The suffixes of files with their counts, the most frequent first."""
    counts = Counter(os.path.splitext(name)[1] or 'no suffix' for name in names)
    return ', '.join(f'{suffix} ({number})' for suffix, number in counts.most_common(4)) or 'no files'


def check_names(key: str, text: str) -> None:
    """Check that a string in place of a list of names is the path of a file with one name per line."""
    if '://' in text or os.path.isfile(os.path.expanduser(text)):
        return
    parts = tuple(part.strip() for part in text.split(',') if part.strip())
    if len(parts) > 1:
        raise UsageError(f'{key} is the text {text!r}; write the names apart: {parts!r}')
    if '/' in text or text.endswith('.txt'):
        raise UsageError(f'{key} is the text {text!r}, and there is no such file (from {os.getcwd()})')
    raise UsageError(f'{key} is the text {text!r}; a tuple of one name needs a comma: ({text!r},)')


def side_by_side(first: Sequence, second: Sequence, titles: Sequence[str], limit: int = 12) -> str:
    """A table of the places at which two lists differ, starting on a new line."""
    longest = max(len(first), len(second))
    names = [[str(name) for name in side] + ['-'] * (longest - len(side)) for side in (first, second)]
    pairs = [(str(at), one, other) for at, (one, other) in enumerate(zip(*names)) if one != other]
    rows = [('', *titles), *pairs[:limit]]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f'  {at:>{widths[0]}}  {one:<{widths[1]}}  {other}' for at, one, other in rows]
    more = [f'  and {len(pairs) - limit} more'] if len(pairs) > limit else []
    return '\n'.join(['', *lines, *more])


def stems(folder: str, suffix: str) -> set:
    return {name[: len(name) - len(suffix)] for name in list_files(folder) if name.endswith(suffix)}
