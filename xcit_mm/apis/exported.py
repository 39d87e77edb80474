"""Exported files in the place of a config and a checkpoint: the same images in, the same data samples out.

The file holds the network. What surrounds it in the libraries is its 'config' in the metadata: how images are read,
resized and normalised, classes and colours, and the settings of the test. :class:`~xcit_mm.apis.Inferencer` uses both
as it uses a config and a PyTorch model; the latter is never built.
"""

import ast
import inspect
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..datasets.reading import loading_step, loads_annotations, preprocessor_of, test_pipeline
from ..errors import UsageError
from ..visualization.colours import colours_of, palette_of
from .deployed import Deployed, fill_sample

SUFFIXES = {'.onnx': 'onnxruntime', '.xml': 'openvino'}
PACKERS = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs', 'mmpretrain': 'PackInputs'}
PREPROCESSORS = {'mmdet': 'DetDataPreprocessor', 'mmseg': 'SegDataPreProcessor', 'mmpretrain': 'ClsDataPreprocessor'}


def is_exported(model: Any) -> bool:
    """Whether a model is given as the path of an exported file."""
    return isinstance(model, (str, Path)) and Path(model).suffix.lower() in SUFFIXES


def config_for_file(cfg: Config, model: nn.Module) -> str:
    """The parts of a config that surround the network, for the metadata of a file.

    Args:
        cfg (Config): The config that the model was built from.
        model (nn.Module): The model, with ``dataset_meta``.

    Returns:
        str: A dict of Python literals, to be read by :func:`ast.literal_eval`.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    steps = [dict(step) for step in test_pipeline(cfg) if not loads_annotations(step, scope)]
    for step in steps:
        for key in ('backend_args', 'file_client_args'):  # storage of the training data, perhaps with passwords
            step.pop(key, None)
    classes = model.dataset_meta.get('classes')
    counts = (getattr(module, 'num_classes', None) for module in model.modules())
    number = max((count for count in counts if isinstance(count, int)), default=0)
    preprocessor = {key: value for key, value in preprocessor_of(cfg).items() if key != 'batch_augments'}
    settings: Dict[str, Any] = dict(data_preprocessor=preprocessor, test_cfg=cfg.model.get('test_cfg') or {})
    head = getattr(model, 'decode_head', None)
    if head is not None:
        settings['decode_head'] = dict(align_corners=head.align_corners, threshold=head.threshold)
        settings['out_channels'] = model.out_channels
    elif scope == 'mmpretrain':
        settings['activation'] = activation_of(model)
    metainfo = dict(classes=classes, palette=colours_of(classes, palette_of(cfg), number))
    dataset = dict(metainfo=metainfo, pipeline=steps)
    return repr(_literals(dict(default_scope=scope, model=settings, test_dataloader=dict(dataset=dataset))))


def activation_of(model: nn.Module) -> str:
    """What makes scores of a classifier's logits: 'sigmoid' if an image can have several labels, else 'softmax'."""
    kinds = type(getattr(model, 'head', None)).__mro__
    return 'sigmoid' if any(kind.__name__ == 'MultiLabelClsHead' for kind in kinds) else 'softmax'


