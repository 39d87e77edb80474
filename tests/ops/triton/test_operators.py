"""Whether and how a model takes the kernels: the rule, the compiler, and a machine without them."""

import subprocess
import sys

import pytest
import torch
from interpreting import interpreted

from xcit_mm.benchmark.kernels import BN_EPS, EPS, PARTS, Case
from xcit_mm.ops import triton as kernels


def test_a_cpu_and_a_machine_without_triton_have_none():
    x = torch.zeros(1, 4, 8)
    assert not kernels.available(x) and not any(kernels.suits(part, x, x.dtype) for part in ('lpi', 'xca', 'mlp'))
    program = (
        'import sys; sys.modules["triton"] = None\n'
        'import torch; from xcit_mm.ops import triton as kernels\n'
        'print(kernels.available(torch.zeros(1, 4, 8)), kernels._runs_on(torch.device("cuda", 0)))'
    )
    out = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout
    assert out.split() == ['False', 'False']


def test_rule(monkeypatch):
    monkeypatch.setattr(kernels, 'available', lambda x: True)
    half, single = torch.bfloat16, torch.float32
    x = torch.zeros(1, 4, 8)
    assert kernels.suits('lpi', x, single) and kernels.suits('lpi', x, half)
    assert kernels.suits('xca', x, half) and kernels.suits('mlp', x.half(), torch.float16)
    assert not kernels.suits('xca', x, single), 'cuBLAS is faster in fp32'
    assert not kernels.suits('lpi', x.double(), torch.float64)
    assert not kernels.suits('lpi', x[:0], half) and not kernels.suits('lpi', x[..., :6], half)


def arguments(part, keeps):
    """The name of a part's operator, and what it takes."""
    case = Case(part, 2, 2, 3, 16, torch.bfloat16 if 'token' in part else torch.float32, keep=True, device='cpu')
    x, *weights = (t.requires_grad_(keeps) for t in case.tensors())
    others = case.factors(), EPS, case.dtype, keeps
    if part.startswith('lpi'):
        return 'lpi', (x, weights, *others, case.height, BN_EPS, *case.statistics())
    return ('token_form' if 'token' in part else part), (x, weights, *others)


def compiled_and_exported():
    from xcit_mm.ops.triton import operators  # noqa: F401 (registers them)

    (_, (x, *mlp)), (_, (_, *xca)) = (arguments(part, False) for part in ('mlp', 'xca'))

    class Block(torch.nn.Module):
        def forward(self, x):
            x = torch.ops.xcit_mm_triton.mlp(x + 1, *mlp)[0]
            return torch.ops.xcit_mm_triton.xca(x, *xca)[0]

    block = Block()
    eager = block(x)
    program = torch.export.export(block, (x,)).module()
    return eager, torch.compile(block, fullgraph=True, backend='aot_eager')(x), program(x)


def test_compiler_and_export_see_operators():
    eager, compiled, exported = interpreted(compiled_and_exported)
    assert torch.equal(eager, compiled) and torch.equal(eager, exported)


def checks_of_pytorch(part):
    """Schemas, promised shapes and types, aliases and gradients of a part's operators."""
    from xcit_mm.ops.triton import operators

    found = []
    for keeps in (True, False):
        name, given = arguments(part, keeps)
        found.append(torch.library.opcheck(getattr(torch.ops.xcit_mm_triton, name).default, given))
    name, (x, weights, *others) = arguments(part, True)
    with torch.no_grad():
        out, *kept = operators.BRANCHES[name].forward(x, weights, *others)
        given = torch.randn_like(out), kept, x.detach(), [weight.detach() for weight in weights], *others
        found.append(torch.library.opcheck(getattr(torch.ops.xcit_mm_triton, f'{name}_backward').default, given))
    return found


@pytest.mark.parametrize(
    'part', ['xca', 'lpi', 'mlp', *(pytest.param(part, marks=pytest.mark.slow) for part in PARTS if ',' in part)]
)
def test_operators_keep_their_promises(part):
    results = interpreted(checks_of_pytorch, part)
    assert len(results) == 3 and all(set(result.values()) == {'SUCCESS'} for result in results)
