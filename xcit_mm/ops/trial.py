"""Whether the fused kernels give the reference's numbers on a device: tried once before they are used.

They are tested in Triton's interpreter and compiled ahead of time, which says nothing of a device, or a release of
Triton, that nobody tried. A wrong result would be silent; this makes it a warning, and the kernels stay out.
"""

import logging
import warnings
from itertools import product
from types import SimpleNamespace
from typing import Callable, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from . import fused, reference
from .private import HAS_CUSTOM_OPS, is_compiling
from .stem import folded
from .triton import LARGEST_HEAD, suits

BATCH, GRID = 3, (7, 9)
LEAST_HEADS = 4
# Names of the kernels of each part: which form of XCA is taken depends on the number of tokens.
FORMS = dict(xca=('xca', 'token_form'))
IMAGE = (37, 50)  # of the patch embedding: odd and even
# Largest difference over largest value; of a half type, that of its rounding.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_KNOWN: Dict[tuple, bool] = {}


def is_faster(part: str, x: Tensor, dtype: torch.dtype, widths: Optional[Tuple[int, ...]] = None) -> bool:
    """True if the kernels of a part, 'xca', 'lpi', 'mlp' or 'stem', are to be taken.

    Args:
        x (Tensor): Tokens (B, N, C); or, for 'stem', images (B, C, H, W).
        dtype (torch.dtype): Of matmuls.
        widths (tuple[int], optional): Of 'stem': channels of the image and of the output of each layer.
    """
    if is_compiling() and not HAS_CUSTOM_OPS:
        return False
    return suits(part, x, dtype) and passes(part, x.device, dtype, widths or x.shape[-1], torch.is_grad_enabled())


@torch.compiler.assume_constant_result
def passes(
    part: str, device: torch.device, dtype: torch.dtype, channels: Union[int, Tuple[int, ...]], backward: bool
) -> bool:
    """True if a part's kernels agree with the reference, for tokens or layers of this many channels.

    Nothing is tried while a CUDA graph is captured: what is not known to pass is not used there.

    Args:
        part (str): 'xca', 'lpi', 'mlp' or 'stem'.
        dtype (torch.dtype): Of matmuls; the tokens are tried in it and in fp32, as autocast leaves them.
        channels (int | tuple[int]): C, a multiple of 8; the widths of 'stem'.
        backward (bool): With the gradients of the tokens and of LayerScale.
    """
    case = part, device, dtype, channels, backward
    if case not in _KNOWN:
        if device.type == 'cuda' and torch.cuda.is_current_stream_capturing():
            return False
        problem = _problem(*case)
        _KNOWN[case] = not problem
        if problem:
            part = 'the patch embedding' if part == 'stem' else part
            warnings.warn(
                f'the fused kernels of {part} are not used on {device} in {dtype} with {channels} channels: {problem}. '
                'PyTorch computes instead. tools/gpu_check.py says more; please report what it writes',
                stacklevel=2,
            )
    return _KNOWN[case]


def _problem(
    part: str, device: torch.device, dtype: torch.dtype, channels: Union[int, Tuple[int, ...]], backward: bool
) -> str:
    """What is wrong, or nothing."""
    try:
        from .triton import operators  # noqa: F401  which torch.compile will call

        # Whatever holds outside: inference mode, autocast, random numbers.
        with torch.inference_mode(False), torch.set_grad_enabled(backward), torch.autocast(device.type, enabled=False):
            for form, stream in product(FORMS.get(part, (part,)), {torch.float32, dtype}):
                if isinstance(channels, tuple):
                    difference = _difference_of_stem(device, dtype, stream, channels)
                else:
                    difference = _difference(form, device, dtype, stream, channels, backward)
                if not difference < TOLERANCE[dtype]:
                    return f'their output is off by {difference:.1e} of its largest value'
    except Exception as error:  # of the compiler, the driver or the device
        logging.getLogger(__name__).debug('fused kernels', exc_info=True)
        return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else "no message"}'
    return ''


def _difference(
    form: str, device: torch.device, dtype: torch.dtype, stream: torch.dtype, channels: int, backward: bool
) -> float:
    """Of output and gradients from the reference in fp64 (which knows no tf32), the largest over the largest value."""
    randn = _random(stream, device)
    run, exact = _cases(form, channels, dtype, randn, backward)
    x = randn(BATCH, GRID[0] * GRID[1], channels)
    gamma, keep = randn(channels, around=1.0), torch.tensor([0.0, 1.25, 1.25], device=device).view(BATCH, 1, 1)
    weight = torch.linspace(-1, 1, x.numel(), device=device).view_as(x)
    results = []
    for function, kind in ((run, stream), (exact, torch.float64)):
        leaves = [t.detach().to(kind).requires_grad_(backward) for t in (x, gamma)]
        out = function(leaves[0], leaves[1], keep.to(kind) if backward else None)
        grads = torch.autograd.grad((out.double() * weight).sum(), leaves) if backward else ()
        results.append([t.detach().double() for t in (out, *grads)])
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results))


