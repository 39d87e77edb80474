"""The products of tokens with matrices, by the faster library.

On a CPU, PyTorch hands fp32 products to MKL and convolutions to oneDNN. The sums of a linear layer are those of a 1x1
convolution, and on AMD's processors oneDNN computes them more than twice as fast; on Intel's own, MKL is as fast or a
little faster. Half precision always goes to oneDNN.
"""

import platform
import time
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and 'CPU capability usage: AVX' in torch.__config__.show()
ONEDNN_BF16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
HAS_OPERATORS = hasattr(torch.library, 'custom_op')  # from PyTorch 2.4 on
HAS_WIDE_PRODUCTS = 'dtype' in torch.ops.aten.bmm.overloads()  # from PyTorch 2.8 on, of half precision into fp32
LEAST_TOKENS = 128  # fewer do not pay for bringing the matrix into oneDNN's order
ROW = 64  # tokens in a row of their image, at most
_CHANNELS_FIRST = {}  # what was measured: device, type, channels and whether there is a backward pass -> whether faster


def _is_intel() -> bool:
    cpus = Path('/proc/cpuinfo')
    return 'GenuineIntel' in (cpus.read_text(errors='replace') if cpus.is_file() else platform.processor())


MKL_IS_FASTER = torch.backends.mkl.is_available() and _is_intel()
# Tiles of Intel's processors for half precision; their products want images that are not a single row.
HAS_TILES = ONEDNN_BF16 and bool(getattr(torch.cpu, '_is_amx_tile_supported', bool)())


def is_fp32_by_onednn(x: Tensor) -> bool:
    """Whether products of tokens (..., C) are those of fp32 on a CPU, and oneDNN may do them.

    Exported models keep their linear layers.
    """
    return x.device.type == 'cpu' and compute_dtype(x) == torch.float32 and ONEDNN and not is_exported()


def is_large_in_fp32(x: Tensor) -> bool:
    """Whether such products are worth oneDNN's preparations too: at least :data:`LEAST_TOKENS` tokens (..., C)."""
    return is_fp32_by_onednn(x) and x.numel() >= LEAST_TOKENS * x.shape[-1]


def suits_onednn(x: Tensor) -> bool:
    """Whether products of tokens (..., C) go through oneDNN as convolutions."""
    return is_large_in_fp32(x) and not MKL_IS_FASTER


def suits_inner_product(x: Tensor, weight: Tensor) -> bool:
    """Whether products of tokens (..., C) with (D, C), without a backward pass, are fastest as oneDNN's inner product.

    It takes the matrix as it lies, where a convolution brings it into an order of its own first, which counts up to
    about a thousand tokens. Below 48 tokens or 4 million multiply-adds MKL is as fast, and rows of 2048 values and more
    are read slowly.
    """
    if torch.is_grad_enabled() or is_traced() or MKL_IS_FASTER or not is_fp32_by_onednn(x):
        return False
    tokens, C = x.numel() // x.shape[-1], x.shape[-1]
    return 48 <= tokens < 1024 and C < 2048 and tokens * weight.numel() >= 2**22 and _has_inner_product()


def is_exported() -> bool:
    """Whether torch.export or TorchScript records the model for another program."""
    # Not by torch.compiler.is_exporting(), which torch.compile takes to be true for itself.
    exporting = getattr(getattr(torch, 'compiler', None), '_is_exporting_flag', None)
    return is_traced() if exporting is None else exporting or torch.jit.is_tracing()


def is_traced() -> bool:
    """Whether torch.compile, torch.export or TorchScript records the model, and better sees it as it is written."""
    compiler = torch.compiler if hasattr(getattr(torch, 'compiler', None), 'is_compiling') else torch._dynamo
    return compiler.is_compiling() or torch.jit.is_tracing()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Type of matrix products with x: autocast's where it is on, else that of x."""
    kind = x.device.type
    if not _autocasts(x):
        return x.dtype
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(kind)
    return torch.get_autocast_cpu_dtype() if kind == 'cpu' else torch.get_autocast_gpu_dtype()


def _autocasts(x: Tensor) -> bool:
    if x.is_meta:  # knows no autocast
        return False
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.is_autocast_enabled(x.device.type)
    return torch.is_autocast_cpu_enabled() if x.device.type == 'cpu' else torch.is_autocast_enabled()


def without_autocast(x: Tensor):
    """Inside, everything has the type of its inputs."""
    # Entering autocast takes longer than a small step on a GPU.
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()


