"""Detection: whether annotations and images belong together, before any of them is parsed."""

import os
import re

from ..errors import UsageError
from .datasets import Data, some


def check_coco(data: Data) -> None:
    """Whether the annotations are a whole JSON file that names images of the folder; it is not parsed."""
    annotations = data.path(data.cfg.get('ann_file'))
    images = data.path(data.prefix('img'))
    if not os.path.isfile(annotations):
        return
    with open(annotations, 'rb') as file:
        start = file.read(1 << 16)
        size = os.path.getsize(annotations)
        file.seek(max(0, size - 64))
        end = file.read().rstrip()
    if not start.lstrip().startswith(b'{') or not end.endswith(b'}'):
        raise UsageError(
            f'{data}: {annotations} is not a whole COCO annotation file: {size} bytes, beginning with {start[:16]!r} '
            f'and ending with {end[-16:]!r}, expected a JSON object {{...}}. It may be cut off or a saved web page. '
            f'To get it: {data.how_to_get()}'
        )
    names = [name.decode() for name in re.findall(rb'"file_name"\s*:\s*"([^"\\]+)"', start)[:20]]
    if names and not any(os.path.exists(os.path.join(images, name)) for name in names):
        found = some(entry.name for entry in os.scandir(images))
        raise UsageError(
            f'{data}: {images} has none of the first {len(names)} images that {annotations} names, such as {names[0]}. '
            f'It holds {found or "nothing"}. To get it: {data.how_to_get()}. {data.where_else()}'
        )
