"""Are the Triton kernels right on this GPU, and are they faster than PyTorch's own, eager and compiled?"""

from functools import partial
from typing import Callable, Iterator, List, Sequence, Tuple

import torch
from torch import Tensor

from ...models.xcit import ARCHS
from ...ops.triton import available
from ..kernels import PARTS, Case, compare, fused, plain, predicted
from ..settings import DTYPES
from .plan import Plan, record

# Batch, rows and columns of tokens: odd sizes, one row, one column; and those of a detector's image.
SIZES = (3, 11, 19), (1, 1, 37), (2, 33, 1), (1, 100, 152)
# Limit on the error over that of PyTorch's own operators, or over half a rounding step where that is more.
LIMIT = 2.0


def _types(plan: Plan) -> List[Tuple[torch.dtype, torch.dtype]]:
    """Dtypes of the tokens and of the matmuls: fp32, half precision, and autocast."""
    half = [DTYPES[dtype] for dtype in plan.dtypes]
    return [(torch.float32,) * 2, *((dtype, dtype) for dtype in half), (torch.float32, half[0])]


def _channels(plan: Plan) -> int:
    return ARCHS[plan.arch]['embed_dims']


def differences(plan: Plan) -> Iterator[dict]:
    """Errors against fp64 over those of PyTorch's own operators in the same dtype; the worst tensor of each part."""
    if not available(torch.empty(0, device=plan.device)):
        yield record('Triton and a GPU of compute capability 8.0', 0.0, 0.0)
        return
    for part in PARTS:
        for stream, dtype in _types(plan):
            least = 5e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
            worst = 0.0
            for batch, height, width in SIZES:
                case = Case(part, batch, height, width, _channels(plan), dtype, stream, batch > 1, plan.device)
                for error in compare(case).values():
                    # NaN counts as the worst.
                    worst = max(worst, error.fused / max(error.plain, least / LIMIT), key=lambda v: (v != v, v))
            yield record(f'{part}, tokens {_name(stream)}, matmuls {_name(dtype)}', worst, LIMIT)


def times(plan: Plan) -> Iterator[dict]:
    """Seconds of the kernels, of PyTorch's own operators and of those compiled, and the prediction for an H100."""
    if not available(torch.empty(0, device=plan.device)):
        return
    half = DTYPES[plan.dtypes[0]]
    rows, columns = (side // 8 for side in plan.large)
    small = (plan.batch, *(side // 8 for side in plan.small))
    for (batch, height, width), backward in (((1, rows, columns), False), (small, False), ((2, rows, columns), True)):
        for part in PARTS:
            if (part == 'lpi') != backward and part.startswith('lpi'):
                continue  # inference has frozen statistics, training those of the batch
            stream = torch.float32 if backward else half
            case = Case(part, batch, height, width, _channels(plan), half, stream, False, plan.device)
            yield _times(case, backward)
            torch._dynamo.reset()


def _times(case: Case, backward: bool) -> dict:
    from triton.testing import do_bench, do_bench_cudagraph

    tensors = case.tensors()
    if backward:
        tensors = [t.requires_grad_() for t in tensors]
    by_pytorch = partial(plain, case, tensors, case.dtype)
    contenders = {
        'seconds': partial(fused, case, tensors),
        'plain': by_pytorch,
        'compiled': partial(torch.compile(plain, dynamic=False), case, tensors, case.dtype),
    }
    moved, expected = predicted(case, backward)
    found = dict(
        part=case.part,
        tokens=f'{case.batch} x {case.height} x {case.width}',
        mode='training' if backward else 'inference',
        bytes=moved,
        predicted=expected,
    )
    for name, function in contenders.items():
        if backward:
            found[name] = do_bench(partial(_step, function, tensors)) / 1e3
        else:
            with torch.no_grad():
                function()
                found[name] = do_bench_cudagraph(function) / 1e3
    return found


def _step(function: Callable[[], Tuple[Tensor, ...]], tensors: Sequence[Tensor]) -> None:
    outs = function()
    torch.autograd.grad(outs, tensors, [torch.ones_like(out) for out in outs])


def _name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)
