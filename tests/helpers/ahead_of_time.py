"""Triton's kernels compiled for GPUs that are not there: what a function would launch, and what that needs of one."""

import inspect
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

NAMES = {torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16'}


class Launch(NamedTuple):
    """A kernel as Triton would specialise it.

    Attributes:
        signature (dict): Types of its arguments, 'constexpr' for those that are compiled in.
        constants (dict): Those.
        divisible (tuple): Names of the others that are multiples of 16.
        options (dict): Warps and stages.
    """

    kernel: JITFunction
    signature: Dict[str, str]
    constants: Dict[str, Any]
    divisible: tuple
    options: Dict[str, int]

    @property
    def key(self) -> str:
        parts = self.signature, self.constants, self.divisible, self.options
        return f'{self.kernel.fn.__module__}.{self.kernel.fn.__name__} {parts}'


class Resources(NamedTuple):
    registers: int  # of a thread
    stack: int  # bytes of a thread in local memory: spilled registers
    shared: int  # bytes of a program


def launches(function: Callable, *args: Any) -> List[Launch]:
    """The different kernels that a function would launch; with meta tensors it computes nothing."""
    found: Dict[str, Launch] = {}

    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        launch = _specialised(kernel, arguments, settings)
        found[launch.key] = launch

    with mock.patch.object(JITFunction, 'run', run):
        function(*args)
    return list(found.values())


def _specialised(kernel: JITFunction, arguments: tuple, settings: Dict[str, Any]) -> Launch:
    names = inspect.signature(kernel.fn).parameters
    options = {name: value for name, value in settings.items() if name not in names}
    bound = inspect.signature(kernel.fn).bind(*arguments, **{k: v for k, v in settings.items() if k in names})
    signature, constants, divisible = {}, {}, []
    for parameter, value in zip(kernel.params, bound.arguments.values()):
        name = parameter.name
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = 'constexpr', value
        elif isinstance(value, Tensor):
            signature[name] = NAMES[value.dtype]
            divisible.append(name)  # as PyTorch allocates
        elif isinstance(value, float):
            signature[name] = 'fp32'
        else:
            signature[name] = 'i32' if abs(value) < 2**31 else 'i64'
            if value % 16 == 0 and not parameter.do_not_specialize:
                divisible.append(name)
    return Launch(kernel, signature, constants, tuple(divisible), options)


def resources(launch: Launch, capability: int) -> Resources:
    """Compile for a compute capability, such as 80 or 90."""
    place = launch.kernel.arg_names.index
    constants = {(place(name),): value for name, value in launch.constants.items()}
    attributes = {(place(name),): [['tt.divisibility', 16]] for name in launch.divisible}
    source = ASTSource(launch.kernel, launch.signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / 'kernel.cubin'
        cubin.write_bytes(compiled.asm['cubin'])
        tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
        usage = subprocess.run([str(tool), '-res-usage', str(cubin)], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf'{name}:(\d+)', usage)[1]) for name in ('REG', 'STACK'))
    return Resources(registers, stack, compiled.metadata.shared)
