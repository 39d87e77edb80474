"""Real handwritten digits on real photographs, in COCO, ADE20K and ImageNet layout.

Everything comes out of installed Python packages (scikit-learn's 8x8 digit scans and two
photographs, scikit-image's bundled photographs), so a detector, a segmentor and a classifier can be
trained in minutes without a download. ``tools/make_digits.py`` is the command line.
"""

import glob
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np
import PIL
from PIL import Image

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

VERSION = 3  # raise it with any change that alters the files: it decides 'already there'
CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
FOLDERS = tuple(f'{label}_{name}' for label, name in enumerate(CLASSES))
SPLITS = ('train', 'val')

# Only those with a clear licence; one that the installed scikit-image does not bundle is skipped.
PHOTOS = (
    'astronaut.png',
    'brick.png',
    'camera.png',
    'chelsea.png',
    'china.jpg',
    'coffee.png',
    'coins.png',
    'flower.jpg',
    'grass.png',
    'gravel.png',
    'rocket.jpg',
)
TRAIN_SHARE = 0.7  # of each photograph; the rest is for validation, so that no background is in both splits
MANIFEST = '.made_by_xcit_mm.json'
UNFINISHED = '.unfinished_by_xcit_mm'  # marks, and is locked in, a folder being written

CROP_SIZE = 64  # px, side of a picture of the ImageNet layout
SCENE_HEIGHTS, CROP_HEIGHTS = (0.2, 0.45), (0.5, 0.7)  # digit height over picture side
MIN_VISIBLE, MIN_PIXELS = 0.8, 20  # of a stroke: a digit more covered is often another digit
MIN_CONTRAST = 80  # luma levels of 255
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class SourceMissing(ImportError):
    """A package that the pictures are made from is not installed."""


def load_sources():
    """Read the digits and photographs out of the installed packages.

    The last fifth of each class, in the data set's own order, is the validation split, whatever the
    seed. Neighbours in that order tend to be of one writer, so a random split would be an easier one.

    Returns:
        tuple: scans, (1797, 8, 8) float32, share of ink in 0..1; labels, (1797,) int; sample
        indices by split; and by split its part of each photograph, a dict of name to (h, w, 3)
        uint8 RGB.
    """
    try:
        import pycocotools.mask  # noqa: F401  (used later; missed here, before anything is begun)
        import skimage
        import sklearn.datasets
    except ImportError as error:
        raise SourceMissing(
            f'scikit-learn, scikit-image and pycocotools are needed ({error}); '
            'install them with: pip install "xcit_mm[digits]"'
        ) from error
    digits = sklearn.datasets.load_digits()
    rank = np.zeros(len(digits.target))  # place within the class, 0..1
    for label in range(len(CLASSES)):
        members = digits.target == label
        rank[members] = np.linspace(0, 1, members.sum(), endpoint=False)
    pools = {'train': np.flatnonzero(rank < 0.8), 'val': np.flatnonzero(rank >= 0.8)}
    folders = (Path(skimage.__file__).parent / 'data', Path(sklearn.datasets.__file__).parent / 'images')
    photos: Dict[str, dict] = {'train': {}, 'val': {}}
    for path in (path for folder in folders for path in sorted(folder.glob('*.*')) if path.name in PHOTOS):
        photo = np.asarray(Image.open(path).convert('RGB'))
        photos['train'][path.name], photos['val'][path.name] = split_photo(photo)
    return (digits.images / 16).astype(np.float32), digits.target, pools, photos


def split_photo(photo):
    """Cut a photograph, (h, w, 3), across its longer side into training's and validation's part."""
    height, width = photo.shape[:2]
    if width >= height:
        column = round(TRAIN_SHARE * width)
        return photo[:, :column], photo[:, column:]
    row = round(TRAIN_SHARE * height)
    return photo[:row], photo[row:]


