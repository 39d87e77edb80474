"""Training, validation and test images: as the data name them, or drawn at random with each class in both."""

import hashlib
import os
import random
import re
from collections import Counter, defaultdict
from typing import Dict, List, Optional

from ...errors import UsageError
from .data import Data, Options, Picture, labels_of

# Suffix that Roboflow adds to the name of an image for each augmented copy.
AUGMENTED = re.compile(r'(_(jpe?g|png|bmp|webp))?\.rf\.[0-9A-Za-z]+$')


def divide(data: Data, options: Options) -> None:
    """Give every image a split, in place. Only data that are named test become the test split.

    Raises:
        UsageError: If the images cannot be divided, or nothing is left to train on.
    """
    _group(data, options)
    counts = Counter(picture.split for picture in data.pictures)
    if counts[None] and (counts['train'] or counts['val']):
        left = [data.relative(picture.path) for picture in data.pictures if picture.split is None]
        data.problems.add('image outside of train, val and test', ', '.join(left[:3]), 'move it into one of them')
        data.pictures = [picture for picture in data.pictures if picture.split]
    elif counts[None]:
        for picture in data.pictures:
            picture.split = picture.split or 'train'
    counts = Counter(picture.split for picture in data.pictures)
    if not counts['train']:
        raise UsageError(
            f'{data.root} has no images to train on: {dict(counts)}. Name a folder or file of them "train"'
        )
    if not counts['val']:
        _draw(data, options)
        drawn = Counter(picture.split for picture in data.pictures)
        data.notes.append(
            f'{drawn["val"]} of {counts["train"]} images were drawn for validation (--val-share {options.val_share:g}, '
            f'--seed {options.seed}), of every class'
        )
    _check_leaks(data)


def _group(data: Data, options: Options) -> None:
    """Group images that must stay in one split: augmented copies, copies of one file, and matches of ``--group-by``."""
    pattern = None
    if options.group_by:
        try:
            pattern = re.compile(options.group_by)
        except re.error as error:
            raise UsageError(f'--group-by {options.group_by!r} is no regular expression: {error}') from None
    by_size: Dict[int, List[Picture]] = defaultdict(list)
    found = 0
    for picture in data.pictures:
        by_size[os.path.getsize(picture.path)].append(picture)
        match = pattern.search(data.relative(picture.path)) if pattern else None
        found += match is not None
        stem = os.path.splitext(os.path.basename(picture.path))[0]
        if match:
            picture.group = match[1] if match.groups() else match[0]
        elif picture.group is None and AUGMENTED.search(stem):
            picture.group = AUGMENTED.sub('', stem)
    if pattern and not found:
        first = data.relative(data.pictures[0].path)
        raise UsageError(f'--group-by {options.group_by!r} finds nothing in any name, such as {first}')
    copies: Dict[str, List[Picture]] = defaultdict(list)
    for same in by_size.values():
        for picture in same if len(same) > 1 else ():
            with open(picture.path, 'rb') as file:
                copies[hashlib.sha256(file.read()).hexdigest()].append(picture)
    for digest, same in copies.items():
        if len(same) > 1:
            group = next((picture.group for picture in same if picture.group), digest)
            for picture in same:
                picture.group = group
            data.problems.add(
                'image that exists twice',
                ' = '.join(data.relative(picture.path) for picture in same[:3]),
                'remove the copy, if it is none on purpose',
            )
    groups = {picture.group for picture in data.pictures if picture.group}
    if groups and len(groups) < len(data.pictures):
        grouped = sum(picture.group is not None for picture in data.pictures)
        data.notes.append(f'{grouped} images belong to {len(groups)} groups, which stay together')


def _draw(data: Data, options: Options) -> None:
    """Move groups of training images to 'val' until it has its share of every class.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011), for images that may have several labels: the class
    with the fewest images left is dealt out first, each group to the split that lacks it most.
    """
    if not 0 < options.val_share < 1:
        raise UsageError(f'--val-share is above 0 and below 1, got {options.val_share:g}')
    groups: Dict[str, List[Picture]] = defaultdict(list)
    for picture in data.pictures:
        if picture.split == 'train':
            groups[picture.group or picture.path].append(picture)
    if len(groups) < 2:
        raise UsageError(
            f'all {len(data.pictures)} images are of one group (copies of one file, or one match of --group-by), so '
            f'none can be kept for validation; choose another --group-by, or make folders train and val'
        )
    order = sorted(groups)
    random.Random(options.seed).shuffle(order)
    labels = {
        name: Counter(label for picture in groups[name] for label in set(labels_of(picture)) or {-1}) for name in order
    }
    totals: Counter = Counter()
    for counts in labels.values():
        totals.update(counts)
    shares = {'train': 1 - options.val_share, 'val': options.val_share}
    lacking = {split: {label: total * shares[split] for label, total in totals.items()} for split in shares}
    room = {split: sum(map(len, groups.values())) * shares[split] for split in shares}
    left, size = dict.fromkeys(order), {'train': 0, 'val': 0}
    remaining = Counter(totals)
    while left:
        rarest = min((label for label in remaining if remaining[label] > 0), key=lambda one: (remaining[one], one))
        for name in [name for name in left if labels[name][rarest]]:
            # Ties, as for a class of two images, go to training first.
            split = max(shares, key=lambda one: (round(lacking[one][rarest], 6), round(room[one], 6), one == 'train'))
            _deal(groups[name], split)
            size[split] += 1
            for label, count in labels[name].items():
                lacking[split][label] -= count
                remaining[label] -= count
            room[split] -= len(groups[name])
            del left[name]
    if not size['val'] or not size['train']:
        empty, full = ('val', 'train') if not size['val'] else ('train', 'val')
        _deal(groups[min(order, key=lambda name: (len(groups[name]), name))], empty)
        size[full] -= 1


def _deal(pictures: List[Picture], split: str) -> None:
    for picture in pictures:
        picture.split = split


def _check_leaks(data: Data) -> None:
    """Report groups that the data's own splits divide, so that training images leak into validation."""
    splits: Dict[str, set] = defaultdict(set)
    first: Dict[str, str] = {}
    for picture in data.pictures:
        if picture.group:
            splits[picture.group].add(picture.split)
            first.setdefault(picture.group, data.relative(picture.path))
    for group, found in splits.items():
        if len(found) > 1:
            data.problems.add(
                f'images of one group in {" and ".join(sorted(found))}',
                first[group],
                'the metrics will be too high; keep all of a group in one split',
            )


def absent(data: Data, split: str, counts: Optional[Counter] = None) -> List[str]:
    """Classes without an image, object or pixel in a split."""
    counts = data.counts(split) if counts is None else counts
    return [name for label, name in enumerate(data.classes) if not counts[label]]
