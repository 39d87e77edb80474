"""One page, served locally, to drop an image on: what the class token attends to, and what a model predicts."""

from pathlib import Path
from typing import Callable, List, Optional, Tuple, Union

import numpy as np

from ..datasets.loading import BadImage
from ..datasets.reading import ModelInput, model_input, to_picture
from ..errors import UsageError
from ..models import XCiT
from ..visualization.attention import class_attention
from ..visualization.pictures import contact_sheet, draw, resize_short_side

TITLE = 'XCiT: attention and predictions'
LARGEST = 2048  # px, short side that the page offers
Image = Union[str, Path, np.ndarray]


def attention_pictures(
    backbone: XCiT, image: Image, size: int, mass: float, read: Optional[ModelInput] = None
) -> Tuple[np.ndarray, List[tuple]]:
    """Draw the pictures that the page shows for an image.

    Args:
        backbone (XCiT): In eval mode.
        image (str | np.ndarray): A file, or (H, W, 3) uint8, RGB.
        size (int): Pixels to which its short side is resized.
        mass (float): Share of the attention that masks keep.
        read (ModelInput, optional): How it is read and normalised; in colour and as for ImageNet if not given.

    Returns:
        tuple: The overlay of the average; and all other pictures with their captions. RGB.

    Raises:
        BadImage: If the file holds no image.
    """
    read = read or model_input()
    pixels = read.reader.read(image, 'RGB')['img']
    pixels = resize_short_side(pixels, max(size, backbone.patch_size))
    inputs = read.tensor(pixels, next(backbone.parameters()).device)
    shown = np.ascontiguousarray(to_picture(pixels, read.reader.order)[..., ::-1])
    pictures = draw(shown, class_attention(backbone, inputs)[0], backbone.patch_size, mass)
    found = [(pictures['mask_mean'], f'patches with {mass:.0%} of the attention')]
    heads = [name for name in pictures if name.startswith('overlay_head')]
    found += [(pictures[name], name.replace('overlay_', '').replace('_', ' ')) for name in heads]
    found.append((contact_sheet(shown, pictures), 'contact sheet'))
    return _rgb(pictures['overlay_mean']), [(_rgb(picture), caption) for picture, caption in found]


def predictor(model: str, checkpoint: Optional[str], device: str) -> Callable[[Image], np.ndarray]:
    """From an image, a file or (H, W, 3) RGB, to the picture of what a model finds in it.

    Args:
        model (str): Config file, or a name of :func:`xcit_mm.list_models`.
        checkpoint (str, optional): Its weights; of a name the published ones if not given.
        device (str): Where it runs.

    Raises:
        UsageError: If there is no such model.
        CheckpointError: If the weights are those of another model.
    """
    from . import Inferencer

    return Inferencer(model, checkpoint, device).picture


def build_page(
    backbone: Optional[XCiT], predict: Optional[Callable] = None, size: int = 480, read: Optional[ModelInput] = None
):
    """The page, to be launched.

    Args:
        backbone (XCiT, optional): Whose attention is shown.
        predict (callable, optional): From :func:`predictor`.
        size (int): Short side in pixels that the page begins with.
        read (ModelInput, optional): How the backbone's images are read.

    Returns:
        gradio.Blocks: The page.
    """
    import gradio as gr

    default = read or model_input()

    def show(file, size, mass):
        if file is None:
            raise gr.Error('Drop an image on the left first.')
        try:
            picture = to_picture(default.reader.read(file)['img'], default.reader.order)
            found = list(attention_pictures(backbone, file, int(size), mass, read)) if backbone else []
            found += [predict(file)] if predict else []
        except (BadImage, UsageError) as error:
            said = gr.Error(f'{Path(file).name}: {error}')
            said.print_exception = False  # it is shown on the page
            raise said from None
        return [picture, *found]

    with gr.Blocks(title=TITLE) as page:
        gr.Markdown(f'# {TITLE}')
        with gr.Row():
            with gr.Column(scale=1):
                # Files as they are: an image component would make 8 bits of them.
                file = gr.File(label='image: drop a file here', type='filepath')
                image = gr.Image(label='image', interactive=False)
                sizes = gr.Slider(64, LARGEST, value=size, step=16, label='short side (pixels)', visible=bool(backbone))
                mass = gr.Slider(0.05, 1, value=0.6, step=0.05, label='share of attention kept', visible=bool(backbone))
                button = gr.Button('Show', variant='primary')
            with gr.Column(scale=2):
                outputs = [image]
                with gr.Row():
                    if backbone:
                        outputs.append(gr.Image(label='attention, mean of the heads'))
                    prediction = gr.Image(label='prediction') if predict else None
                if backbone:
                    outputs.append(gr.Gallery(label='heads', columns=5, height='auto'))
                if predict:
                    outputs.append(prediction)
        gr.on([button.click, file.upload], show, [file, sizes, mass], outputs, api_name='show')
    return page


def _rgb(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[..., ::-1])
