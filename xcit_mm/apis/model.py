"""Build a model from a name, or from a config and a checkpoint, with the checks that training has."""

import copy
import os
from pathlib import Path
from typing import Optional, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from ..checkpoint import is_address
from ..checkpoint.fit import fit_state_dict
from ..checks.classes import check_checkpoint_classes
from ..checks.config import apply_options, check_config
from ..compat import load_to_model
from ..engine.setup import read_config
from ..errors import UsageError
from ..package import warn_of_mixed_packages
from .names import dataset_meta, find_model, no_model
from .quiet import quiet

Model = Union[str, Path, Config]


def choose(model: Model, checkpoint: Union[str, Path, None], options: Optional[dict] = None) -> Tuple[Config, str]:
    """The checked config, and the checkpoint that goes with it.

    Args:
        model: A config, a config file, or a name of :func:`xcit_mm.list_models`.
        checkpoint: File or address of the weights; the published ones of a name if not given.
        options (dict, optional): Settings of the config to change.

    Raises:
        UsageError: If there is no such model or file, or the config is wrong.
    """
    warn_of_mixed_packages()
    published = None
    if isinstance(model, Config):
        cfg, name = copy.deepcopy(model), model.filename or 'the config'
    else:
        name = os.fspath(model)
        found = find_model(name)
        if not found and not os.path.isfile(name):
            raise UsageError(no_model(name))
        config, published = found or (name, None)
        cfg = read_config(Path(config))
    apply_options(cfg, options)
    check_config(cfg)
    checkpoint = os.fspath(checkpoint) if checkpoint else published
    if not checkpoint:
        raise UsageError(f'{name} needs the checkpoint of a trained model')
    if not is_address(checkpoint) and not os.path.isfile(os.path.expanduser(checkpoint)):
        raise UsageError(f'there is no checkpoint file {checkpoint}')
    return cfg, checkpoint


def build(cfg: Config, checkpoint: str, device: Union[str, torch.device] = 'cpu') -> nn.Module:
    """The whole model with its weights, in eval mode, with ``dataset_meta`` of the checkpoint or else of the config.

    Raises:
        UsageError: If the model cannot be built, or the device cannot be used.
        CheckpointError: If the checkpoint is that of another model.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    settings = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    with quiet():
        try:
            model = MODELS.build(settings)
        except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f'the model of the config cannot be built: {type(error).__name__}: {error}') from error
        loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
        fit_state_dict(model, loaded.get('state_dict', loaded), 'test')
        load_to_model(model, loaded)
    check_checkpoint_classes(loaded.get('meta'), dataset_meta(cfg).get('classes'), 'test')
    model.dataset_meta = meta_of(cfg, loaded)
    model = revert_sync_batchnorm(model).eval()
    try:
        return model.to(device)
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f'the device {device} cannot be used: {str(error).splitlines()[0]}') from None


def meta_of(cfg: Config, checkpoint: dict) -> dict:
    """'classes', those of a checkpoint or else of the config's data set; None if neither names them."""
    meta = checkpoint.get('meta') or {}
    theirs = {key.lower(): value for key, value in (meta.get('dataset_meta') or {}).items()}
    classes = theirs.get('classes') or meta.get('CLASSES') or dataset_meta(cfg).get('classes')
    return {'classes': None if classes is None else tuple(classes)}