def _literals(value):
    """A config as literals: classes by their full names, NumPy's numbers as Python's."""
    if isinstance(value, dict):
        return {key: _literals(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_literals(item) for item in value)
    if inspect.isclass(value):
        return f'{value.__module__}.{value.__qualname__}'
    return value.item() if isinstance(value, np.generic) else value


def open_exported(path: Union[str, Path], device: Optional[str] = None) -> Tuple[Config, 'ExportedModel']:
    """Open an exported file.

    Args:
        path (str | Path): An ONNX file, run by ONNX Runtime, or by OpenVINO where only that is installed; or the .xml
            of an OpenVINO model that was converted from one.
        device (str, optional): 'cpu', or such as 'cuda:0' with ``onnxruntime-gpu``; a GPU if the runtime has one.

    Returns:
        tuple: The config that surrounds the network, and the model, which takes what the config's pipeline packs.

    Raises:
        UsageError: If the file cannot be run, or its metadata do not say how.
    """
    if not os.path.isfile(path):
        raise UsageError(f'there is no file {path}')
    deployed = Deployed(path, SUFFIXES[Path(path).suffix.lower()], device=device)
    about = deployed.metadata
    if about['task'] == 'features':
        raise UsageError(f'{path} is the backbone of a model alone: its features are no predictions')
    try:
        given: dict = ast.literal_eval(str(about['config']))
    except (KeyError, SyntaxError, ValueError):
        raise UsageError(
            f'{path} does not say how its images are prepared: it was exported by an older version of xcit_mm. Export '
            f'the model again (xcit-mm export)'
        ) from None
    scope = given['default_scope']
    dataset = given['test_dataloader']['dataset']
    steps = dataset['pipeline']
    init_default_scope(scope)
    if about['input'] == 'pixels':  # the graph resizes, and gives answers in the image's own pixels
        pack = dict(type=PACKERS[scope], meta_keys=('img_path', 'ori_shape', 'img_shape'))
        dataset['pipeline'] = [steps[loading_step(steps, scope)], pack]
        kind: type = FromPixels
    else:
        kind = _kind(str(about['task']))
    try:
        model = kind(deployed, ConfigDict(given['model']), scope)
    except KeyError as error:
        raise UsageError(f'{path} needs a module that is not imported: {error.args[0]}') from error
    model.num_classes = len(dataset['metainfo']['palette'])
    return Config(given), model


class ExportedModel(BaseModel):
    """A file in the place of a model of one of the libraries.

    Args:
        deployed (Deployed): The file.
        settings (ConfigDict): 'data_preprocessor', 'test_cfg' and more of the model, as :func:`config_for_file` has it.
        scope (str): Library of the model.
    """

    def __init__(self, deployed: Deployed, settings: ConfigDict, scope: str):
        super().__init__(self._preprocessor(settings, scope))
        self._own(deployed, settings)

    def _own(self, deployed: Deployed, settings: ConfigDict) -> None:
        self.deployed, self.settings, self.test_cfg = deployed, settings, settings.test_cfg
        self.dataset_meta = dict(classes=tuple(deployed.metadata['classes']) or None)
        self.channels = deployed.metadata['channels']

    @staticmethod
    def _preprocessor(settings: ConfigDict, scope: str) -> dict:
        return dict({'type': PREPROCESSORS[scope]}, **settings.data_preprocessor)

    def forward(self, inputs, data_samples: List, mode: str = 'predict') -> List:
        """Images of one size, (B, channels, H, W) or a list -> their data samples, filled."""
        return [self._fill(image, sample) for image, sample in zip(inputs, data_samples)]

    def _fill(self, image: Tensor, sample):
        raise NotImplementedError


class FromPixels(ExportedModel):
    """A file that takes the pixels of an image, of any of the three tasks."""

    @staticmethod
    def _preprocessor(settings: ConfigDict, scope: str) -> dict:
        return dict(type='mmengine.BaseDataPreprocessor')

    def _own(self, deployed: Deployed, settings: ConfigDict) -> None:
        super()._own(deployed, settings)
        # The reader of a tifffile loader gives RGB, all others BGR, and the file takes RGB.
        loading = deployed.metadata['loading']
        self.turns = self.channels == 3 and loading.get('imdecode_backend') != 'tifffile'

    def _fill(self, image: Tensor, sample):
        image = image.flip(0) if self.turns and len(image) == 3 else image
        return fill_sample(sample, self.deployed(np.ascontiguousarray(image.permute(1, 2, 0).numpy())))


class Classifier(ExportedModel):
    """A file that gives logits of normalised images."""

    def forward(self, inputs: Tensor, data_samples: List, mode: str = 'predict') -> List:
        """(B, channels, H, W) -> data samples with ``pred_score``."""
        logits = torch.from_numpy(self.deployed(inputs.numpy())['logits'])
        scores = logits.sigmoid() if self.settings.activation == 'sigmoid' else logits.softmax(-1)
        return [fill_sample(sample, dict(scores=score.numpy())) for sample, score in zip(data_samples, scores)]


class Detector(ExportedModel):
    """A file that gives the detections of a normalised image, in its pixels."""

    @staticmethod
    def _preprocessor(settings: ConfigDict, scope: str) -> dict:
        return dict(ExportedModel._preprocessor(settings, scope), pad_size_divisor=1)  # the graph pads

    def _fill(self, image: Tensor, sample):
        answer = self.deployed(image[None].numpy())
        height, width = sample.ori_shape[:2]
        scale = np.array(sample.metainfo.get('scale_factor', (1.0, 1.0)) * 2, np.float32)
        answer['boxes'] = answer['boxes'] / scale
        if 'masks' in answer and tuple(image.shape[1:]) != (height, width):
            masks = [cv2.resize(mask.astype(np.float32), (width, height)) >= 0.5 for mask in answer['masks']]
            answer['masks'] = np.array(masks, bool).reshape(-1, height, width)
        return fill_sample(sample, answer)


def _kind(task: str) -> type:
    """The class of models of files that take normalised images."""
    if task == 'segmentation':
        from .exported_segmentor import Segmentor

        return Segmentor
    return {'classification': Classifier, 'detection': Detector}[task]
