"""The one place that decides how a part of the model is computed.

=============  ============================================================  ======================================
way            taken when                                                    how
=============  ============================================================  ======================================
``REFERENCE``  :func:`use` says so; torch.export, TorchScript, torch.fx;     the layers are called, one by one
               torch.func, forward-mode AD, FLOP counters, meta and other
               special tensors; a layer is hooked, replaced or changed;
               torch.compile, but for the last rows; few tokens
``TRAINING``   gradients are recorded, or images are dropped                 autograd functions that recompute what
                                                                             is cheap instead of keeping it
``INFERENCE``  else                                                          in place, in chunks that fit a cache
``COMPILED``   torch.compile, inference on a CPU, no autocast                the same as opaque custom ops
``FUSED``      an NVIDIA GPU from Ampere on with Triton, by the rule of      fused kernels, with a backward pass or
               :func:`triton.suits`, after they passed a trial there; but    without; opaque custom ops when compiled
               for SyncBN of several processes under torch.compile
=============  ============================================================  ======================================

What is written for CPUs alone (LPI, the deconvolution in bands of rows) is the reference elsewhere. The patch embedding
is ``REFERENCE`` but in inference: in bands of rows on a CPU, ``FUSED`` in half precision. XCA has two forms, and
:func:`prefers_covariance` tells which.
"""

import os
from enum import Enum
from typing import Callable, List, Optional, Tuple

import torch
from torch import Tensor, nn

from ..errors import UsageError
from . import class_attention, deconv, fused, reference, stem, trial, xca
from . import lpi as lpi_ops
from . import mlp as mlp_ops
from .matmul import LEAST_TOKENS
from .precision import HALF, at_least_fp32, compute_dtype, without_autocast
from .private import AMX, HAS_CUSTOM_OPS, ONEDNN, ONEDNN_BF16, has_wide_bmm, is_compiling, is_exporting, is_transformed
from .untouched import TENSORS, are_untouched, has_bias, has_statistics, is_conv, is_deconv

MODES = ('auto', 'reference')
VARIABLE = 'XCIT_MM_OPS'

# Fewer values of tokens are faster as whole layers in inference.
LEAST_VALUES = 2**14
# Fewer values of the patch embedding's output do not pay for folding its norms.
LEAST_VALUES_OF_STEM = 2**18
# With fewer values of tokens, the covariance form's many small steps take longer than what they save. On a GPU each is
# a kernel launch: estimates, from the launches of both forms and what else GPUs do meanwhile.
LEAST_VALUES_OF_COVARIANCE = {'cpu': 2**18, 'gpu': 2**20, 'gpu in half precision': 2**22}


class Way(Enum):
    """How a part of the model is computed."""

    REFERENCE = 'reference'
    TRAINING = 'training'
    INFERENCE = 'inference'
    COMPILED = 'compiled'
    FUSED = 'fused'


_mode = 'auto'


class use:
    """Choose how the model is computed: a switch, ``use('reference')``, or for a while, ``with use('reference'):``.

    The environment variable ``XCIT_MM_OPS`` sets what holds at the start.

    Args:
        mode (str): 'reference', the layers one by one in plain PyTorch; or 'auto', the fastest that is known.

    Raises:
        UsageError: If the mode is none of these.
    """

    def __init__(self, mode: str):
        global _mode
        if mode not in MODES:
            raise UsageError(f'xcit_mm.ops.use: the mode must be {" or ".join(map(repr, MODES))}, got {mode!r}')
        self.before, _mode = _mode, mode

    def __enter__(self) -> 'use':
        return self

    def __exit__(self, *_) -> None:
        global _mode
        _mode = self.before


def current_mode() -> str:
    """'auto' or 'reference', see :class:`use`."""
    return _mode


if os.environ.get(VARIABLE):
    try:
        use(os.environ[VARIABLE])
    except UsageError:
        raise UsageError(
            f'the environment variable {VARIABLE} must be {" or ".join(MODES)}, got {os.environ[VARIABLE]!r}'
        ) from None


def may_use_weights(x: Tensor, *modules: nn.Module) -> bool:
    """True if the weights of these modules say all about them, for an input x of this kind."""
    if _mode == 'reference' or type(x) not in TENSORS or is_exporting():
        return False
    return (is_compiling() or not (x.is_meta or is_transformed())) and are_untouched(*modules)


def may_overwrite(x: Tensor, *modules: nn.Module) -> bool:
    """True if x, which these modules made or take, may be changed in place: nobody else needs or sees it."""
    return not torch.is_grad_enabled() and may_use_weights(x, *modules)


