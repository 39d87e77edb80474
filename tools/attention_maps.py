#!/usr/bin/env python
"""Draw what the class token of an XCiT attends to, on images, folders of images and videos, at any resolution.

    tools/attention_maps.py photo.jpg --checkpoint CHECKPOINT
    tools/attention_maps.py clip.mp4 folder/ --checkpoint CHECKPOINT --size 480 --out work_dirs/attention

The checkpoint is a file or an address, of a classifier or of self-supervised training, in any layout.
"""

import argparse
import os
from pathlib import Path
from typing import List

import cv2
import numpy as np
import torch
from mmengine.device import get_device
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xcit_mm.datasets.loading import BadImage, read_image
from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.visualization import channel_attention, class_attention, load_backbone
from xcit_mm.visualization.pictures import (
    contact_sheet,
    draw,
    draw_channel_attention,
    heat_map,
    overlay,
    resize_short_side,
    to_input,
    to_pixels,
)

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.gif')
COLUMNS = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw the attention maps of an XCiT.')
    parser.add_argument('inputs', nargs='+', metavar='IMAGE', help='images, videos, and folders of them')
    parser.add_argument('--checkpoint', required=True, help='checkpoint file or address')
    parser.add_argument(
        '--out-dir',
        '--out',
        dest='out',
        default='work_dirs/attention',
        help='folder for the pictures (default: %(default)s)',
    )
    parser.add_argument('--size', type=int, help='resize the short side to so many pixels (default: as the image is)')
    parser.add_argument(
        '--block', type=int, choices=(-1, -2), default=-1, help='last class-attention block, or the one before'
    )
    parser.add_argument('--mass', type=float, default=0.6, help='share of the attention that masks keep (default: 0.6)')
    parser.add_argument('--channels', action='store_true', help="also XCA's attention between channels, of every block")
    parser.add_argument('--tensors', action='store_true', help='also write the attention itself, to attention.npz')
    parser.add_argument('--device', default=get_device(), help='default: %(default)s')
    args = parser.parse_args()
    if not 0 < args.mass <= 1:
        parser.error(f'--mass must be above 0 and at most 1, got {args.mass}')
    return args


def find_files(inputs: List[str]) -> List[Path]:
    """The images and videos of the command line, folders listed."""
    files = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES + VIDEOS)
            if not found:
                raise UsageError(f'the folder {path} has no images or videos ({" ".join(IMAGES + VIDEOS)})')
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UsageError(f'there is no image, video or folder {path}')
    return files


def check_size(args: argparse.Namespace, backbone) -> None:
    if args.size is not None and args.size < backbone.patch_size:
        raise UsageError(f'--size must be at least one patch of {backbone.patch_size} pixels, got {args.size}')


def write(path: Path, picture: np.ndarray) -> None:
    if not cv2.imwrite(str(path), picture):
        raise UsageError(f'{path} cannot be written; choose another folder with --out')


def draw_image(backbone, path: Path, folder: Path, args: argparse.Namespace) -> None:
    try:
        image = resize_short_side(read_image(str(path)), args.size)
    except BadImage as error:
        raise UsageError(f'{path}: {error}') from None
    if min(image.shape[:2]) < backbone.patch_size:
        raise UsageError(
            f'{path} is {image.shape[1]}x{image.shape[0]} pixels, smaller than a patch; enlarge it with --size'
        )
    folder.mkdir(parents=True, exist_ok=True)
    inputs = to_input(image, args.device)
    attention = class_attention(backbone, inputs, args.block)[0]
    tensors = {'class_attention': attention.cpu().numpy()}
    pictures = draw(image, attention, backbone.patch_size, args.mass)
    for name, picture in pictures.items():
        write(folder / f'{name}.png', picture)
    write(folder / 'sheet.png', contact_sheet(image, pictures))
    if args.channels:
        channels = channel_attention(backbone, inputs)[0]
        tensors['channel_attention'] = channels.cpu().numpy()
        write(folder / 'channels.png', draw_channel_attention(channels))
    if args.tensors:
        np.savez(folder / 'attention.npz', **tensors)


def draw_video(backbone, path: Path, target: Path, args: argparse.Namespace) -> None:
    """Every frame beside its attention, averaged over the heads."""
    video = cv2.VideoCapture(str(path))
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    writer, number = None, 0
    with Progress(*COLUMNS) as progress:
        task = progress.add_task(path.name, total=total if total > 0 else None)
        while True:
            read, frame = video.read()
            if not read:
                break
            frame = resize_short_side(frame, args.size)
            height, width = (side - side % 2 for side in frame.shape[:2])  # most players need even sides
            frame = frame[:height, :width]
            attention = class_attention(backbone, to_input(frame, args.device), args.block)[0].mean(0)
            colours = heat_map(to_pixels(attention, backbone.patch_size, height, width))
            picture = np.hstack([frame, overlay(frame, colours)])
            if writer is None:
                rate = video.get(cv2.CAP_PROP_FPS) or 25
                writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*'mp4v'), rate, picture.shape[1::-1])
            writer.write(picture)
            number += 1
            progress.advance(task)
    if writer is None:
        raise UsageError(f'{path} is no video that can be read')
    writer.release()


def main() -> None:
    args = parse_args()
    with clear_errors():
        files = find_files(args.inputs)
        backbone = load_backbone(args.checkpoint, args.device)
        check_size(args, backbone)
        out = Path(args.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f'the folder {out} cannot be made ({error.strerror}); choose another with --out') from None
        images = [path for path in files if path.suffix.lower() not in VIDEOS]
        with Progress(*COLUMNS, disable=len(images) < 2) as progress:
            for path in progress.track(images, description='images'):
                draw_image(backbone, path, out / path.stem, args)
                print(f'{path}: {out / path.stem / "sheet.png"}', flush=True)
        for path in files:
            if path not in images:
                draw_video(backbone, path, out / f'{path.stem}_attention.mp4', args)
                print(f'{path}: {out / f"{path.stem}_attention.mp4"}', flush=True)


if __name__ == '__main__':
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')
    with torch.no_grad():
        main()