def as_image(x: Tensor) -> Tensor:
    """Tokens (n, C) as an image, (1, C, h, w), channels last: a view."""
    return x.view(1, *_grid(len(x), x.dtype), x.shape[-1]).permute(0, 3, 1, 2)


@lru_cache(maxsize=None)
def _grid(tokens: int, dtype: torch.dtype) -> Tuple[int, int]:
    """Height and width of the image of so many tokens."""
    widths = range(ROW, 15, -1) if HAS_TILES and dtype == torch.bfloat16 else ()
    width = next((width for width in widths if tokens % width == 0), tokens)
    return tokens // width, width


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x W^T + b: (..., C), (D, C) and (D) -> (..., D). Differentiable."""
    if suits_inner_product(x, weight):
        return _inner_product(x, weight, bias)
    if not suits_onednn(x):
        by_mkl = MKL_IS_FASTER and bias is not None and is_large_in_fp32(x)
        if not by_mkl or torch.is_grad_enabled() or is_traced():
            return F.linear(x, weight, bias)
        # PyTorch would write the bias into all rows first, for MKL to add the product to them: that takes longer.
        return torch.matmul(x, weight.t()).add_(bias)
    x = x.contiguous()  # or the image would not be channels last
    if not is_traced():
        return _linear(x, weight, bias)
    # torch.compile would move a convolution's tensors into an order of its own choice.
    return F.linear(x, weight, bias) if _opaque_linear is None else _opaque_linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    out = F.conv2d(as_image(x.reshape(-1, x.shape[-1])), weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(x W^T + b) without a backward pass: (n, C), (D, C) and (D) -> (n, D)."""
    by_mkl = MKL_IS_FASTER and x.dtype == torch.float32
    if len(x) < LEAST_TOKENS or not joins_gelu(x) or by_mkl or suits_inner_product(x, weight):
        return torch.ops.aten.gelu_(linear(x, weight, bias))
    return conv_gelu(as_image(x), weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(len(x), len(weight))


def prepared_linear(weight: Tensor, bias: Tensor, tokens: int, gelu: bool = False) -> Callable[[Tensor], Tensor]:
    """x -> x W^T + b, or its GELU, without a backward pass, for calls with so many tokens each: (n, C) -> (n, D).

    Where oneDNN can, the matrix (D, C) is brought into its order once, not for every call, and GELU is applied to the
    sums before they are stored. The order is one for a number of tokens; with that of another, products can take three
    times as long.
    """
    if tokens < LEAST_TOKENS or not joins_gelu(weight):
        return partial(linear_gelu if gelu else linear, weight=weight, bias=bias)
    ordered = _in_order(weight[:, :, None, None], tokens)

    def prepared(x: Tensor) -> Tensor:
        image = _convolution(as_image(x), ordered, bias, 1, 0, gelu)
        return image.permute(0, 2, 3, 1).reshape(len(x), len(bias))

    return prepared


def conv_gelu(image: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """GELU of a convolution of (B, C, H, W), channels last, without a backward pass."""
    if not joins_gelu(image):
        return gelu_(F.conv2d(image, weight, bias, stride, padding))
    return _convolution(image, weight, bias, stride, padding, gelu=True)


def gelu_(image: Tensor) -> Tensor:
    """GELU of (B, C, H, W), channels last, in place."""
    # In the order of its memory, since PyTorch's fast path wants that contiguous.
    torch.ops.aten.gelu_(image.permute(0, 2, 3, 1))
    return image


def joins_gelu(x: Tensor) -> bool:
    """Whether oneDNN has convolutions with GELU for this device and type."""
    return x.device.type == 'cpu' and ONEDNN and _has_own_convolution(x.dtype)


def _convolution(image: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, gelu: bool) -> Tensor:
    # The operator that torch.compile uses itself. 'none' stands for GELU without an approximation.
    pointwise = ('gelu', [], 'none') if gelu else ('none', [], '')
    settings = [padding] * 2, [stride] * 2, [1, 1], 1
    return torch.ops.mkldnn._convolution_pointwise(image, weight, bias, *settings, *pointwise)


def _inner_product(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


def _in_order(weight: Tensor, tokens: int) -> Tensor:
    """The weight of a 1x1 convolution in the order in which oneDNN wants it, for the image of so many tokens."""
    sizes = [1, weight.shape[1], *_grid(tokens, weight.dtype)]
    return torch.ops.mkldnn._reorder_convolution_weight(weight, [0, 0], [1, 1], [1, 1], 1, sizes)


@lru_cache(maxsize=None)
def _has_own_convolution(dtype: torch.dtype) -> bool:
    """They are private to PyTorch: tried once, since another release may have them differently."""
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and ONEDNN_BF16):
        return False
    image, weight = torch.tensor([1.0, -2.0], dtype=dtype).view(1, 1, 1, 2), torch.ones(1, 1, 1, 1, dtype=dtype)
    expected = image.float() + 1
    try:
        found = [_convolution(image, _in_order(weight, 2), weight.flatten(), 1, 0, gelu) for gelu in (False, True)]
    except (AttributeError, RuntimeError, TypeError):
        return False
    close = dict(rtol=1e-2, atol=1e-6)
    return torch.allclose(found[0].float(), expected, **close) and torch.allclose(
        found[1].float(), F.gelu(expected), **close
    )


@lru_cache(maxsize=None)
def _has_inner_product() -> bool:
    """Its operator is private to PyTorch too: tried once."""
    try:
        found = _inner_product(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]]), torch.ones(1))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return found.tolist() == [[2.0]]


def linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of x W^T + b by x, W and b, the latter two in fp32: from (n, D), (n, C) and (D, C)."""
    if not suits_onednn(x):
        return grad @ weight, (grad.t() @ x).float(), grad.sum(0, dtype=torch.float32)
    return _linear_backward(grad, x, weight)


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    grads = _convolution_backward(
        grad.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1]), weight[..., None, None], [True] * 3
    )
    return grads[0].permute(0, 2, 3, 1).reshape(x.shape), grads[1].flatten(1), grads[2]


def affine(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """x M + m with one map for each image: (B, n, C), (B, C, D) and (B, 1, D) -> (B, n, D). Differentiable."""
    # A recorded model with a loop over its images would fit one number of images only.
    if not is_traced() and suits_onednn(x[0]):
        return joined([linear(tokens, m.t(), o[0]) for tokens, m, o in zip(x, matrix, offset)])
    return torch.baddbmm(offset, x, matrix)


def affine_backward(grad: Tensor, x: Tensor, matrix: Tensor) -> Tuple[Tensor, Tensor]:
    """Gradients of x M + m by x and, in fp32, by M: from (B, n, D), (B, n, C) and (B, C, D)."""
    if not suits_onednn(x[0]):
        return grad @ matrix.transpose(1, 2), (x.transpose(1, 2) @ grad).float()
    images = [linear_backward(g, tokens, m.t()) for g, tokens, m in zip(grad, x, matrix)]
    return joined([image[0] for image in images]), joined([image[1].t() for image in images])


def joined(images: List[Tensor]) -> Tensor:
    """(n, C) of each image -> (B, n, C); that of one image is not copied."""
    return images[0][None] if len(images) == 1 else torch.stack(images)


def by_columns(matrix: Tensor) -> Tensor:
    """The same (B, C, D), on a CPU in memory column by column, as oneDNN wants the matrix of :func:`affine`."""
    return matrix.transpose(1, 2).contiguous().transpose(1, 2) if matrix.device.type == 'cpu' else matrix


def product_over_tokens(a: Tensor, b: Tensor) -> Tensor:
    """a^T b in fp32: (n, C) and (n, D) -> (C, D). The gradient of a convolution's weight is this sum."""
    if not suits_onednn(a):
        return (a.t() @ b).float()
    weight = b.new_empty(a.shape[1], b.shape[1], 1, 1)  # of which only the shape matters
    return _convolution_backward(a, b, weight, [False, True, False])[1].flatten(1)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: list):
    sizes, settings = [len(weight)], ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(as_image(grad), as_image(x), weight, sizes, *settings, wanted)


def prefers_channels_first(x: Tensor, backward: bool) -> bool:
    """Whether depthwise convolutions of tokens (..., C) are worth copies of these into PyTorch's default layout.

    oneDNN is 20 times as fast with channels last, as tokens are. cuDNN, which alone has that layout on a GPU, depends
    on its release, the GPU and the type: measured there, once a process.
    """
    if type(x) is not Tensor or not x.is_cuda or is_traced():
        return False
    case = x.device, compute_dtype(x), x.shape[-1], backward
    fixed = torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    if fixed or case not in _CHANNELS_FIRST and torch.cuda.is_current_stream_capturing():
        return case[1] == torch.float32  # for which cuDNN is said to be slow
    if case not in _CHANNELS_FIRST:
        _CHANNELS_FIRST[case] = is_faster_channels_first(*case)
    return _CHANNELS_FIRST[case]


