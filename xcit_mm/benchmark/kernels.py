"""The Triton kernels of a block beside plain PyTorch: errors against fp64, times and memory traffic."""

from dataclasses import dataclass
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.reference import cross_covariance_attention

EPS = 1e-6
BN_EPS = 1e-5
PARTS = ('lpi', 'lpi, frozen statistics', 'xca', 'xca, token form', 'mlp')


@dataclass
class Case:
    """The shape and dtypes of one part of a block.

    Attributes:
        part (str): One of :data:`PARTS`.
        batch, height, width, channels (int): B, rows and columns of tokens, C.
        dtype (torch.dtype): Dtype of matmuls and of hidden values.
        stream (torch.dtype): Dtype of the tokens; fp32 under autocast.
        keep (bool): Whether stochastic depth is used.
        device (str): Device of the tensors.
    """

    part: str
    batch: int
    height: int
    width: int
    channels: int
    dtype: torch.dtype = torch.float32
    stream: torch.dtype = torch.float32
    keep: bool = False
    device: str = 'cuda'

    def tensors(self) -> List[Tensor]:
        """Seeded inputs of :func:`plain` that require gradients, tokens first; all but the tokens are fp32."""
        generator = torch.Generator().manual_seed(0)
        B, C = self.batch, self.channels

        def normal(*size: int, spread: float = 1.0) -> Tensor:
            return torch.randn(*size, generator=generator).mul_(spread).to(self.device)

        x = (normal(B, self.height * self.width, C) * 2 + normal(C)).to(self.stream)
        found = [x, 1 + normal(C, spread=0.3), normal(C, spread=0.3)]
        if self.part.startswith('lpi'):
            found += [normal(C, 1, 3, 3, spread=0.3), normal(C), 1 + normal(C, spread=0.3), normal(C)]
            found += [normal(C, 1, 3, 3, spread=0.3), normal(C), normal(C)]
        elif self.part.startswith('xca'):
            heads = next(C // d for d in (48, 64, 32, C // 2) if C % d == 0)
            found += [normal(3 * C, C, spread=C**-0.5), normal(3 * C), normal(C, C, spread=C**-0.5), normal(C)]
            found += [1 + normal(heads, 1, 1, spread=0.3), normal(C)]
        elif self.part == 'mlp':
            found += [normal(4 * C, C, spread=C**-0.5), normal(4 * C), normal(C, 4 * C, spread=C**-0.5), normal(C)]
            found += [normal(C)]
        return found

    def factors(self) -> Optional[Tensor]:
        """Factors (B, 1, 1) of stochastic depth; the first image is dropped."""
        if not self.keep:
            return None
        return torch.tensor([0.0, 1.25, 1.25])[torch.arange(self.batch) % 3].view(-1, 1, 1).to(self.device)

    def statistics(self) -> Tuple[Optional[Tensor], Optional[Tensor]]:
        """Frozen mean and variance of BN."""
        if self.part != 'lpi, frozen statistics':
            return None, None
        ramp = torch.linspace(0.5, 1.5, self.channels, device=self.device)
        return ramp - 1, ramp


def plain(case: Case, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tuple[Tensor, ...]:
    """Compute one part of a block with PyTorch's operators, in the dtypes of autocast."""
    x, weight, bias, *rest = tensors
    C = case.channels
    normed = F.layer_norm(x, (C,), weight.to(x.dtype), bias.to(x.dtype), EPS).to(dtype)
    if case.part.startswith('xca'):
        *weights, temperature, gamma = rest
        w_qkv, b_qkv, w_o, b_o = (t.to(dtype) for t in weights)
        mixed = cross_covariance_attention(F.linear(normed, w_qkv, b_qkv), temperature.to(dtype))
        branch = F.linear(mixed, w_o, b_o)
    elif case.part == 'mlp':
        w1, b1, w2, b2, gamma = rest
        hidden = F.gelu(F.linear(normed, w1.to(dtype), b1.to(dtype)))
        branch = F.linear(hidden, w2.to(dtype), b2.to(dtype))
    else:
        w1, b1, bn_weight, bn_bias, w2, b2, gamma = rest
        mean, var = (None if t is None else t.to(bn_weight.dtype) for t in case.statistics())
        image = normed.unflatten(1, (case.height, case.width)).permute(0, 3, 1, 2)
        hidden = F.gelu(F.conv2d(image, w1.to(dtype), b1.to(dtype), padding=1, groups=C))
        hidden = F.batch_norm(hidden, mean, var, bn_weight, bn_bias, mean is None, 0.1, BN_EPS)
        branch = F.conv2d(hidden, w2.to(dtype), b2.to(dtype), padding=1, groups=C).flatten(2).transpose(1, 2)
    keep = case.factors()
    scale = gamma if keep is None else gamma * keep.to(gamma.dtype)
    return (torch.addcmul(x.to(torch.promote_types(x.dtype, gamma.dtype)), branch, scale).to(x.dtype),)


def fused(case: Case, tensors: Sequence[Tensor]) -> Tuple[Tensor, ...]:
    """Compute the same with the kernels: those for training if a tensor requires gradients."""
    from ..ops.triton import operators

    name = {'xca, token form': 'token_form'}.get(case.part, case.part.split(',')[0])
    keeps = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    others = case.factors(), EPS, case.dtype, keeps
    if name == 'lpi':
        others = *others, case.height, BN_EPS, *case.statistics()
    x, *weights = tensors
    branch = operators.BRANCHES[name]
    out, *_ = operators.Branch.apply(x, *weights, others, branch) if keeps else branch.forward(x, weights, *others)
    return (out,)


class Errors(NamedTuple):
    """Relative RMS error against fp64, of the kernels and of plain PyTorch."""

    fused: float
    plain: float


def compare(case: Case, backward: bool = True) -> Dict[str, Errors]:
    """Compare the outputs, and the gradients of all inputs for a random gradient of the outputs."""
    tensors = case.tensors()
    exact = [t.double() for t in tensors]
    runs: List[Tuple[Callable, Sequence[Tensor]]] = [
        (lambda given: plain(case, given, torch.float64), exact),
        (lambda given: fused(case, given), tensors),
        (lambda given: plain(case, given, case.dtype), tensors),
    ]
    found: List[List[Tensor]] = []
    for function, given in runs:
        leaves = [t.detach().clone().requires_grad_(backward) for t in given]
        outs = function(leaves)
        values = [out.detach() for out in outs]
        if backward:
            generator = torch.Generator().manual_seed(1)
            grads = [torch.randn(out.shape, generator=generator).to(out.device) for out in outs]
            torch.autograd.backward(outs, [g.to(out.dtype) for g, out in zip(grads, outs)])
            values += [leaf.grad for leaf in leaves]
        found.append(values)
    # With a backward pass, the MLP's GELU takes the rounded hidden values that are saved for it.
    limit = 4 * torch.finfo(case.dtype).eps
    for value, again in zip(found[1], fused(case, tensors)):
        error = _error(again, value.double())
        assert error <= limit, f'{case} without a backward pass: {error:.1e} from the result with one'
    count = len(found[0]) - len(tensors) if backward else len(found[0])
    names = [f'output {i}' for i in range(count)] + [f'gradient {i}' for i in range(len(tensors))] * backward
    return {name: Errors(_error(f, e), _error(p, e)) for name, e, f, p in zip(names, *found)}


def _error(value: Tensor, exact: Tensor) -> float:
    difference = (value.double() - exact).square().mean().sqrt()
    return (difference / exact.square().mean().sqrt().clamp_min(1e-300)).item()


class Kernel(NamedTuple):
    """Memory traffic and arithmetic of one kernel, per token and channel.

    Attributes:
        name (str): What it computes.
        stream (float): Values read and written in the dtype of the tokens.
        hidden (float): Values read and written in the dtype of the matmuls.
        flops (float): FLOPs of matmuls, over the number of channels.
        instructions (float): Other instructions, as counted in the kernel's loop.
    """

    name: str
    stream: float
    hidden: float
    flops: float = 0
    instructions: float = 0


NORM = Kernel('layer norm', 1, 1, instructions=15)
NORM_BACKWARD = Kernel('backward pass of the layer norm', 3, 1, instructions=30)
CAST = Kernel('gradient in half precision, its sums (PyTorch)', 1, 2)
LPI = (
    [
        NORM,
        Kernel('conv1, GELU', 0, 2, instructions=45),
        Kernel('BN, conv2, LayerScale, residual', 2, 1, instructions=40),
    ],
    [
        Kernel('back through conv2, gradients of its weights', 1, 2, instructions=75),
        NORM,
        Kernel('back through BN and GELU, gradients of conv1', 0, 4, instructions=90),
        Kernel('back through conv1', 0, 2, instructions=30),
        NORM_BACKWARD,
    ],
)
# Kernels of each part of a block, forward and backward, without the (C, C) algebra of XCA; of 8 heads.
KERNELS: Dict[str, Tuple[List[Kernel], List[Kernel]]] = {
    'lpi': LPI,
    'lpi, frozen statistics': LPI,
    'xca': (
        [
            NORM,
            Kernel('second moments (cuBLAS)', 0, 1, 2),
            Kernel('affine map, LayerScale, residual', 2, 1, 2),
        ],
        [
            NORM,
            CAST,
            Kernel('gradient of the affine map (cuBLAS)', 0, 2, 2),
            Kernel('back through the affine map (cuBLAS)', 0, 2, 2),
            Kernel('back through the second moments', 0, 3, 2),
            NORM_BACKWARD,
        ],
    ),
    'xca, token form': (
        [
            NORM,
            Kernel('queries, keys and values (cuBLAS)', 0, 4, 6),
            Kernel('Gram matrices of the heads', 0, 2, 2 / 8),
            Kernel('attention and projection, LayerScale, residual', 2, 1, 2),
        ],
        [
            CAST,
            Kernel('gradient of attention and projection (cuBLAS)', 0, 2, 2),
            Kernel('back to the values (cuBLAS)', 0, 2, 2),
            Kernel('back to queries and keys, sums', 0, 5, 4 / 8),
            NORM,
            Kernel('gradient of the weight of queries, keys and values (cuBLAS)', 0, 4, 6),
            Kernel('back through queries, keys and values (cuBLAS)', 0, 4, 6),
            NORM_BACKWARD,
        ],
    ),
    'mlp': (
        [
            NORM,
            Kernel('first layer, GELU', 0, 5, 8),
            Kernel('second layer, LayerScale, residual', 2, 4, 8),
        ],
        [
            CAST,
            Kernel('back through the second layer and GELU', 0, 13, 8),
            NORM,
            Kernel('gradients of the weights (cuBLAS)', 0, 10, 16),
            Kernel('back through the first layer (cuBLAS)', 0, 5, 8),
            NORM_BACKWARD,
        ],
    ),
}
KEPT = {'mlp': 4}  # values that the forward pass writes for the backward pass alone
# Peak rates of an H100 SXM by its data sheet, and the shares of them that good kernels reach.
BANDWIDTH, TENSOR_FLOPS, LANES = 0.85 * 3.35e12, 0.6 * 989e12, 0.7 * 132 * 128 * 1.755e9


def predicted_kernel(kernel: Kernel, case: Case) -> Tuple[float, float]:
    """Bytes, and seconds on an H100 in half precision: the maximum over memory, tensor cores and other instructions."""
    values = case.batch * case.height * case.width * case.channels
    moved = values * (kernel.stream * case.stream.itemsize + kernel.hidden * case.dtype.itemsize)
    computing = values * kernel.flops * case.channels / TENSOR_FLOPS
    return moved, max(moved / BANDWIDTH, computing, values * kernel.instructions / LANES)


def predicted(case: Case, backward: bool) -> Tuple[float, float]:
    """Bytes and seconds, summed over the kernels of a part: inference, or a forward and a backward pass."""
    forward, back = KERNELS[case.part]
    found = [predicted_kernel(kernel, case) for kernel in (forward + back if backward else forward)]
    if backward:
        found.append(predicted_kernel(Kernel('', 0, KEPT.get(case.part, 0)), case))
    moved, seconds = (sum(column) for column in zip(*found))
    return moved, seconds
