"""Shared helpers. Everything runs on the CPU with the real libraries."""

import logging
import os
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure():
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 2)))
    # MMEngine lists the start value of every single parameter at level INFO.
    MMLogger.get_instance('mmengine').setLevel(logging.ERROR)


@pytest.fixture(scope='module')
def one_thread():
    """For models so small that they lose more by waiting for a second thread than it gives them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(**kwargs):
    """An XCiT backbone built as a config builds it, from its registry name alone."""
    return MODELS.build(dict(type='xcit_mm.XCiT', **kwargs))


def deviation(ours, theirs):
    """Largest difference relative to the reference's largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def without_start_values(build_model):
    """A model whose weights are still to be set: the start values of large archs take longer than the tests."""
    with torch.device('meta'):
        model = build_model()
    return model.to_empty(device='cpu')


def randomise(model, seed=0):
    """Random weights for all parameters and statistics, so that no term of the model hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                spread = 0.3 if tensor.dim() < 2 else 2 / tensor[0].numel() ** 0.5
                centre = 1.0 if tensor.dim() < 2 and name.endswith(('weight', 'temperature')) else 0.0
                tensor.normal_(0, spread, generator=generator).add_(centre)
    model.eval()  # MMPretrain's returns nothing
    return model


@pytest.fixture
def tiny():
    """A small arch with all parts, for tests that need no published size."""
    return dict(embed_dims=32, depth=4, num_heads=4)


def official_names(state):
    """A backbone's tensors under the names of the original release (without prefix)."""
    pairs = (('pos_embed.', 'pos_embeder.'), ('.lpi.', '.local_mp.'), ('pyramid.fpn', 'fpn'))
    renamed = {}
    for key, value in state.items():
        for ours, theirs in pairs:
            key = key.replace(ours, theirs)
        renamed[key] = value
    return renamed
