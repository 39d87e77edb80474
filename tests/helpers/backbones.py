"""Backbones for tests: built by name, with random weights, compared."""

from itertools import product

import pytest
import torch
from mmengine.registry import MODELS

from xcit_mm.published import RELEASED_ARCHS

# Arch and patch size of each published model. The widest take five to ten seconds a test, and differ from the others in
# their widths alone; S24 is as wide as S12 and as deep as T24; T24 with patches of 8 differs from that of 16 in them.
SLOW_ONES = [('t24', 8), *product(('s24', 'm24', 'l24'), (16, 8))]
PUBLISHED = [
    pytest.param(*model, marks=pytest.mark.slow if model in SLOW_ONES else [])
    for model in product(RELEASED_ARCHS, (16, 8))
]


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


def official_names(state):
    """A backbone's tensors under the names of the original release (without prefix)."""
    pairs = (('pos_embed.', 'pos_embeder.'), ('.lpi.', '.local_mp.'), ('pyramid.fpn', 'fpn'))
    renamed = {}
    for key, value in state.items():
        for ours, theirs in pairs:
            key = key.replace(ours, theirs)
        renamed[key] = value
    return renamed
