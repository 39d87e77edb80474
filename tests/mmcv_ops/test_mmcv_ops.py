"""mmcv's operators by torchvision and PyTorch.

They agree with compiled mmcv where it is installed, with stored outputs of it elsewhere, and with definitions where
mmcv has no CPU code.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmcv')
import mmcv.ops  # noqa: E402
from mmcv import _ext  # noqa: E402
from mmcv_operators import operators  # noqa: E402
from processes import ROOT  # noqa: E402

from xcit_mm.errors import UsageError  # noqa: E402
from xcit_mm.mmcv_ops import ext, rotated  # noqa: E402

COMPILED = not _ext.__file__.endswith('.py')
STORED = ROOT / 'tests/golden/mmcv_ops.npz'


class Random:
    """Inputs that are the same in every version of PyTorch."""

    def __init__(self):
        self.state = np.random.RandomState(0)

    def normal(self, *shape):
        return torch.from_numpy(self.state.standard_normal(shape).astype(np.float32))

    def uniform(self, *shape, high=1.0):
        return torch.from_numpy((self.state.random_sample(shape) * high).astype(np.float32))

    def boxes(self, n, size):
        corner = self.uniform(n, 2, high=size)
        return torch.cat([corner, corner + self.uniform(n, 2, high=size / 4)], 1)

    def rotated(self, n, size):
        return torch.cat([self.uniform(n, 2, high=size), self.uniform(n, 2, high=size / 4), 2 * self.normal(n, 1)], 1)

    def rois(self, boxes):
        return torch.cat([torch.from_numpy(self.state.randint(0, 2, (len(boxes), 1))).float(), boxes], 1)


def with_gradients(function, *inputs):
    """The output and the gradients by all inputs that are floating-point numbers."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = function(*inputs)
    grad = Random().normal(*output.shape).to(output)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


def nms(r, n, offset):
    return [mmcv.ops.nms(r.boxes(n, 1000 if n > 200 else 100), r.uniform(n), 0.5, offset)[1]]


def nms_degenerate(r):
    """No area, turned inside out, the same twice, equal scores, infinitely large."""
    boxes = r.boxes(40, 100)
    boxes[:5, 2:] = boxes[:5, :2]
    boxes[5:10] = boxes[5:10, [2, 3, 0, 1]]
    boxes[10:20] = boxes[20:30]
    boxes[39, 2:] = 1e30
    return [mmcv.ops.nms(boxes, (r.uniform(40) * 5).round(), 0.5)[1]]


def batched_nms(r, **cfg):
    labels = torch.from_numpy(r.state.randint(0, 3, 200))
    return list(mmcv.ops.batched_nms(r.boxes(200, 100), r.uniform(200), labels, dict(iou_threshold=0.4, **cfg)))


def soft_nms(r, method, n=200):
    scores = (r.uniform(n) * 50).round() / 50  # some are equal
    return list(mmcv.ops.soft_nms(r.boxes(n, 100), scores, 0.3, method=method))


def nms_match(r):
    groups = mmcv.ops.nms_match(torch.cat([r.boxes(200, 100), r.uniform(200, 1)], 1), 0.4)
    return [torch.cat(groups), torch.tensor([len(group) for group in groups])]


