"""Whether and how a model takes the kernels: the rule, the compiler, and a machine without them."""

import subprocess
import sys

import torch
from interpreting import interpreted

from xcit_mm.benchmark.kernels import EPS, Case
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


def compiled_and_exported():
    from xcit_mm.ops.triton import operators  # noqa: F401 (registers them)

    x, weight, bias, w1, b1, w2, b2, gamma = Case('mlp', 2, 2, 3, 8, device='cpu').tensors()
    weights = Case('xca', 2, 2, 3, 8, device='cpu').tensors()[3:]

    class Block(torch.nn.Module):
        def forward(self, x):
            x = torch.ops.xcit_mm_triton.add_mlp(x + 1, weight, bias, EPS, w1, b1, w2, b2, gamma, None, None)
            return torch.ops.xcit_mm_triton.add_xca(x, weight, bias, EPS, *weights, None, None)

    block = Block()
    eager = block(x)
    program = torch.export.export(block, (x,)).module()
    return eager, torch.compile(block, fullgraph=True, backend='aot_eager')(x), program(x)


def test_compiler_and_export_see_operators():
    eager, compiled, exported = interpreted(compiled_and_exported)
    assert torch.equal(eager, compiled) and torch.equal(eager, exported)


def shapes_promised_and_returned():
    from xcit_mm.ops.triton import operators  # noqa: F401

    found = []
    for part in ('xca', 'xca, token form', 'mlp', 'lpi, frozen statistics'):
        case = Case(part, 1, 2, 3, 8, device='cpu')
        x, weight, bias, *arguments = case.tensors()
        if part.startswith('lpi'):
            arguments = (*arguments[:4], *case.statistics(), 1e-5, *arguments[4:], 2)
        name = 'add_token_form' if part == 'xca, token form' else f'add_{part.split(",")[0]}'
        operator = getattr(torch.ops.xcit_mm_triton, name).default
        utils = ('test_schema', 'test_faketensor')
        found.append(torch.library.opcheck(operator, (x, weight, bias, EPS, *arguments), test_utils=utils))
    return found


def test_operators_return_what_they_promise():
    results = interpreted(shapes_promised_and_returned)
    assert len(results) == 4 and all(set(result.values()) == {'SUCCESS'} for result in results)
