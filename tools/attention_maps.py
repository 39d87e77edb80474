#!/usr/bin/env python
"""Draw what the class token of an XCiT attends to, on images, folders of images and videos, at any resolution.

    tools/attention_maps.py photo.jpg --checkpoint CHECKPOINT
    tools/attention_maps.py clip.mp4 folder/ --checkpoint CHECKPOINT --size 480 --out-dir work_dirs/attention

The checkpoint is a file or an address, of a classifier or of self-supervised training, in any layout. The exit code is
1 if something could not be drawn.
"""

import argparse
import os
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.device import get_device
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xcit_mm.checks.config import check_config
from xcit_mm.datasets.loading import BadImage
from xcit_mm.datasets.reading import channels_of, to_picture
from xcit_mm.datasets.sources import Missing, Video, fetch, find_images, in_words
from xcit_mm.engine.screen import without_noise
from xcit_mm.engine.setup import read_config
from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.visualization import channel_attention, class_attention, load_backbone, load_input
from xcit_mm.visualization.pictures import (
    contact_sheet,
    draw,
    draw_channel_attention,
    overlay,
    resize_short_side,
    to_pixels,
)

COLUMNS = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw the attention maps of an XCiT.')
    parser.add_argument('inputs', nargs='+', metavar='IMAGE', help='images, videos, folders of them, globs, addresses')
    parser.add_argument('--checkpoint', required=True, help='checkpoint file or address')
    parser.add_argument(
        '--config',
        help='config of the model, which says how its images are read and normalised (default: the one in the '
        'checkpoint; without any, in colour and as for ImageNet)',
    )
    parser.add_argument(
        '--out-dir',
        '--out',
        dest='out',
        default='work_dirs/attention',
        help='folder for the pictures (default: %(default)s)',
    )
    parser.add_argument('--size', type=int, help='resize the short side to this many pixels (default: as the image is)')
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


def check_size(args: argparse.Namespace, backbone) -> None:
    if args.size is not None and args.size < backbone.patch_size:
        raise UsageError(f'--size must be at least one patch of {backbone.patch_size} pixels, got {args.size}')


def write(path: Path, picture: np.ndarray) -> None:
    if not cv2.imwrite(str(path), picture):
        raise BadImage(f'{path} cannot be written; choose another folder with --out-dir')


class Drawing:
    """A backbone and how its images are read, ready to draw."""

    def __init__(self, backbone, read, args: argparse.Namespace):
        self.backbone, self.read, self.args = backbone, read, args

    def _prepare(self, source):
        """Picture (H, W, 3) BGR, and the attention's input, of the size asked for."""
        image = resize_short_side(self.read.reader.read(source)['img'], self.args.size)
        if min(image.shape[:2]) < self.backbone.patch_size:
            raise BadImage(
                f'it is {image.shape[1]}x{image.shape[0]} pixels, smaller than a patch; enlarge it with --size'
            )
        inputs = self.read.tensor(image, self.args.device)
        if inputs.shape[1] != channels_of(self.backbone):
            raise BadImage(
                f'it has {inputs.shape[1]} channels as it is read, and the model takes {channels_of(self.backbone)}'
            )
        return np.ascontiguousarray(to_picture(image, self.read.reader.order)[..., ::-1]), inputs

    def image(self, source, folder: Path) -> Path:
        args = self.args
        image, inputs = self._prepare(fetch(source) if isinstance(source, str) else source)
        folder.mkdir(parents=True, exist_ok=True)
        attention = class_attention(self.backbone, inputs, args.block)[0]
        tensors = {'class_attention': attention.cpu().numpy()}
        pictures = draw(image, attention, self.backbone.patch_size, args.mass)
        for name, picture in pictures.items():
            write(folder / f'{name}.png', picture)
        write(folder / 'sheet.png', contact_sheet(image, pictures))
        if args.channels:
            channels = channel_attention(self.backbone, inputs)[0]
            tensors['channel_attention'] = channels.cpu().numpy()
            write(folder / 'channels.png', draw_channel_attention(channels))
        if args.tensors:
            np.savez(folder / 'attention.npz', **tensors)
        return folder / 'sheet.png'

    def video(self, video: Video, target: Path) -> Path:
        """Every frame beside its attention, averaged over the heads."""
        writer = None
        target.parent.mkdir(parents=True, exist_ok=True)
        with Progress(*COLUMNS) as progress:
            for frame in progress.track(video.frames(), None, description=video.path.name):
                picture, inputs = self._prepare(frame)
                height, width = (side - side % 2 for side in picture.shape[:2])  # most players need even sides
                picture, inputs = picture[:height, :width], inputs[:, :, :height, :width]
                attention = class_attention(self.backbone, inputs, self.args.block)[0].mean(0)
                values = to_pixels(attention, self.backbone.patch_size, height, width)
                picture = np.hstack([picture, overlay(picture, values)])
                if writer is None:
                    code = cv2.VideoWriter_fourcc(*'mp4v')
                    writer = cv2.VideoWriter(str(target), code, video.rate, picture.shape[1::-1])
                writer.write(picture)
        writer.release()
        return target


def draw_all(drawing: Drawing, named: list, out: Path) -> dict:
    """Draw everything; return what could not be drawn, with the reason."""
    failed = {}
    with Progress(*COLUMNS, disable=len(named) < 2) as progress:
        for name, source in progress.track(named, description='images'):
            label = getattr(source, 'path', source) if not isinstance(source, Missing) else source.given
            try:
                if isinstance(source, Missing):
                    raise BadImage(source.reason)
                if isinstance(source, Video):
                    done = drawing.video(source, out / f'{name}_attention.mp4')
                else:
                    done = drawing.image(source, out / name)
            except BadImage as error:
                failed[str(label)] = str(error)
            else:
                print(f'{label}: {done}', flush=True)
    return failed


@torch.no_grad()
def main() -> None:
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')
    args = parse_args()
    with clear_errors(), without_noise():
        named = find_images(args.inputs, recursive=False)
        cfg = read_config(Path(args.config)) if args.config else None
        if cfg is not None:
            check_config(cfg)
        backbone = load_backbone(args.checkpoint, args.device)
        read = load_input(args.checkpoint, backbone, cfg)
        check_size(args, backbone)
        out = Path(args.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f'the folder {out} cannot be created ({error.strerror}); choose another with --out-dir'
            ) from None
        failed = draw_all(Drawing(backbone, read, args), named, out)
        if named.left_out:
            print(f'Left out of the folders: {in_words(named.left_out)}')
        if failed:
            listed = ''.join(f'\n  {label}: {reason}' for label, reason in failed.items())
            raise UsageError(f'{len(failed)} of {len(named)} could not be drawn, the others are in {out}:{listed}')


if __name__ == '__main__':
    main()
