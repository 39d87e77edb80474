"""Fused kernels are tried before they are used; wrong numbers and errors leave them out, with a warning."""

import warnings

import pytest
import torch
from interpreting import interpreted

pytest.importorskip('triton', minversion='3.0', reason='needs Triton 3, which comes with PyTorch 2.4')
HALF = 'float16'


def outcome(part, dtype, backward, fault=None, wrong=None):
    """What a trial says, and its warnings; in the process of the interpreter."""
    from xcit_mm.ops import fused, trial

    original = fused._run

    def faulty(name, *args, **kwargs):
        if name == wrong and fault == 'error':
            raise RuntimeError('no kernel image is available\nfor execution')
        outs = original(name, *args, **kwargs)
        return [outs[0] * 1.5, *outs[1:]] if name == wrong else outs

    fused._run = faulty
    try:
        trial._KNOWN.clear()
        case = part, torch.device('cpu'), getattr(torch, dtype), 64, backward
        with torch.inference_mode(), warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            passed = [trial.passes(*case), trial.passes(*case)]
        return passed, [str(one.message) for one in found if 'fused kernels' in str(one.message)]
    finally:
        fused._run = original


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize('dtype', ['float32', HALF, 'bfloat16'])
@pytest.mark.parametrize('part', ['xca', 'lpi', 'mlp'])
def test_the_kernels_pass(part, dtype, backward):
    assert interpreted(outcome, part, dtype, backward) == ([True, True], [])


@pytest.mark.parametrize('part, name', [('xca', 'xca'), ('xca', 'token_form'), ('lpi', 'lpi'), ('mlp', 'mlp')])
@pytest.mark.parametrize(
    'fault, words',
    [('numbers', 'is off by'), ('error', 'RuntimeError: no kernel image is available. PyTorch computes')],
)
def test_wrong_numbers_and_errors_are_said_once(part, name, fault, words):
    passed, messages = interpreted(outcome, part, HALF, False, fault, name)
    assert passed == [False, False]
    assert len(messages) == 1 and words in messages[0] and f'kernels of {part} are not used on cpu' in messages[0]