def roi_align(r, n, ratio, aligned, mode='avg'):
    """With RoIs without area and partly outside."""
    boxes = r.boxes(n, 80) - 8
    boxes[: n // 5, 2:] = boxes[: n // 5, :2]
    rois = r.rois(boxes)
    return with_gradients(
        lambda x: mmcv.ops.roi_align(x, rois, (3, 4), 0.125, ratio, mode, aligned), r.normal(2, 2, 10, 12)
    )


def roi_align_rotated(r, n, ratio, aligned, clockwise):
    boxes = torch.cat([r.uniform(n, 2, high=90) - 8, r.uniform(n, 2, high=60), 2 * r.normal(n, 1)], 1)
    boxes[: n // 6, 2] = 0
    rois = r.rois(boxes)
    return with_gradients(
        lambda x: mmcv.ops.roi_align_rotated(x, rois, (3, 4), 0.125, ratio, aligned, clockwise), r.normal(2, 2, 10, 12)
    )


def deform_conv(r, stride, padding, dilation, groups, deform_groups, step, modulated):
    x, weight = r.normal(2, 4, 7, 8), r.normal(8, 4 // groups, 3, 3)
    size = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    offset, geometry = 2 * r.normal(2, 18 * deform_groups, *size), (stride, padding, dilation, groups, deform_groups)
    if not modulated:
        return with_gradients(lambda *t: mmcv.ops.deform_conv2d(*t, *geometry, False, step), x, offset, weight)
    mask = r.uniform(2, 9 * deform_groups, *size)
    return with_gradients(
        lambda *t: mmcv.ops.modulated_deform_conv2d(*t, *geometry), x, offset, mask, weight, r.normal(8)
    )


def psa_mask(r, kind, size):
    return with_gradients(lambda x: mmcv.ops.PSAMask(kind, size)(x), r.normal(1, size[0] * size[1], 4, 3))


def box_iou_rotated(r, n, m, mode):
    return [mmcv.ops.box_iou_rotated(r.rotated(n, 100), r.rotated(m, 100), mode)]


def box_iou_rotated_degenerate(r):
    """Upright boxes that share edges and corners, the same ones, half and quarter turns, no area."""
    centres = torch.stack(torch.meshgrid(torch.arange(0, 60, 10.0), torch.arange(0, 60, 10.0), indexing='ij'), -1)
    upright = torch.cat([centres.view(-1, 2), torch.tensor([[20.0, 10.0, 0.0]]).expand(36, 3)], 1)
    boxes = r.rotated(30, 100)
    turned = [boxes + boxes.new_tensor([0, 0, 0, 0, angle]) for angle in (0, np.pi / 2, np.pi)]
    overlaps = [mmcv.ops.box_iou_rotated(boxes, other, aligned=True) for other in turned]
    flat = mmcv.ops.box_iou_rotated(boxes, boxes * boxes.new_tensor([1, 1, 0, 1, 1]))
    return [mmcv.ops.box_iou_rotated(upright, upright), *overlaps, flat]


def nms_rotated(r, n, threshold):
    return [mmcv.ops.nms_rotated(r.rotated(n, 1000 if n > 500 else 100), r.uniform(n), threshold)[1]]


# Each case: the function, its arguments, and how near the outputs are, relative to the largest; 0 for the same bits.
CASES = {
    **{f'nms {n} {offset}': (nms, (n, offset), 0) for n in (0, 1, 200, 3000, 20000) for offset in (0, 1)},
    'nms degenerate': (nms_degenerate, (), 0),
    'batched_nms': (batched_nms, (), 0),
    'soft_nms naive': (soft_nms, ('naive',), 0),
    'soft_nms linear': (soft_nms, ('linear',), 0),
    'soft_nms gaussian': (soft_nms, ('gaussian',), 1e-6),
    'soft_nms none': (soft_nms, ('linear', 0), 0),
    'soft_nms one': (soft_nms, ('linear', 1), 0),
    'nms_match': (nms_match, (), 0),
    **{
        f'roi_align {n} {ratio} {aligned}': (roi_align, (n, ratio, aligned), 0)
        for n in (0, 1, 20)
        for ratio in (0, 2)
        for aligned in (True, False)
    },
    'roi_align max': (roi_align, (20, 2, True, 'max'), 1e-6),
    'roi_align max dense': (roi_align, (20, 0, False, 'max'), 1e-6),
    **{
        f'roi_align_rotated {n} {ratio} {aligned} {clockwise}': (
            roi_align_rotated,
            (n, ratio, aligned, clockwise),
            2e-6,
        )
        for n, ratio, aligned, clockwise in ((0, 2, True, True), (20, 0, True, False), (20, 2, False, True))
    },
    **{
        f'deform_conv {number} {modulated}': (deform_conv, (*geometry, modulated), 1e-6)
        for number, geometry in enumerate(((1, 1, 1, 1, 1, 32), (2, 1, 1, 2, 2, 1), (1, 2, 2, 4, 1, 2)))
        for modulated in (False, True)
    },
    **{f'psa_mask {kind}': (psa_mask, (kind, (5, 7)), 0) for kind in ('collect', 'distribute')},
    **{
        f'box_iou_rotated {n} {m} {mode}': (box_iou_rotated, (n, m, mode), 1e-6)
        for n, m, mode in ((0, 5, 'iou'), (5, 0, 'iou'), (40, 50, 'iou'), (40, 50, 'iof'))
    },
    # Of boxes that are nearly the same, the compiled code itself is not nearer to the true value than this.
    'box_iou_rotated degenerate': (box_iou_rotated_degenerate, (), 5e-5),
    **{f'nms_rotated {n} {t}': (nms_rotated, (n, t), 0) for n, t in ((1, 0.5), (400, 0.0), (400, 0.1), (3000, 0.5))},
}


def outputs(name, module):
    function, arguments, _ = CASES[name]
    with operators(module):
        return [output.detach() for output in function(Random(), *arguments)]


@pytest.mark.parametrize('name', CASES)
def test_agreement_with_compiled_mmcv(name):
    """Forward and backward, through mmcv's own Python code; stored outputs may be of another processor."""
    tolerance = CASES[name][2]
    if COMPILED:
        expected = outputs(name, _ext)
    else:
        with np.load(STORED) as stored:
            expected = [torch.from_numpy(stored[f'{name}/{i}']) for i in range(int(stored[name]))]
        tolerance = max(tolerance, 1e-6)
    actual = outputs(name, ext)
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected):
        assert mine.shape == theirs.shape
        if tolerance and theirs.is_floating_point() and theirs.numel():
            assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()
        else:
            assert torch.equal(mine, theirs.to(mine.dtype))


def store():
    """Write the outputs of compiled mmcv: in this folder ``python -c "import test_mmcv_ops as t; t.store()"``."""
    arrays = {}
    for name in CASES:
        expected = outputs(name, _ext)
        arrays[name] = len(expected)
        for i, output in enumerate(expected):
            if not output.is_floating_point():
                output = output.to(torch.int16 if output.numel() and output.max() < 2**15 else torch.int32)
            arrays[f'{name}/{i}'] = output.numpy()
    np.savez_compressed(STORED, **arrays)


def by_definition(function, *inputs):
    """Gradients of a double-precision function, by PyTorch itself."""
    return with_gradients(function, *(x.double() for x in inputs))


def near(actual, expected, tolerance=1e-5):
    for mine, theirs in zip(actual, expected):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def run(function, *inputs):
    with operators(ext):
        return with_gradients(function, *inputs)


@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss(weighted):
    """With background (as many as there are classes) and logits at which probabilities are 0 and 1."""
    r = Random()
    logits, target = r.normal(50, 7) * 3, torch.from_numpy(r.state.randint(0, 8, 50))
    logits[0], logits[1] = 200.0, -200.0
    weight = r.uniform(7) if weighted else None

    def definition(x):
        p, own = x.sigmoid(), F.one_hot(target, 8)[:, :7].bool()
        tiny = torch.finfo(torch.float32).tiny
        positive = -0.25 * (1 - p) ** 2 * p.clamp(min=tiny).log()
        negative = -0.75 * p**2 * (1 - p).clamp(min=tiny).log()
        loss = torch.where(own, positive, negative)
        return loss if weight is None else loss * torch.cat([weight, torch.ones(1)])[target][:, None]

    actual = run(lambda x: mmcv.ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, 'none'), logits)
    expected = by_definition(definition, logits)
    actual[1][:2] = expected[1][:2] = 0  # where the probability is 0 or 1, the derivative is one of rounding
    near(actual, expected)


def test_softmax_focal_loss():
    r = Random()
    logits, target = r.normal(50, 7), torch.from_numpy(r.state.randint(0, 7, 50))
    target[:3] = -1  # to be ignored

    def definition(x):
        p = x.softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
        return (-0.25 * (1 - p) ** 2 * p.log() * (target >= 0)).sum()

    near(
        run(lambda x: mmcv.ops.softmax_focal_loss(x, target, 2.0, 0.25, None, 'sum'), logits),
        by_definition(definition, logits),
    )


def test_multi_scale_deformable_attention():
    """The autograd function that mmcv uses on GPUs, with samples outside, against the definition by grid_sample."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    r = Random()
    shapes = torch.tensor([[6, 4], [3, 2]])
    start = torch.tensor([0, 24])
    inputs = r.normal(2, 30, 4, 8), r.uniform(2, 5, 4, 2, 3, 2, high=1.4) - 0.2, r.uniform(2, 5, 4, 2, 3)
    actual = run(lambda v, p, a: MultiScaleDeformableAttnFunction.apply(v, shapes, start, p, a, 64), *inputs)
    near(actual, by_definition(lambda v, p, a: multi_scale_deformable_attn_pytorch(v, shapes, p, a), *inputs))


@pytest.mark.parametrize('kernel, padding', [(3, 1), (5, 2), (1, 0)])
def test_masked_convolution(kernel, padding):
    """The convolution where the mask is, zero elsewhere."""
    r = Random()
    x, mask = r.normal(1, 3, 7, 9), (r.uniform(1, 7, 9) > 0.6).float()
    layer = mmcv.ops.MaskedConv2d(3, 5, kernel, padding=padding)
    with operators(ext), torch.no_grad():
        near([layer(x, mask)], [F.conv2d(x, layer.weight, layer.bias, padding=padding) * mask[:, None]])
        assert not layer(x, torch.zeros_like(mask)).any()


def test_carafe():
    """Each output pixel is the weighted sum of the pixels around the one that it comes from."""
    r = Random()
    x, masks = r.normal(2, 6, 4, 3), r.normal(2, 2 * 9, 8, 6)

    def definition(x, masks):
        padded, rows = F.pad(x, (1, 1, 1, 1)), []
        for c in range(6):
            weights = masks[:, c // 3 * 9 : c // 3 * 9 + 9]
            windows = [padded[:, c, i : i + 4, j : j + 3] for i in range(3) for j in range(3)]
            rows.append(
                sum(w.repeat_interleave(2, 1).repeat_interleave(2, 2) * weights[:, k] for k, w in enumerate(windows))
            )
        return torch.stack(rows, 1)

    near(run(lambda *t: mmcv.ops.carafe(*t, 3, 2, 2), x, masks), by_definition(definition, x, masks))


def test_roi_pool():
    """The maximum of all pixels that a bin touches; RoIs outside and malformed ones give zeros."""
    r = Random()
    x, rois = r.normal(2, 3, 10, 12), r.rois(r.boxes(12, 80) - 8)
    rois[0, 1:] = torch.tensor([200.0, 200.0, 220.0, 220.0])
    rois[1, 1:] = torch.tensor([40.0, 40.0, 10.0, 10.0])

    def definition(x):
        out = []
        for image, x1, y1, x2, y2 in rois.double().tolist():
            x1, y1, width, height = x1 / 8, y1 / 8, (x2 + 1 - x1) / 8, (y2 + 1 - y1) / 8
            for i in range(3):
                for j in range(4):
                    top, bottom = np.floor(i * height / 3 + y1), np.ceil((i + 1) * height / 3 + y1)
                    left, right = np.floor(j * width / 4 + x1), np.ceil((j + 1) * width / 4 + x1)
                    (top, bottom), (left, right) = (
                        np.clip(e, 0, n).astype(int) for e, n in (((top, bottom), 10), ((left, right), 12))
                    )
                    bin = x[int(image), :, top:bottom, left:right].flatten(1)
                    empty = width <= 0 or height <= 0 or not bin.numel()
                    out.append(bin.new_zeros(3) if empty else bin.max(1)[0])
        return torch.stack(out).view(12, 3, 4, 3).permute(0, 3, 1, 2)

    near(run(lambda x: mmcv.ops.roi_pool(x, rois, (3, 4), 0.125), x), by_definition(definition, x))


@pytest.mark.parametrize('mode', [0, 1])
def test_bbox_overlaps(mode):
    r = Random()
    first, second = r.boxes(6, 50), r.boxes(9, 50)
    table, aligned = first.new_zeros(6, 9), first.new_zeros(6)
    ext.bbox_overlaps(first, second, table, mode, False, 0)
    ext.bbox_overlaps(first, second[:6], aligned, mode, True, 0)
    from torchvision.ops import box_area, box_iou

    iou = box_iou(first, second)
    inter = iou / (1 + iou) * (box_area(first)[:, None] + box_area(second))
    expected = inter / box_area(first)[:, None] if mode else iou
    near([table, aligned], [expected, expected.diag()])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    """Double precision is that; half precision is computed in float32, and loses only what its outputs lose."""
    r = Random()
    x, rois = r.normal(2, 4, 10, 12), r.rois(r.boxes(12, 80)).to(dtype)
    rotated_rois = r.rois(r.rotated(12, 80)).to(dtype)
    offset, mask, weight = r.normal(2, 18, 10, 12), r.uniform(2, 9, 10, 12), r.normal(4, 4, 3, 3)
    for function, inputs in (
        (lambda x: mmcv.ops.roi_align(x, rois.to(x), (3, 4), 0.125), [x]),
        (lambda x: mmcv.ops.roi_align_rotated(x, rotated_rois.to(x), (3, 4), 0.125), [x]),
        (lambda x: mmcv.ops.roi_pool(x, rois.to(x), (3, 4), 0.125), [x]),
        (lambda *t: mmcv.ops.deform_conv2d(*t, 1, 1), [x, offset, weight]),
        (lambda *t: mmcv.ops.modulated_deform_conv2d(*t, None, 1, 1), [x, offset, mask, weight]),
    ):
        inputs = [value.to(dtype) for value in inputs]
        expected = run(function, *(value.to(torch.promote_types(dtype, torch.float32)) for value in inputs))
        actual = run(function, *inputs)
        assert all(value.dtype == dtype for value in actual)
        for mine, theirs in zip(actual, expected):
            tolerance = 0 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
            assert (mine.to(theirs) - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize(
    'name', ['nms 200 0', 'roi_align 20 2 True', 'deform_conv 0 True', 'box_iou_rotated 40 50 iou']
)
def test_autocast_changes_nothing(name):
    with torch.autocast('cpu', torch.bfloat16):
        inside = outputs(name, ext)
    for mine, theirs in zip(inside, outputs(name, ext)):
        assert torch.equal(mine, theirs)


def test_deterministic_algorithms_are_no_error():
    torch.use_deterministic_algorithms(True)
    try:
        outputs('roi_align 20 2 True', ext)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_parts_make_no_difference(monkeypatch):
    """What is computed in parts for want of memory is what it is at once."""
    names = [
        'roi_align max dense',
        'roi_align_rotated 20 0 True False',
        'box_iou_rotated 40 50 iou',
        'nms_rotated 400 0.1',
    ]
    whole = [outputs(name, ext) for name in names]
    monkeypatch.setattr('xcit_mm.mmcv_ops.sampling.SAMPLES', 50)
    monkeypatch.setattr(rotated, 'PAIRS', 7)
    monkeypatch.setattr(rotated, 'BLOCK', 13)
    for name, expected in zip(names, whole):
        for mine, theirs in zip(outputs(name, ext), expected):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_rotated_labels_do_not_suppress_each_other():
    box = torch.tensor([[10.0, 10, 8, 4, 0.3]]).repeat(3, 1)
    with operators(ext):
        kept = mmcv.ops.nms_rotated(box, torch.tensor([0.5, 0.9, 0.7]), 0.5, torch.tensor([0, 1, 0]))[1]
    assert kept.tolist() == [1, 2]


def test_channels_last_maps_are_read_right():
    """The compiled operators read memory as if it were contiguous."""
    x, rois = Random().normal(2, 3, 10, 12), torch.tensor([[1.0, 4, 4, 40, 50]])
    with operators(ext):
        expected = mmcv.ops.roi_align(x, rois, (3, 4), 0.125)
        assert torch.equal(
            mmcv.ops.roi_align(x.contiguous(memory_format=torch.channels_last), rois, (3, 4), 0.125), expected
        )


def test_missing_operator_is_named_when_it_is_called():
    expected = 'operator prroi_pool_forward.*MMCV_WITH_OPS=1 pip install'
    with operators(ext), pytest.raises(UsageError, match=expected):
        mmcv.ops.prroi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), (2, 2), 1.0)
    with pytest.raises(AttributeError):
        ext.__path__  # noqa: B018
    assert 'torchvision' in ext.get_compiler_version()