def draw_stroke(scan, height, rotation, shear):
    """Scale one scan up to a smooth stroke.

    Args:
        scan (np.ndarray): (8, 8) float32, share of ink in 0..1.
        height (float): Height of the scan's 8 rows in the result, px.
        rotation (float): Degrees, counter-clockwise.
        shear (float): Horizontal shift over height.

    Returns:
        np.ndarray: Opacity, (h, w) float32, cropped tight: 1 on the stroke, and between 0 and 1
        only on its one-pixel edge.
    """
    zoom, supersample = 16, 4
    field = cv2.resize(np.pad(scan, 2), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    side = int(np.ceil(2 * height))
    cos, sin = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
    linear = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, -shear], [0, 1]])
    linear *= supersample * height / (8 * zoom)
    shift = side * supersample / 2 - linear @ np.full(2, len(field) / 2)
    field = cv2.warpAffine(field, np.column_stack([linear, shift]), (side * supersample,) * 2)
    # Less than half the ink: at 0.5, the thin closing stroke of many a zero breaks.
    alpha = cv2.resize((field > 0.42).astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def crop_photo(rng, photos, size):
    """Cut a random square out of a random photograph: its name and (size, size, 3) uint8 RGB."""
    name = str(rng.choice(sorted(photos)))
    photo = photos[name]
    shortest = min(photo.shape[:2])
    side = int(rng.integers(min(size, shortest), shortest + 1))
    top, left = (int(rng.integers(0, extent - side + 1)) for extent in photo.shape[:2])
    crop = photo[top : top + side, left : left + side]
    crop = np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return name, cv2.resize(crop, (size, size), interpolation=(cv2.INTER_AREA if side > size else cv2.INTER_CUBIC))


def contrasting_colour(rng, patch):
    """Draw a colour, (3,) uint8 RGB, that stands out from a patch, (h, w, 3) uint8 RGB.

    Its luma differs by MIN_CONTRAST or more from that of 85 % of the patch, or, where the patch
    holds both bright and dark, of as much as the best of 64 random colours reaches.
    """
    background = patch.reshape(-1, 3) @ LUMA
    colours = rng.integers(0, 256, (64, 3), dtype=np.uint8)
    share = (np.abs(colours @ LUMA - background[:, None]) >= MIN_CONTRAST).mean(0)
    return colours[np.minimum(share, 0.85).argmax()]


def compose(rng, scans, photos, size, heights):
    """Paste digits onto a photograph, each over the ones before it.

    A digit whose place would leave it or one under it with less than MIN_VISIBLE of its stroke or
    fewer than MIN_PIXELS is placed anew, and left out after 100 failed attempts.

    Args:
        rng (np.random.Generator): The only source of chance.
        scans (np.ndarray): (n, 8, 8) float32, share of ink in 0..1.
        photos (dict): Photographs by name, (h, w, 3) uint8 RGB.
        size (int): Side of the picture, px.
        heights (tuple): Least and largest digit height over ``size``.

    Returns:
        tuple: picture, (size, size, 3) uint8 RGB; the photograph's name; and a dict of the index in
        ``scans`` to the visible part of its stroke (opacity > 0.5), (size, size) bool.
    """
    name, picture = crop_photo(rng, photos, size)
    visible: dict = {}
    least: dict = {}
    for index, scan in enumerate(scans):
        for _ in range(100):
            alpha = draw_stroke(scan, size * rng.uniform(*heights), rng.uniform(-15, 15), rng.uniform(-0.15, 0.15))
            top, left = (int(rng.integers(0, size - extent + 1)) for extent in alpha.shape)
            box = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
            stroke = np.zeros((size, size), bool)
            stroke[box] = alpha > 0.5
            remaining = {below: mask & ~stroke for below, mask in visible.items()}
            if stroke.sum() >= MIN_PIXELS and all(mask.sum() >= least[below] for below, mask in remaining.items()):
                break
        else:
            continue
        opacity = alpha[..., None]
        colour = contrasting_colour(rng, picture[box])
        picture[box] = np.rint(opacity * colour + (1 - opacity) * picture[box])
        visible = {**remaining, index: stroke}
        least[index] = max(MIN_PIXELS, MIN_VISIBLE * stroke.sum())
    return picture, name, visible


def make_scene(sources, split, index, size, seed):
    """Make one picture of the COCO and ADE20K layouts, independently of all others.

    Args:
        sources (tuple): What :func:`load_sources` returned.
        split (str): 'train' or 'val'.
        index (int): Number of the picture in its split, from 0.
        size (int): Side, px.
        seed (int): Seed of the data set.

    Returns:
        tuple: picture, (size, size, 3) uint8 RGB; the photograph's name; and the objects in the
        order of pasting, as pairs of sample index and visible mask, (size, size) bool.
    """
    scans, _, pools, photos = sources
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    samples = rng.choice(pools[split], int(rng.integers(1, 5)), replace=False)
    picture, name, visible = compose(rng, scans[samples], photos[split], size, SCENE_HEIGHTS)
    return picture, name, [(int(samples[number]), mask) for number, mask in visible.items()]


def _track(items, description):
    try:
        from rich.progress import track
    except ImportError:
        return items
    return track(items, description)


def _write_scenes(root, sources, split, count, size, seed):
    """Write one split in COCO and ADE20K layout; return its number of objects."""
    from pycocotools import mask as coco_mask

    coco, annotations = root / 'coco' / f'{split}2017', root / 'coco' / 'annotations'
    ade, maps = (
        root / 'ade' / kind / {'train': 'training', 'val': 'validation'}[split] for kind in ('images', 'annotations')
    )
    for folder in (coco, annotations, ade, maps):
        folder.mkdir(parents=True, exist_ok=True)
    images: List[dict] = []
    objects: List[dict] = []
    for index in _track(range(count), f'{split} scenes'):
        picture, photo, strokes = make_scene(sources, split, index, size, seed)
        stem = f'{index + 1:012d}'
        # Full colour resolution: halved chroma would bleed a digit's colour over its mask's edge.
        Image.fromarray(picture).save(coco / f'{stem}.jpg', quality=95, subsampling=0)
        try:
            os.link(coco / f'{stem}.jpg', ade / f'{stem}.jpg')
        except OSError:
            shutil.copyfile(coco / f'{stem}.jpg', ade / f'{stem}.jpg')
        images.append({'id': index + 1, 'file_name': f'{stem}.jpg', 'width': size, 'height': size, 'photo': photo})
        semantic = np.ones((size, size), np.uint8)
        for sample, mask in strokes:
            label = int(sources[1][sample])
            semantic[mask] = label + 2
            rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            objects.append(
                {
                    'id': len(objects) + 1,
                    'image_id': index + 1,
                    'category_id': label + 1,
                    'iscrowd': 0,
                    'bbox': coco_mask.toBbox(rle).tolist(),
                    'area': int(mask.sum()),
                    'segmentation': {'size': [size, size], 'counts': rle['counts'].decode()},
                    'source': sample,
                }
            )
        Image.fromarray(semantic).save(maps / f'{stem}.png')
    categories = [{'id': label + 1, 'name': name, 'supercategory': 'digit'} for label, name in enumerate(CLASSES)]
    (annotations / f'instances_{split}2017.json').write_text(
        json.dumps({'images': images, 'annotations': objects, 'categories': categories})
    )
    return len(objects)


def _write_crops(root, sources, split, seed):
    """Write every sample of one split once in ImageNet layout; return their number."""
    scans, labels, pools, photos = sources
    for name in FOLDERS:
        (root / 'imagenet' / split / name).mkdir(parents=True)
    for sample in _track(pools[split], f'{split} single digits'):
        rng = np.random.default_rng([seed, len(SPLITS), sample])
        picture, _, _ = compose(rng, scans[[sample]], photos[split], CROP_SIZE, CROP_HEIGHTS)
        Image.fromarray(picture).save(root / 'imagenet' / split / FOLDERS[labels[sample]] / f'{sample:04d}.png')
    return len(pools[split])


def draw_preview(root):
    """Draw up to 12 training pictures with their objects' outlines, read back from the files.

    Returns:
        np.ndarray: Contact sheet, (h, w, 3) uint8 RGB.
    """
    from pycocotools import mask as coco_mask

    coco = json.loads((root / 'coco' / 'annotations' / 'instances_train2017.json').read_text())
    tiles = []
    for image in coco['images'][:12]:
        zoom = max(1, round(360 / image['width']))
        tile = np.asarray(Image.open(root / 'coco' / 'train2017' / image['file_name']))
        tile = tile.repeat(zoom, 0).repeat(zoom, 1)
        found = [item for item in coco['annotations'] if item['image_id'] == image['id']]
        colours = [(255, 255, 0), (0, 255, 255), (255, 0, 255), (0, 255, 0)]
        for item, colour in zip(found, colours):
            mask = coco_mask.decode(item['segmentation']).repeat(zoom, 0).repeat(zoom, 1)
            outlines = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
            cv2.drawContours(tile, outlines, -1, colour, 1)
        tile = np.pad(tile, ((24, 0), (0, 0), (0, 0)))
        right = 4
        for item, colour in zip(found, colours):
            name = CLASSES[item['category_id'] - 1]
            cv2.putText(tile, name, (right, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, 1, cv2.LINE_AA)
            right += cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)[0][0] + 12
        tiles.append(np.pad(tile, ((2, 2), (2, 2), (0, 0)), constant_values=255))
    columns = min(4, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[row : row + columns]) for row in range(0, len(tiles), columns)])