def _difference_of_stem(
    device: torch.device, dtype: torch.dtype, stream: torch.dtype, widths: Tuple[int, ...]
) -> float:
    """The same of the patch embedding's output, for images and weights in the type of ``stream``."""
    randn = _random(stream, device)
    image = randn(2, widths[0], *IMAGE)
    tensors = [
        (randn(D, C, 3, 3) * 2 * (9 * C) ** -0.5, randn(D, around=1.0), randn(D), randn(D), randn(D).abs() + 0.5)
        for C, D in zip(widths, widths[1:])
    ]

    def layers(kind: torch.dtype) -> List[Tuple[SimpleNamespace, SimpleNamespace]]:
        """Not modules, whose weights would be drawn from the random numbers that hold outside."""
        found = []
        for values in tensors:
            weight, factor, offset, mean, var = (t.to(kind) for t in values)
            bn = SimpleNamespace(weight=factor, bias=offset, running_mean=mean, running_var=var, eps=1e-5)
            found.append((SimpleNamespace(weight=weight), bn))
        return found

    found = fused.embed_patches(image, layers(stream), dtype).double()
    weights, biases = zip(*(folded(*layer) for layer in layers(torch.float64)))
    exact = reference.embed_patches(image.double(), weights, biases)
    return ((found - exact).abs().max() / exact.abs().max()).item()


def _random(dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
    """Seeded normal values of deviation 0.5."""
    generator = torch.Generator('cpu').manual_seed(0)

    def randn(*shape: int, around: float = 0.0) -> Tensor:
        values = around + 0.5 * torch.randn(*shape, generator=generator, device='cpu')
        return values.to(dtype).to(device)

    return randn


def _cases(
    form: str, C: int, dtype: torch.dtype, randn: Callable[..., Tensor], training: bool
) -> Tuple[Callable, Callable]:
    """A part by the kernels, and by the reference in fp64: functions of x, gamma and keep."""
    norm = randn(C, around=1.0), randn(C), 1e-6
    plain_norm = norm[0].double(), norm[1].double(), norm[2]
    if form == 'lpi':
        conv1, conv2 = ((randn(C, 1, 3, 3), randn(C)) for _ in range(2))
        affine, statistics = (randn(C, around=1.0), randn(C)), (randn(C), randn(C).abs() + 0.5)
        bn = nn.BatchNorm2d(C).train(training).to(norm[0])
        with torch.no_grad():
            for target, value in zip((bn.weight, bn.bias, bn.running_mean, bn.running_var), (*affine, *statistics)):
                target.copy_(value)
        layers = SimpleNamespace(bn=bn)
        layers.conv1, layers.conv2 = (SimpleNamespace(weight=weight, bias=bias) for weight, bias in (conv1, conv2))
        tensors: List[Optional[Tensor]] = [t.double() for t in (*conv1, *affine)]
        tensors += [None, None] if training else [t.double() for t in statistics]

        def exact(x: Tensor, gamma: Tensor, keep: Tensor) -> Tensor:
            last = conv2[0].double(), conv2[1].double()
            return reference.add_lpi(x, *plain_norm, *tensors, bn.eps, *last, gamma, GRID[0], keep)

        return lambda x, gamma, keep: fused.add_lpi(x, norm, layers, gamma, GRID[0], keep, dtype), exact
    is_mlp = form == 'mlp'
    wide = 4 * C if is_mlp else 3 * C
    weights = [randn(wide, C) * C**-0.5, randn(wide), randn(C, wide if is_mlp else C) * C**-0.5, randn(C)]
    if not is_mlp:
        heads = next(h for h in range(LEAST_HEADS, C + 1) if C % h == 0 and C // h <= LARGEST_HEAD)
        weights.append(randn(heads, 1, 1, around=1.0))
    plain = [t.double() for t in weights]
    correct = reference.add_mlp if is_mlp else reference.add_xca
    return (
        lambda x, gamma, keep: fused.add(form, x, norm, weights, gamma, keep, dtype),
        lambda x, gamma, keep: correct(x, *plain_norm, *plain, gamma, keep),
    )
