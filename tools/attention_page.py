#!/usr/bin/env python
"""Serve one page to drop an image on: the attention of a classifier's or DINO's class token, and predictions.

    tools/attention_page.py --checkpoint CHECKPOINT
    tools/attention_page.py --checkpoint CHECKPOINT --model mask_rcnn_xcit_s12_8_3x_coco [--weights FILE]

It needs pip install "xcit_mm[page]", and is served to this machine alone unless --host says otherwise.
"""

import argparse
import socket

from mmengine.device import get_device

from xcit_mm.engine.screen import short_screen
from xcit_mm.errors import UsageError, clear_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Serve a page that shows attention and predictions.')
    parser.add_argument('--checkpoint', help='classifier or self-supervised backbone, file or address')
    parser.add_argument('--model', help='detector, segmentor or classifier: config file, or name of a published model')
    parser.add_argument('--weights', help='weights of --model; for a name, by default the published ones')
    parser.add_argument('--size', type=int, default=480, help='short side to begin with (default: %(default)s)')
    parser.add_argument('--host', default='127.0.0.1', help='default: %(default)s; 0.0.0.0 serves the network')
    parser.add_argument('--port', type=int, default=7860, help='default: %(default)s')
    parser.add_argument('--device', default=get_device(), help='default: %(default)s')
    args = parser.parse_args()
    if not (args.checkpoint or args.model):
        parser.error('give --checkpoint for attention, --model for predictions, or both')
    if args.weights and not args.model:
        parser.error('--weights belong to a --model')
    return args


def check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f'{host}:{port} cannot be served ({error.strerror}); choose another --port') from None


def main() -> None:
    args = parse_args()
    with clear_errors(), short_screen():
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise UsageError(f'the page needs Gradio ({error}); pip install "xcit_mm[page]"') from None
        from xcit_mm.apis.page import build_page, predictor
        from xcit_mm.visualization import load_backbone, load_input

        check_port(args.host, args.port)
        backbone = load_backbone(args.checkpoint, args.device) if args.checkpoint else None
        read = load_input(args.checkpoint, backbone) if backbone else None
        predict = predictor(args.model, args.weights, args.device) if args.model else None
        page = build_page(backbone, predict, args.size, read)
        print(f'Serving http://{args.host}:{args.port} (Ctrl-C ends it)', flush=True)
        page.launch(server_name=args.host, server_port=args.port, quiet=True, inbrowser=False)


if __name__ == '__main__':
    main()