def _readme(parameters, counts):
    import sklearn

    options = ' '.join(f'--{name} {value}' for name, value in parameters.items())
    return f"""# Handwritten digits on photographs

Made by xcit_mm's digit generator, version {VERSION}:

    python tools/make_digits.py OUT {options}

The same command gives the same bytes with the same packages (here numpy {np.__version__},
opencv {cv2.__version__}, pillow {PIL.__version__}, scikit-learn {sklearn.__version__},
scikit-image {version('scikit-image')}).

- `coco`: {counts['train']} training and {counts['val']} validation pictures with
  {counts['train_objects']} and {counts['val_objects']} objects, COCO instance format. A mask is the
  visible part of a stroke. Classes: `{CLASSES}`
- `ade`: semantic maps of the same pictures, ADE20K format; 0 is unused, 1 background, 2 to 11 the
  digits. Classes: `{('background', *CLASSES)}`. MMSegmentation's `ADE20KDataset` takes no names but
  its own 150: name these with `type='BaseSegDataset', reduce_zero_label=True`.
- `imagenet`: {counts['train_crops']} and {counts['val_crops']} pictures, one of each handwriting
  sample, ImageNet format. Classes: `{FOLDERS}`
- `preview.png`: training pictures with the outlines of their masks.

No handwriting sample and no part of a photograph is in both splits: training has {TRAIN_SHARE:.0%}
of each photograph, validation the rest. `source` of a COCO annotation and the
file name of an ImageNet picture are the sample's index in `sklearn.datasets.load_digits()`.

## Sources and licences

Changed here: photographs cropped, scaled, mirrored; digits scaled up, slanted, coloured.

- Digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
  Repository, CC BY 4.0 (the test set, as scikit-learn ships it).
- `china.jpg` by danielbuechele, `flower.jpg` by vultilion: CC BY 2.0, as scikit-learn ships them.
- As scikit-image ships them: astronaut (NASA), rocket (SpaceX), brick, grass, gravel, camera (Lav
  Varshney), chelsea (Stefan van der Walt), coffee (Rachel Michetti): public domain or CC0; coins
  (Brooklyn Museum): no known copyright restrictions.
"""


