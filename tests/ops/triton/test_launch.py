"""What the kernels need of a GPU that is not there, from Triton's compiler; and the rules for tiles."""

import os

import pytest
import torch

from xcit_mm.benchmark.kernels import PARTS, Case, fused
from xcit_mm.ops.triton.launch import SHARED_MEMORY, norm_chunks, strip

pytestmark = pytest.mark.skipif('TRITON_INTERPRET' in os.environ, reason='the interpreter compiles nothing')
SINGLE, HALF = torch.float32, torch.bfloat16


def forward_and_backward(case):
    leaves = [t.requires_grad_() for t in case.tensors()]
    outs = fused(case, leaves)
    torch.autograd.backward(outs, [torch.zeros_like(out) for out in outs])


def check(function, case, capability):
    from ahead_of_time import launches, resources

    found = launches(function, case)
    assert found
    for launch in found:
        needed = resources(launch, capability)
        assert needed.stack == 0, f'{launch.key} spills: {needed}'
        assert needed.registers * 32 * launch.options.get('num_warps', 4) <= 65536
        assert needed.shared <= SHARED_MEMORY


@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('part', ['lpi, frozen statistics', 'xca', 'xca, token form', 'mlp'])
def test_inference_of_s12_fits_the_registers(part, capability):
    check(
        lambda case: fused(case, case.tensors()),
        Case(part, 1, 100, 152, 384, HALF, HALF, False, 'meta'),
        capability,
    )


@pytest.mark.slow
@pytest.mark.parametrize('stream, dtype', [(SINGLE, HALF), (HALF, HALF), (torch.float16,) * 2, (SINGLE, SINGLE)])
@pytest.mark.parametrize('channels', [128, 192, 384, 512, 768])
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('part', PARTS)
def test_training_of_every_arch_fits_the_registers(part, capability, channels, stream, dtype):
    if dtype == SINGLE and not part.startswith('lpi'):
        pytest.skip('the rule takes no matmul in fp32, where cuBLAS is faster')
    check(forward_and_backward, Case(part, 2, 100, 152, channels, dtype, stream, True, 'meta'), capability)


def embed(width, steps, stream, dtype):
    from xcit_mm.ops.triton.stem import embed_patches

    def empty(*size, dtype=stream):
        return torch.empty(*size, dtype=dtype, device='meta')

    widths = [3, *(width >> i for i in range(steps - 1, -1, -1))]
    weights = [empty(D, C, 3, 3) for C, D in zip(widths, widths[1:])]
    norms = [empty(D, dtype=SINGLE) for D in widths[1:] for _ in range(4)]
    embed_patches(empty(1, 3, 800, 1216), weights, norms, [1e-5] * steps, dtype)


@pytest.mark.parametrize('capability', [80, 90])
def test_patch_embedding_of_s12_fits_the_registers(capability):
    check(lambda width: embed(width, 3, HALF, HALF), 384, capability)


@pytest.mark.slow
@pytest.mark.parametrize('stream, dtype', [(SINGLE, HALF), (HALF, HALF), (torch.float16,) * 2])
@pytest.mark.parametrize('width', [128, 192, 384, 512, 768])
@pytest.mark.parametrize('steps', [3, 4])
@pytest.mark.parametrize('capability', [80, 90])
def test_patch_embedding_of_every_arch_fits_the_registers(capability, steps, width, stream, dtype):
    check(lambda width: embed(width, steps, stream, dtype), width, capability)


def test_strips_are_long_only_where_there_are_enough():
    assert strip(1, 100, 152, 384, 8) == 16
    assert strip(256, 28, 28, 384, 8) == 32, 'one strip for each image'
    assert strip(1, 1, 1, 128, 8) == 8


def test_chunks_of_a_norm_fill_a_gpu():
    assert norm_chunks(1, 15200, 4) == 950
    assert norm_chunks(256, 784, 4) == 8
    assert norm_chunks(1, 5, 4) == 1
