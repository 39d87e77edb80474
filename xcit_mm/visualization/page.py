"""One page, served locally, to drop an image on: what the class token attends to, and what a model predicts."""

import tempfile
from pathlib import Path
from typing import Callable, List, Optional, Tuple

import cv2
import numpy as np

from ..models import XCiT
from .attention import class_attention
from .pictures import contact_sheet, draw, resize_short_side, to_input

TITLE = 'XCiT: attention and predictions'
LARGEST = 2048  # px, short side that the page offers


def attention_pictures(backbone: XCiT, image: np.ndarray, size: int, mass: float) -> Tuple[np.ndarray, List[tuple]]:
    """What the page shows of an image.

    Args:
        backbone (XCiT): In eval mode.
        image (np.ndarray): (H, W, 3) uint8, RGB.
        size (int): Its short side is resized to so many pixels.
        mass (float): Share of the attention that masks keep.

    Returns:
        tuple: The overlay of the average; and all other pictures with their captions. RGB.
    """
    image = resize_short_side(np.ascontiguousarray(image[..., ::-1]), max(size, backbone.patch_size))
    inputs = to_input(image, next(backbone.parameters()).device)
    pictures = draw(image, class_attention(backbone, inputs)[0], backbone.patch_size, mass)
    shown = [(pictures['mask_mean'], f'patches with {mass:.0%} of the attention')]
    heads = [name for name in pictures if name.startswith('overlay_head')]
    shown += [(pictures[name], name.replace('overlay_', '').replace('_', ' ')) for name in heads]
    shown.append((contact_sheet(image, pictures), 'contact sheet'))
    return _rgb(pictures['overlay_mean']), [(_rgb(picture), caption) for picture, caption in shown]


def predictor(model: str, checkpoint: Optional[str], device: str) -> Callable[[np.ndarray], np.ndarray]:
    """From an image (H, W, 3), RGB, to the picture of what a detector, segmentor or classifier finds in it.

    Args:
        model (str): Config file, or a name of :func:`xcit_mm.list_models`.
        checkpoint (str, optional): Its weights; of a name the published ones if not given.
        device (str): Where it runs.

    Raises:
        UsageError: If there is no such model.
        CheckpointError: If the weights are those of another model.
    """
    from ..apis import Inferencer

    inferencer = Inferencer(model, checkpoint, device)

    def predict(image: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'image.png'
            cv2.imwrite(str(path), image[..., ::-1])
            inferencer(str(path), out_dir=f'{folder}/out')
            (picture,) = Path(folder, 'out', 'overlays').iterdir()
            return _rgb(cv2.imread(str(picture)))

    return predict


def build_page(backbone: Optional[XCiT], predict: Optional[Callable] = None, size: int = 480):
    """The page, to be launched.

    Args:
        backbone (XCiT, optional): Whose attention is shown.
        predict (callable, optional): From :func:`predictor`.
        size (int): Short side in pixels that the page begins with.

    Returns:
        gradio.Blocks: The page.
    """
    import gradio as gr

    def show(image, size, mass):
        if image is None:
            raise gr.Error('Drop an image on the left first.')
        found = list(attention_pictures(backbone, image, int(size), mass)) if backbone else []
        return [*found, predict(image)] if predict else found

    with gr.Blocks(title=TITLE) as page:
        gr.Markdown(f'# {TITLE}')
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.Image(label='image', type='numpy')
                sizes = gr.Slider(64, LARGEST, value=size, step=16, label='short side (pixels)', visible=bool(backbone))
                mass = gr.Slider(0.05, 1, value=0.6, step=0.05, label='share of attention kept', visible=bool(backbone))
                button = gr.Button('Show', variant='primary')
            with gr.Column(scale=2):
                outputs = []
                with gr.Row():
                    if backbone:
                        outputs.append(gr.Image(label='attention, mean of the heads'))
                    prediction = gr.Image(label='prediction') if predict else None
                if backbone:
                    outputs.append(gr.Gallery(label='heads', columns=5, height='auto'))
                if predict:
                    outputs.append(prediction)
        gr.on([button.click, image.upload], show, [image, sizes, mass], outputs, api_name='show')
    return page


def _rgb(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[..., ::-1])