def _find_made(out, stamp, force):
    """Return the manifest if ``out`` is what ``stamp`` describes, None if it may be (re)placed."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        found = {key: manifest[key] for key in stamp}
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(
            f'{out} exists and was not made by this tool; name another folder, or remove it yourself'
        ) from None
    if found != stamp and not force:
        raise FileExistsError(
            f'{out} was made with other options ({found["parameters"]}, version '
            f'{found["version"]}); --force replaces it'
        )
    return manifest if found == stamp else None


def _sweep(out):
    """Remove what a killed run left beside ``out``; refuse if a run is still at work there."""
    for folder in out.parent.glob(f'{glob.escape(out.name)}.partial-*'):
        marker = folder / UNFINISHED
        if fcntl and marker.is_file():
            with open(marker) as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise FileExistsError(f'another run is writing {folder}; wait for it or stop it') from None
        if marker.is_file() or (folder / MANIFEST).is_file():
            shutil.rmtree(folder)


def _publish(partial, out):
    """Put the finished folder in the place of ``out``: absent, empty, or an older one of ours."""
    replaced = Path(f'{partial}-replaced')
    if out.exists():
        out.rename(replaced)
    try:
        partial.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def make_digits(out, train=2000, val=100, size=160, seed=0, force=False):
    """Make the whole data set, or find it made.

    It is written beside ``out`` and renamed at the end, so ``out`` is complete or untouched.

    Args:
        out (str | Path): Folder to make: absent, empty, or made by this function.
        train (int): Number of training scenes, at least 1.
        val (int): Number of validation scenes, at least 1.
        size (int): Side of a scene, px, at least 64.
        seed (int): At least 0. The same seed gives the same bytes.
        force (bool): Replace a data set made with other parameters or by another version.

    Returns:
        tuple: dict of the numbers of pictures and objects, and whether it was made just now.

    Raises:
        ValueError: A parameter is out of its range.
        SourceMissing: scikit-learn, scikit-image or pycocotools is not installed.
        FileExistsError: ``out`` is not ours, was made with other parameters, or is being written.
        OSError: ``out`` cannot be written.
    """
    parameters = {'train': train, 'val': val, 'size': size, 'seed': seed}
    for name, least in (('train', 1), ('val', 1), ('size', 64), ('seed', 0)):
        if parameters[name] < least:
            raise ValueError(f'{name} is {parameters[name]}; it must be at least {least}')
    out = Path(out).expanduser().resolve()
    stamp = {'generator': 'xcit_mm.datasets.digits', 'version': VERSION, 'parameters': parameters}
    made = _find_made(out, stamp, force)
    if made:
        return made['counts'], False
    sources = load_sources()
    partial = out.with_name(f'{out.name}.partial-{os.getpid()}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        partial.mkdir()
    except OSError as error:
        if error.errno is None:  # ours, from _sweep
            raise
        raise OSError(f'cannot write in {out.parent}: {error.strerror}') from error
    try:
        with open(partial / UNFINISHED, 'w') as lock:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)
            counts = {'train': train, 'val': val}
            for split in SPLITS:
                counts[f'{split}_objects'] = _write_scenes(partial, sources, split, parameters[split], size, seed)
                counts[f'{split}_crops'] = _write_crops(partial, sources, split, seed)
            Image.fromarray(draw_preview(partial)).save(partial / 'preview.png')
            (partial / 'README.md').write_text(_readme(parameters, counts))
            (partial / MANIFEST).write_text(json.dumps({**stamp, 'counts': counts}, indent=2))
        (partial / UNFINISHED).unlink()
        _publish(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return counts, True
