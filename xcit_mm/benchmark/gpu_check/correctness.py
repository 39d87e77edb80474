"""Is everything right? Outputs and gradients beside the reference in fp32, a training step, operators, compilation."""

import copy
from typing import Iterator

import torch
from torch import Tensor

from ...models import SyncBN, XCiT
from ...ops import use
from ..contenders import OURS, build, make_image, random_weights, upstream
from ..settings import DTYPES, Setting
from .plan import Plan, record

# Largest difference over largest value, from the reference in fp32. Half precision has 11 and 8 significant bits.
LIMITS = {'fp32': 1e-5, 'fp16': 2e-2, 'bf16': 1e-1}
GRADIENT_LIMITS = {'fp32': 1e-4, 'fp16': 5e-2, 'bf16': 3e-1}


def difference(out: Tensor, reference: Tensor) -> float:
    reference = reference.float()
    return ((out.float() - reference).abs().max() / reference.abs().max()).item()


def models(plan: Plan, dtype: str, features: str, training: bool = False) -> tuple:
    """Two equal backbones, one of them in ``dtype``, and an image."""
    size = plan.small if features == 'cls' else tuple(max(64, side // 3) for side in plan.large)
    mode = 'training' if training else 'inference'
    setting = Setting(plan.arch, 8, size[0], size[1], 2, dtype, mode, features=features, device=plan.device)
    weights = random_weights(setting.arch, setting.patch_size)
    ours = build(OURS, setting, weights).to(plan.device).train(training)
    reference = copy.deepcopy(ours)
    return ours.to(DTYPES[dtype]), reference, make_image(setting)


def outputs(plan: Plan, dtype: str) -> Iterator[dict]:
    """Compare class token and map with the fp32 reference on this device, and that reference with the CPU's."""
    for features in ('cls', 'map'):
        ours, reference, image = models(plan, dtype, features)
        with use('reference'):
            expected = reference(image).detach()
        with torch.no_grad():
            yield record(f'{features}, {dtype}', difference(ours(image.to(DTYPES[dtype])), expected), LIMITS[dtype])
        if dtype == 'fp32' and features == 'cls':
            with torch.no_grad():
                on_cpu = copy.deepcopy(reference).cpu()(image.cpu())
            yield record('the reference, from the CPU', difference(expected.cpu(), on_cpu), LIMITS['fp32'])
    ours, reference, image = models(plan, dtype, 'map', training=True)
    images = image.clone().requires_grad_(), image.to(DTYPES[dtype]).requires_grad_()
    with use('reference'):
        expected = reference(images[0])
    grad = upstream(expected)  # of about 1, where fp16 has all its digits
    expected.backward(grad)
    out = ours(images[1])
    out.backward(grad.to(out.dtype))
    yield record(f'gradient of the image, {dtype}', difference(images[1].grad, images[0].grad), GRADIENT_LIMITS[dtype])


def training_step(plan: Plan) -> Iterator[dict]:
    """AdamW in mixed precision: the loss falls, and nothing is NaN or Inf."""
    dtype = torch.float16 if plan.device == 'cuda' else torch.bfloat16
    ours, _, image = models(plan, 'fp32', 'map', training=True)
    optimizer = torch.optim.AdamW(ours.parameters(), 1e-4)
    grad_scaler = getattr(torch.amp, 'GradScaler', torch.cuda.amp.GradScaler)  # before PyTorch 2.3 only the latter
    scaler = grad_scaler(enabled=plan.device == 'cuda')
    losses = []
    for _ in range(5):
        with torch.autocast(plan.device, dtype):
            loss = ours(image).float().square().mean()
        losses.append(loss.item())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    finite = all(parameter.isfinite().all() for parameter in ours.parameters())
    yield record('loss after five steps, over the first', losses[-1] / losses[0] if finite else float('nan'), 1.0)


def sync_bn(plan: Plan) -> Iterator[dict]:
    """SyncBN in a single process equals batch norm."""
    image = torch.randn(4, 8, 16, 16, device=plan.device)
    norms = SyncBN(8).to(plan.device), torch.nn.BatchNorm2d(8).to(plan.device)
    outs = [norm(image) for norm in norms]
    yield record('output', difference(*outs), 1e-6)
    yield record('running variance', difference(norms[0].running_var, norms[1].running_var), 1e-6)


def roi_align(plan: Plan) -> Iterator[dict]:
    """Compare mmcv's operator on a channels-last pyramid with torchvision's on a contiguous copy."""
    from mmcv.ops import RoIAlign
    from torchvision.ops import roi_align

    model = XCiT(plan.arch, 8, 'pyramid').to(plan.device, memory_format=torch.channels_last).eval()
    image = torch.randn(2, 3, 128, 160, device=plan.device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        maps = model(image)
    boxes = torch.tensor([[0, 8.0, 8, 80, 96], [1, 20, 0, 159, 127]], device=plan.device)
    for stride, x in zip((4, 8, 16, 32), maps):
        expected = roi_align(x.contiguous(), boxes, 7, 1 / stride, 2, aligned=True)
        yield record(f'stride {stride}', difference(RoIAlign(7, 1 / stride, 2)(x, boxes), expected), 1e-5)


def compiled(plan: Plan) -> Iterator[dict]:
    for dtype in ('fp32', plan.dtypes[0]):
        torch._dynamo.reset()
        ours, reference, image = models(plan, dtype, 'map')
        with use('reference'):
            expected = reference(image).detach()
        with torch.no_grad():
            out = torch.compile(ours)(image.to(DTYPES[dtype]))
        yield record(f'map, {dtype}', difference(out, expected), LIMITS[dtype])


def cuda_graph(plan: Plan) -> Iterator[dict]:
    """A CUDA graph, captured once, is right when replayed on another image."""
    ours, _, image = models(plan, plan.dtypes[0], 'map')
    image = image.to(DTYPES[plan.dtypes[0]])
    other = image.flip(0).contiguous()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                ours(image)
        torch.cuda.current_stream().wait_stream(stream)
        expected, graph = ours(other).clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = ours(image)
        image.copy_(other)
        graph.replay()
    yield record('replayed on another image', difference(out, expected), 1e-3)