def choose(part: str, x: Tensor, norm: nn.Module, branch: nn.Module, gamma: Tensor, keep: Optional[Tensor]) -> Way:
    """The way for the tokens x (B, N, C) and a residual branch, 'xca', 'lpi' or 'mlp'; see :func:`add_xca`."""
    if not isinstance(norm, nn.LayerNorm) or type(gamma) not in TENSORS or not may_use_weights(x, norm, branch):
        return Way.REFERENCE
    if not has_bias(norm):
        return Way.REFERENCE
    if trial.is_faster(part, x, compute_dtype(gamma)) and fused.fits(part, x, branch):
        return Way.FUSED
    backward = torch.is_grad_enabled() or keep is not None
    if is_compiling():
        # Elsewhere the compiler fuses norms and pointwise steps of whole layers as well as chunks can, or better.
        many = x.numel() >= LEAST_TOKENS * x.shape[-1]
        return Way.COMPILED if not backward and _compiles(x) and many else Way.REFERENCE
    if x.numel() == 0:
        return Way.REFERENCE
    if backward:
        return Way.TRAINING
    return Way.INFERENCE if x.numel() >= LEAST_VALUES else Way.REFERENCE


def _compiles(x: Tensor) -> bool:
    """True if torch.compile gets custom ops: on a CPU in fp32 or bf16. There is no autocast in such an op."""
    if not HAS_CUSTOM_OPS or x.device.type != 'cpu' or compute_dtype(x) != x.dtype:
        return False
    return {torch.float32: ONEDNN, torch.bfloat16: ONEDNN_BF16}.get(x.dtype, False)


def _op(function: Callable, way: Way) -> Callable:
    return getattr(torch.ops.xcit_mm, function.__name__) if way is Way.COMPILED else function


def _stream(x: Tensor, gamma: Tensor, way: Way, inplace: bool) -> Tensor:
    """The residual stream as the functions of this package take it: contiguous, and theirs to change in inference.

    Its type is that of the weights, as autocast leaves it; in inference on a CPU fp32 at least, since rounding it three
    times a block is what would cost half precision most of its accuracy.
    """
    dtype = torch.promote_types(x.dtype, gamma.dtype)
    new = way in (Way.TRAINING, Way.FUSED)
    if not new and x.device.type == 'cpu':
        dtype = at_least_fp32(dtype)
    inplace = inplace or x.dtype != dtype or not x.is_contiguous()  # and copied for that
    x = x.to(dtype).contiguous()
    return x if inplace or new else x.clone()


def _norm(norm: nn.LayerNorm) -> Tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def prefers_covariance(
    num_tokens: int, dim: int, dtype: torch.dtype, batch_size: Optional[int] = None, device: str = 'cpu'
) -> bool:
    """True if the covariance form of XCA is the faster one.

    The token form costs 4 N C^2 MACs and more, the covariance form 2 N C^2 + 4 C^3.

    Args:
        num_tokens, dim (int): N and C.
        dtype (torch.dtype): Of matmuls.
        batch_size (int, optional): Defaults to a large one.
        device (str): Its type.
    """
    kind = 'cpu' if device == 'cpu' else 'gpu in half precision' if dtype in HALF else 'gpu'
    if batch_size is not None and batch_size * num_tokens * dim < LEAST_VALUES_OF_COVARIANCE[kind]:
        return False
    return num_tokens >= _least_tokens_per_channel(dtype, device) * dim


def _least_tokens_per_channel(dtype: torch.dtype, device: str) -> int:
    """From which on the covariance form is faster in such matmuls.

    Its 4 C^3 MACs are in fp32, which takes longer than what they save where half precision is much faster: on a CPU
    with AMX, where the moments are in fp32 too, and on GPUs. Those multiply 8 to 16 times as fast in it and then wait
    for memory, of whose traffic this form needs half as much. By the published figures of a T4, V100, H100 and A100 it
    pays from 6, 8, 9 and 14 tokens for each channel on. If the moments need fp32, it is never faster; from 64 on it is
    taken for its memory, and since sums over all tokens would leave the range of fp16.
    """
    if dtype not in HALF:
        return 2
    if device == 'cpu':
        return 4 if AMX and dtype == torch.bfloat16 else 2
    return 8 if has_wide_bmm(dtype, device) else 64


