"""MMPretrain's inferencer with this package's model names."""

from typing import List, Optional, Union

import mmpretrain.apis
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from mmpretrain.apis.model import ModelHub

from ..checkpoint.fit import fit_state_dict
from ..compat import load_to_model
from ..datasets.reading import model_input
from ..errors import UsageError
from ..package import mim_dir, model_index
from .names import dataset_meta, find_model, no_model


def register_models() -> None:
    """Tell MMPretrain this package's models, so that ``mmpretrain.get_model`` and its inferencers know them."""
    if not ModelHub.has(next(iter(model_index()))):
        ModelHub.register_model_index(mim_dir() / 'model-index.yml', config_prefix=mim_dir())


class ImageClassificationInferencer(mmpretrain.apis.ImageClassificationInferencer):
    """:class:`mmpretrain.ImageClassificationInferencer` that also takes the names of :func:`xcit_mm.list_models`.

    ``ImageClassificationInferencer('xcit_s12_16_in1k')`` downloads the published weights.

    Args:
        model: A name, a config file, a config or a model.
        pretrained (str | bool): The checkpoint; True takes the published one of a name.
        device: Where the model goes.
        **kwargs: As for MMPretrain's.

    Raises:
        UsageError: If there is no such model.
        CheckpointError: If ``pretrained`` belongs to another model; MMPretrain would load the part that fits.
    """

    def __init__(
        self, model, pretrained: Union[bool, str] = True, device: Union[str, torch.device, None] = None, **kwargs
    ):
        register_models()
        init_default_scope('mmpretrain')  # MMPretrain's own keeps the scope that was used last
        if isinstance(model, str) and not model.endswith('.py'):
            try:
                info = ModelHub.get(model)
                found: Optional[tuple] = (info.config, info.weights)
            except ValueError:
                found = find_model(model)
            if not found:
                raise UsageError(no_model(model))
            model, published = found
            pretrained = published if pretrained is True else pretrained
        if isinstance(model, (str, Config)):
            model = mmpretrain.apis.get_model(model, False)
            model._dataset_meta = dataset_meta(model._config)
        if isinstance(pretrained, str):
            load_weights(model, pretrained)
        super().__init__(model, pretrained=False, device=device, **kwargs)
        self._reader = model_input(self.config).reader

    def preprocess(self, inputs: List, batch_size: int = 1):
        """As in MMPretrain, but files are read as the config says; MMPretrain reads all as 8-bit colour."""
        read = Compose([self._reader.read, self._reader.rest])
        yield from map(default_collate, self._get_chunk_data(map(read, inputs), batch_size))


def load_weights(model, path: str) -> None:
    """Load the weights of a whole classifier, and its class names if the file has them."""
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    fit_state_dict(model, checkpoint.get('state_dict', checkpoint), 'test')
    load_to_model(model, checkpoint)
    meta = checkpoint.get('meta') or {}
    if 'dataset_meta' in meta:
        model._dataset_meta = meta['dataset_meta']
    elif meta.get('CLASSES'):
        model._dataset_meta = {'classes': meta['CLASSES']}
