"""Runs in mixed precision, as the published recipes for detection, classification and DINO are on a GPU.

MMEngine's wrapper wants a GPU; here it is the same wrapper with PyTorch's autocast and loss scaling for the CPU, in
bf16: in fp16 the losses of the libraries sum in fp16 on a CPU, which they do not on a GPU.
"""

import copy
from contextlib import contextmanager

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from small_runs import small_cfg, train

pytestmark = [
    pytest.mark.usefixtures('one_thread', 'covariance_of_few_tokens'),
    pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='PyTorch 2.3 is the first with it for the CPU'),
]


@OPTIM_WRAPPERS.register_module(force=True)
class AutocastOnCPU(AmpOptimWrapper):
    """MMEngine's mixed precision on the CPU."""

    def __init__(self, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
        self.cast_dtype, self._scale_update_param = torch.bfloat16, None

    @contextmanager
    def optim_context(self, model):
        detects = hasattr(model, 'roi_head')
        with OptimWrapper.optim_context(self, model), torch.autocast('cpu', self.cast_dtype, enabled=not detects):
            yield


class HalfFeatures(Hook):
    """Autocast for a detector's backbone and neck: MMCV's operators for CPUs know no bf16."""

    def before_train(self, runner):
        extract = runner.model.extract_feat

        def extract_feat(images):
            with torch.autocast('cpu', torch.bfloat16):
                return tuple(map(torch.Tensor.float, extract(images)))

        runner.model.extract_feat = extract_feat


class Losses(Hook):
    """The sum of the losses of every iteration, from the same weights and the same draws."""

    def __init__(self):
        self.values = []

    def before_train(self, runner):
        torch.manual_seed(0)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values.append(float(outputs['loss']))


def losses(cfg, mixed):
    """Of a run of this config."""
    cfg = copy.deepcopy(cfg)
    cfg.optim_wrapper.pop('loss_scale', None)
    cfg.optim_wrapper.update(type='AutocastOnCPU' if mixed else 'OptimWrapper', _scope_='mmengine')
    cfg.experiment_name += '_mixed' if mixed else '_fp32'
    found = Losses()
    runner = train(cfg, found, *([HalfFeatures()] if mixed and 'roi_head' in cfg.model else []))
    assert all(p.isfinite().all() for p in runner.model.parameters())
    return found.values


@pytest.mark.parametrize(
    'kind', ['classifier', 'detector', 'semantic_fpn', pytest.param('upernet', marks=pytest.mark.slow)]
)
def test_every_library_trains_with_stochastic_depth(kind, small_models, small_digits, tmp_path):
    cfg = small_cfg(small_models, kind, small_digits, tmp_path / 'run')
    cfg.model.backbone.drop_path_rate = 0.3
    length = dict(max_iters=2) if 'max_iters' in cfg.train_cfg else dict(max_epochs=1)
    cfg.train_cfg.update(val_interval=100, **length)
    cfg.train_dataloader.dataset.indices = 8
    exact, mixed = losses(cfg, mixed=False), losses(cfg, mixed=True)
    assert len(mixed) == len(exact) == 2
    # A detector samples proposals by their scores, and rounding changes the order of these.
    assert mixed == pytest.approx(exact, rel=0.2 if kind == 'detector' else 0.05)
