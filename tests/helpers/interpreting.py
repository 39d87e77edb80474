"""Triton's kernels without a GPU: run by Triton's interpreter, in a process of their own.

The interpreter is chosen by an environment variable when Triton is imported, and the process of the tests may have
imported it for the compiler.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, Callable, List

import torch


def interpreted(function: Callable, *args: Any) -> Any:
    """Call a function of a module that imports no Triton before it is called."""
    return _process(0).submit(function, *args).result()


def interpreted_by_all(function: Callable, processes: int, *args: Any) -> List[Any]:
    """Call it in several processes at once, with the number of the process first."""
    futures = [_process(rank).submit(function, rank, *args) for rank in range(processes)]
    return [future.result() for future in futures]


@lru_cache(maxsize=None)
def _process(rank: int) -> ProcessPoolExecutor:
    before = os.environ.get('TRITON_INTERPRET')
    os.environ['TRITON_INTERPRET'] = '1'
    try:
        pool = ProcessPoolExecutor(1, get_context('spawn'), _prepare)
        pool.submit(int).result()  # starts the process, with this environment
    finally:
        if before is None:
            del os.environ['TRITON_INTERPRET']
        else:
            os.environ['TRITON_INTERPRET'] = before
    return pool


def _prepare() -> None:
    """Round to bf16 as GPUs do, where Triton 3.6's interpreter cuts off, and multiply its values, not their bits."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    torch.set_num_threads(1)
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        values = torch.from_numpy(handle.data.view('int16')).view(torch.bfloat16).float()
        return TensorHandle(values.numpy(), tl.float32)

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar == tl.bfloat16:
            return cast(self, widened(src), dst_type)
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, src, dst_type)
        values = torch.from_numpy(src.data.copy()).bfloat16().view(torch.int16).numpy()
        return TensorHandle(values.view('uint16'), tl.bfloat16)

    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)
