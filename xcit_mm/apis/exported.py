"""Exported files in the place of a config and a checkpoint: the same images in, the same data samples out.

The file holds the network. What surrounds it in the libraries is its 'config' in the metadata: how images are read,
resized and normalised, classes and colours, and the settings of the test. :class:`~xcit_mm.apis.Inferencer` uses both
as it uses a config and a PyTorch model; the latter is never built.
"""

import ast
import inspect
import os
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from ..datasets.reading import loading_step, loads_annotations, preprocessor_of, test_pipeline
from ..errors import UsageError
from ..visualization.colours import colours_of, palette_of
from .deployed import Deployed
from .exported_models import Classifier, Detector, ExportedModel, FromPixels

SUFFIXES = {'.onnx': 'onnxruntime', '.xml': 'openvino'}
PACKERS = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs', 'mmpretrain': 'PackInputs'}


def is_exported(model: Any) -> bool:
    """Whether a model is given as the path of an exported file."""
    return isinstance(model, (str, Path)) and Path(model).suffix.lower() in SUFFIXES


def config_for_file(cfg: Config, model: Any) -> str:
    """The parts of a config that surround the network, for the metadata of a file.

    Args:
        cfg (Config): The config that the model was built from.
        model (nn.Module): The model of the library, with ``dataset_meta``.

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


def open_exported(path: Union[str, Path], device: Optional[str] = None) -> Tuple[Config, ExportedModel]:
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


def _kind(task: str) -> type:
    """The class of models of files that take normalised images."""
    if task == 'segmentation':
        from .exported_segmentor import Segmentor

        return Segmentor
    return {'classification': Classifier, 'detection': Detector}[task]