def add_xca(
    x: Tensor, norm: nn.Module, attn: nn.Module, gamma: Tensor, keep: Optional[Tensor] = None, inplace: bool = False
) -> Tensor:
    """x + keep * gamma * XCA(LN(x)).

    Args:
        x (Tensor): (B, N, C).
        norm, attn (nn.Module): A layer norm, and XCA.
        gamma (Tensor): LayerScale, (C).
        keep (Tensor, optional): Factor of stochastic depth, (B, 1, 1).
        inplace (bool): x may be changed, where gradients are not recorded.

    Returns:
        Tensor: (B, N, C).
    """
    way = choose('xca', x, norm, attn, gamma, keep)
    if way is Way.REFERENCE or not has_bias(attn.qkv, attn.proj):
        return reference.residual(x, attn(norm(x.to(gamma.dtype))), gamma, keep)
    B, N, C = x.shape
    # Models are compiled for any batch size.
    batch_size = None if is_compiling() else B
    covariance = prefers_covariance(N, C, compute_dtype(gamma), batch_size, x.device.type)
    weights = attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias, attn.temperature
    if way is Way.FUSED:
        form, x = 'xca' if covariance else 'token_form', _stream(x, gamma, way, inplace)
        return fused.add(form, x, _norm(norm), weights, gamma, keep, compute_dtype(gamma))
    arguments = *_norm(norm), *weights, gamma if keep is None else gamma * keep
    if not covariance:
        return _op(xca.add_token_form, way)(_stream(x, gamma, way, inplace=True), *arguments)
    x = _stream(x, gamma, way, inplace)
    if way is Way.TRAINING:
        return xca.add_covariance_form(x, *arguments)
    _op(xca.add_covariance_form_, way)(x, *arguments)
    return x


def add_lpi(
    x: Tensor,
    norm: nn.Module,
    lpi: nn.Module,
    gamma: Tensor,
    grid: Tuple[int, int],
    keep: Optional[Tensor] = None,
    inplace: bool = False,
) -> Tensor:
    """x + keep * gamma * LPI(LN(x)), for the tokens of an image of ``grid`` = (rows, columns); see :func:`add_xca`."""
    way = choose('lpi', x, norm, lpi, gamma, keep)
    if way is Way.FUSED:
        x = _stream(x, gamma, way, inplace)
        return fused.add_lpi(x, _norm(norm), lpi, gamma, grid[0], keep, compute_dtype(gamma))
    if way is Way.TRAINING and is_conv(lpi.conv2, 3, depthwise=True) and has_bias(lpi.conv2):
        x = _stream(x, gamma, way, inplace)
        image = lpi.bn(lpi.act(lpi.conv1(norm(x).unflatten(1, grid).permute(0, 3, 1, 2))))
        return lpi_ops.add_last_conv(x, image, lpi.conv2.weight, lpi.conv2.bias, gamma, keep)
    if way in (Way.REFERENCE, Way.TRAINING) or not _fits_bands(x, lpi):
        return reference.residual(x, lpi(norm(x.to(gamma.dtype)), grid), gamma, keep)
    x, bn = _stream(x, gamma, way, inplace), lpi.bn
    norms = bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps
    convs = (lpi.conv1.weight, lpi.conv1.bias), (lpi.conv2.weight, lpi.conv2.bias)
    _op(lpi_ops.add_lpi_, way)(x, *_norm(norm), *convs[0], *norms, *convs[1], gamma, grid[0])
    return x


def _fits_bands(x: Tensor, lpi: nn.Module) -> bool:
    convs = lpi.conv1, lpi.conv2
    published = all(is_conv(conv, 3, depthwise=True) for conv in convs) and has_bias(*convs)
    return x.device.type == 'cpu' and published and has_statistics(lpi.bn)


def add_mlp(
    x: Tensor, norm: nn.Module, mlp: nn.Module, gamma: Tensor, keep: Optional[Tensor] = None, inplace: bool = False
) -> Tensor:
    """x + keep * gamma * MLP(LN(x)); see :func:`add_xca`."""
    way = choose('mlp', x, norm, mlp, gamma, keep)
    if way is Way.REFERENCE or not has_bias(mlp.fc1, mlp.fc2):
        return reference.residual(x, mlp(norm(x.to(gamma.dtype))), gamma, keep)
    x = _stream(x, gamma, way, inplace)
    weights = mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias
    if way is Way.FUSED:
        return fused.add('mlp', x, _norm(norm), weights, gamma, keep, compute_dtype(gamma))
    if way is Way.TRAINING:
        return mlp_ops.add_mlp(x, *_norm(norm), *weights, gamma, keep)
    _op(mlp_ops.add_mlp_, way)(x, *_norm(norm), *weights, gamma)
    return x