def is_faster_channels_first(device: torch.device, dtype: torch.dtype, C: int, backward: bool) -> bool:
    """Measures it, for inference or with the work of a backward pass."""
    # Not by autograd, whose tensors a checkpoint around the caller would take for its own.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            tokens = torch.zeros(2, 96, 160, C, dtype=dtype, device=device)
            weight = torch.zeros(C, 1, 3, 3, dtype=dtype, device=device)
            last, first = (
                _depthwise_seconds(tokens, weight, format, backward)
                for format in (torch.channels_last, torch.contiguous_format)
            )
        except torch.cuda.OutOfMemoryError:
            return False
    return first < last


def _depthwise_seconds(tokens: Tensor, weight: Tensor, format: torch.memory_format, backward: bool) -> float:
    """Of LPI's two convolutions, from tokens (B, H, W, C) to tokens."""
    wait = partial(torch.cuda.synchronize, tokens.device) if tokens.is_cuda else bool
    C, one = len(weight), [1, 1]
    for times in (2, 10):  # at first to choose algorithms and to get memory
        wait()
        start = time.perf_counter()
        for _ in range(times):
            image = tokens.permute(0, 3, 1, 2).contiguous(memory_format=format)
            out = F.conv2d(F.conv2d(image, weight, padding=1, groups=C), weight, padding=1, groups=C)
            out = tokens + out.permute(0, 2, 3, 1)
            if backward:
                grad, settings = out.permute(0, 3, 1, 2), ([C], one, one, one, False, [0, 0], C, [True] * 3)
                for _ in range(2):
                    grad = torch.ops.aten.convolution_backward(grad, image, weight, *settings)[0]
                out = tokens + grad.permute(0, 2, 3, 1)
        wait()
    return time.perf_counter() - start


class Linear(nn.Linear):
    """PyTorch's linear layer, by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """PyTorch's convolution, in training on a CPU of very large images by a part of its output channels at a time.

    From 2 GiB on, oneDNN has no fast gradient of the weight for channels-last fp32: it falls back to its reference,
    which takes hundreds of times as long.
    """

    LARGEST = 2**29  # places of the input times output channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        size = x.numel() // self.in_channels * self.out_channels
        if size < self.LARGEST or x.device.type != 'cpu' or is_traced() or not torch.is_grad_enabled():
            return super().forward(x)
        parts = 2 ** (size // self.LARGEST).bit_length()  # equal ones: channels are often multiples of 16
        biases = [None] * parts if self.bias is None else self.bias.chunk(parts)
        return torch.cat([self._conv_forward(x, w, b) for w, b in zip(self.weight.chunk(parts), biases)], 1)


def register(function: Callable, like: Callable, name: Optional[str] = None, mutates: Sequence[str] = ()):
    """Make a function an operator that torch.compile calls and does not look into; nothing before PyTorch 2.4.

    Args:
        function (Callable): With types of its arguments; to be called as ``torch.ops.xcit_mm.<name>``.
        like (Callable): Tensors like its results, from the same arguments.
        name (str, optional): Defaults to that of the function.
        mutates (Sequence[str]): Arguments that it changes.
    """
    if not HAS_OPERATORS:
        return None
    operator = torch.library.custom_op(f'xcit_mm::{name or function.__name__}', function, mutates_args=mutates)
    operator.register_fake(like)
    return operator


def _make_opaque_linear():
    """:func:`_linear` as an operator; None before PyTorch 2.4."""
    opaque = register(_linear, lambda x, weight, bias: x.new_empty(*x.shape[:-1], len(weight)), name='linear')
    backward = register(
        _linear_backward,
        lambda grad, x, weight: (torch.empty_like(x), torch.empty_like(weight), weight.new_empty(len(weight))),
        name='linear_backward',
    )
    if opaque is None:
        return None

    def keep(ctx, inputs, output):
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None

    def differentiate(ctx, grad):
        grad_x, grad_weight, grad_bias = backward(grad, *ctx.saved_tensors)
        return grad_x, grad_weight, grad_bias if ctx.has_bias else None

    opaque.register_autograd(differentiate, setup_context=keep)
    return opaque


_opaque_linear = _make_opaque_linear()
