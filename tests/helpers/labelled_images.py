"""Small labelled data sets in the formats that people have: squares and disks whose places are known."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ('disk', 'square')
SIDE = 48  # pixels


def scene(seed):
    """An image (SIDE, SIDE, 3) and its objects: class name, box x1, y1, x2, y2 and the label map (0: ground)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    objects = []
    for number, place in enumerate(((4, 4), (26, 26))):
        kind = CLASSES[(seed + number) % 2]
        side = int(rng.integers(10, 17))
        x, y = place
        inside = (rows >= y) & (rows < y + side) & (columns >= x) & (columns < x + side)
        if kind == 'disk':
            radius = side / 2
            inside &= (rows + 0.5 - y - radius) ** 2 + (columns + 0.5 - x - radius) ** 2 <= radius**2
        image[inside] = (230, 60, 60) if kind == 'disk' else (60, 60, 230)
        labels[inside] = CLASSES.index(kind) + 1
        objects.append((kind, (x, y, x + side, y + side)))
    return image, objects, labels


def corners(box):
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def save(path, image):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def coco(folder, count=8, masks=False, name='labels.json', images='pictures'):
    """COCO's JSON beside a folder of images."""
    content = dict(images=[], annotations=[], categories=[dict(id=7 + i, name=one) for i, one in enumerate(CLASSES)])
    for number in range(count):
        image, objects, _ = scene(number)
        save(folder / images / f'{number}.png', image)
        content['images'].append(dict(id=number, file_name=f'{number}.png', width=SIDE, height=SIDE))
        for kind, (x1, y1, x2, y2) in objects:
            row = dict(
                id=len(content['annotations']) + 1,
                image_id=number,
                category_id=7 + CLASSES.index(kind),
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1),
                iscrowd=0,
            )
            if masks:
                row['segmentation'] = [corners((x1, y1, x2, y2))]
            content['annotations'].append(row)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def voc(folder, count=8):
    """An XML file for each image."""
    for number in range(count):
        image, objects, _ = scene(number)
        save(folder / 'JPEGImages' / f'{number}.jpg', image)
        parts = [
            f'<object><name>{kind}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>'
            f'<ymax>{y2}</ymax></bndbox></object>'
            for kind, (x1, y1, x2, y2) in objects
        ]
        path = folder / 'Annotations' / f'{number}.xml'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'<annotation><filename>{number}.jpg</filename><size><width>{SIDE}</width><height>{SIDE}</height></size>'
            f'{"".join(parts)}</annotation>'
        )
    return folder


def yolo(folder, splits=(('train', 6), ('val', 2)), polygons=False, yaml=True):
    """A text for each image, and ``data.yaml``."""
    number = 0
    for split, count in splits:
        for _ in range(count):
            image, objects, _ = scene(number)
            save(folder / 'images' / split / f'{number}.jpg', image)
            lines = []
            for kind, box in objects:
                x1, y1, x2, y2 = (side / SIDE for side in box)
                values = corners((x1, y1, x2, y2)) + [x1, y1 + (y2 - y1) / 2]
                if not polygons:
                    values = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
                lines.append(f'{CLASSES.index(kind)} ' + ' '.join(f'{value:.6f}' for value in values))
            path = folder / 'labels' / split / f'{number}.txt'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('\n'.join(lines))
            number += 1
    if yaml:
        (folder / 'data.yaml').write_text('path: .\ntrain: images/train\nval: images/val\nnames: [disk, square]\n')
    return folder


def labelme(folder, count=8, kind='polygon'):
    """A JSON file of shapes for each image."""
    for number in range(count):
        image, objects, _ = scene(number)
        save(folder / f'{number}.jpg', image)
        shapes = []
        for name, (x1, y1, x2, y2) in objects:
            flat = corners((x1, y1, x2, y2))
            points = [[x1, y1], [x2, y2]] if kind == 'rectangle' else [flat[i : i + 2] for i in range(0, 8, 2)]
            shapes.append(dict(label=name, points=points, shape_type=kind, group_id=None))
        content = dict(shapes=shapes, imagePath=f'{number}.jpg', imageWidth=SIDE, imageHeight=SIDE, imageData=None)
        (folder / f'{number}.json').write_text(json.dumps(content))
    return folder


def maps(folder, count=8, write=lambda labels: labels, suffix='.png'):
    """Images and label maps in two folders; ``write`` makes the picture of a map's labels."""
    for number in range(count):
        image, _, labels = scene(number)
        save(folder / 'images' / f'{number}.jpg', image)
        save(folder / 'masks' / f'{number}{suffix}', write(labels))
    return folder


def folders(folder, count=6, splits=('',)):
    """A folder of images for each class."""
    for split in splits:
        for label, kind in enumerate(CLASSES):
            for number in range(count):
                image, _, _ = scene(number + 100 * label + (1000 if split == 'val' else 0))
                image[:, :, 2 * label] = 200  # a colour tells the class
                save(folder / split / kind / f'{kind}_{number}.png', image)
    return folder
