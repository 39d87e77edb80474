#!/usr/bin/env python
"""Convert an XCiT checkpoint between the layouts of this project, the original release, MMPretrain and timm.

tools/convert_checkpoint.py xcit_small_12_p16_224.pth xcit_small_12_p16_224.safetensors --to timm
tools/convert_checkpoint.py work_dirs/xcit_n12_8_digits/epoch_40.pth xcit_n12_8_digits --to hf   # then hf upload
"""

import argparse
import os

from xcit_mm.conversion.convert import CHOICES, TOLERANCE, convert, in_words
from xcit_mm.engine.screen import without_noise
from xcit_mm.errors import clear_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Write the tensors of an XCiT checkpoint in another layout, bit for bit. The new file is kept only '
        'if the model it is meant for computes the same from it.'
    )
    parser.add_argument('source', metavar='IN', help='file or address, in any layout that this project loads')
    parser.add_argument(
        'target', metavar='OUT', help='file to write: .pth, or .safetensors for the tensors alone; for hf a folder'
    )
    parser.add_argument(
        '--to',
        required=True,
        choices=CHOICES,
        help='xcit_mm: for the tools here and all of OpenMMLab with this plugin; official: the original release; '
        "mmpretrain: MMPretrain's own XCiT; timm: timm's; hf: a folder for timm's create_model('local-dir:OUT') and "
        'the Hugging Face hub',
    )
    parser.add_argument('--force', action='store_true', help='replace OUT if it exists')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with clear_errors(), without_noise():
        done = convert(args.source, args.target, args.to, args.force)
        head = f'head of {done.num_classes} classes' if done.num_classes else 'no linear head'
        print(f'{args.source}: {done.source_layout}, {done.arch}, {head}, {done.source_tensors} tensors')
        if done.left_out:
            print(f'  not carried over: {", ".join(done.left_out)}')
        files = [entry.path for entry in os.scandir(args.target)] if os.path.isdir(args.target) else [args.target]
        megabytes = sum(map(os.path.getsize, files)) / 1e6
        print(f'{args.target}: {done.target_layout}, {done.target_tensors} tensors, {megabytes:.1f} MB')
        print('  read back: the same bits')
        print(f'  {done.compared}: relative deviation {in_words(done.deviations)} (at most {TOLERANCE:g})')


if __name__ == '__main__':
    main()
