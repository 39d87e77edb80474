"""What the three inferencers share: this package's model names, and checkpoints that have to fit."""

import difflib
from typing import Optional, Tuple

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from ..checkpoint.fit import fit_state_dict
from ..compat import Mixin
from ..errors import UsageError
from ..package import mim_dir, model_index
from ..published import find_weights


def find_model(name: str) -> Optional[Tuple[str, str]]:
    """Config file and address of the weights of a model of this package; None if there is none of that name."""
    weights = find_weights(name)
    return (str(mim_dir() / weights.config), weights.address) if weights else None


def no_model(name: str) -> str:
    """The message for an unknown model name."""
    close = difflib.get_close_matches(name.lower(), model_index(), n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(close)}?' if close else 'see xcit_mm.list_models()'
    return f'there is no model and no config file {name!r}; {hint}'


def dataset_meta(cfg: Config) -> dict:
    """Class names and palette of the data set that a config tests on."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        kind = DATASETS.get(dataset['type']) if 'type' in dataset else None
    return {**getattr(kind, 'METAINFO', {}), **(dataset.get('metainfo') or {})}


class PublishedModels(Mixin):
    """Mixin for the inferencers of MMDetection and MMSegmentation, which know only the models of their own library."""

    def _load_model_from_metafile(self, model: str) -> Tuple[Config, str]:
        found = find_model(model)
        if found:
            return Config.fromfile(found[0]), found[1]
        try:
            return super()._load_model_from_metafile(model)
        except ValueError:
            raise UsageError(no_model(model)) from None

    def _load_weights_to_model(self, model, checkpoint: Optional[dict], cfg) -> None:
        """As the library does, but refuse weights of another model, and fall back to the class names of the config."""
        if checkpoint is not None:
            fit_state_dict(model, checkpoint.get('state_dict', checkpoint), 'test')
        super()._load_weights_to_model(model, checkpoint, cfg)
        meta = (checkpoint or {}).get('meta') or {}
        if 'dataset_meta' not in meta and 'CLASSES' not in meta:
            ours = dataset_meta(cfg)
            if ours.get('classes'):
                model.dataset_meta = {'classes': ours['classes'], 'palette': ours.get('palette')}