def embed_patches(image: Tensor, layers: nn.Sequential) -> Tensor:
    """The patch embedding: (B, 3, H, W) -> (B, C, rows, columns), channels last.

    Args:
        layers (nn.Sequential): Of a convolution and its batch norm each, with GELUs between.
    """
    steps = [step for step in layers if isinstance(step, nn.Sequential)]
    if not torch.is_grad_enabled() and may_use_weights(image, layers) and _fits_stem(image, layers, steps):
        dtype = compute_dtype(image)
        if trial.is_faster('stem', image, dtype, _widths(steps)):
            return fused.embed_patches(image, steps, dtype).permute(0, 3, 1, 2)
        B, _, H, W = image.shape
        tokens = B * (H >> len(steps)) * (W >> len(steps))
        many = is_compiling() or tokens * steps[-1][0].out_channels > LEAST_VALUES_OF_STEM
        if many and _is_cpu_inference(image):
            weights, biases = zip(*(stem.folded(*step) for step in steps))
            embed = torch.ops.xcit_mm.embed_patches if is_compiling() else stem.embed_patches
            with without_autocast(image):
                x = embed(image, [w.to(dtype) for w in weights], [b.to(dtype) for b in biases])
            return x.permute(0, 3, 1, 2)
    # Channels last: the tokens are then a view of the convolution's output. vmap knows no memory formats.
    return layers(image if is_transformed() else image.contiguous(memory_format=torch.channels_last))


def _fits_stem(image: Tensor, layers: nn.Sequential, steps: List[nn.Sequential]) -> bool:
    """True if the layers are the published ones, with running statistics, and take this image."""
    published = [nn.Sequential, nn.GELU] * len(layers)
    if len(layers) % 2 == 0 or not all(isinstance(*pair) for pair in zip(layers, published)):
        return False
    for step in steps:
        if len(step) != 2 or not is_conv(step[0], 3, stride=2) or has_bias(step[0]) or not has_statistics(step[1]):
            return False
        if step[1].num_features != step[0].out_channels:
            return False
    # An image of other channels, another type or device than the weights is an error of the layers.
    weight = steps[0][0].weight
    same = image.dim() == 4 and image.shape[1] == weight.shape[1] and image.device == weight.device
    return same and image.is_floating_point() and compute_dtype(image) == compute_dtype(weight)


def _widths(steps: List[nn.Sequential]) -> Tuple[int, ...]:
    """Channels of the image and of the output of each layer."""
    return (steps[0][0].in_channels, *(step[0].out_channels for step in steps))


def deconvolve(image: Tensor, layer: nn.Module) -> Tensor:
    """A layer of the pyramid: (B, C, H, W) -> (B, D, H', W')."""
    fast = is_deconv(layer) and has_bias(layer) and _is_cpu_inference(image, layer)
    if not fast or image.dtype != torch.float32 or compute_dtype(image) != layer.weight.dtype:
        return layer(image)
    run = torch.ops.xcit_mm.deconvolve if is_compiling() else deconv.deconvolve
    return run(image, layer.weight, layer.bias)


def _is_cpu_inference(x: Tensor, *modules: nn.Module) -> bool:
    if torch.is_grad_enabled() or not may_use_weights(x, *modules) or x.device.type != 'cpu':
        return False
    return not is_compiling() or _compiles(x)


def attend_class(
    cls_token: Tensor, tokens: Tensor, qkv: nn.Module, num_heads: int, drop: Callable = nn.Identity()
) -> Tuple[Tensor, Tensor]:
    """Attention of the class token to itself and to the N tokens.

    Args:
        cls_token, tokens (Tensor): (B, 1, C), (B, N, C).
        qkv (nn.Module): A linear layer.
        num_heads (int): Heads.
        drop (Callable): Dropout of the weights.

    Returns:
        tuple[Tensor, Tensor]: The weights (B, heads, 1 + N) without dropout, and the value (B, 1, C).
    """
    if not (isinstance(qkv, nn.Linear) and may_use_weights(tokens, qkv) and has_bias(qkv)):
        return reference.class_attention(qkv(torch.cat((cls_token, tokens), dim=1)), num_heads, drop)
    weights = class_attention.attention_weights(cls_token, tokens, qkv.weight, qkv.bias, num_heads)
    return weights, class_attention.pooled_value(drop(weights), cls_token, tokens, qkv.weight, qkv.bias)
