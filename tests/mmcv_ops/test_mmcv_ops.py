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


def corners(boxes):
    """The quadrilaterals (N, 8) that are rotated boxes (N, 5)."""
    return rotated.Rotated(boxes).corners(torch.zeros(2)).flatten(1)


def box_iou_quadri(r, n, m, mode, aligned=False):
    return [mmcv.ops.box_iou_quadri(corners(r.rotated(n, 100)), corners(r.rotated(m, 100)), mode, aligned)]


def nms_quadri(r, n, threshold):
    return [mmcv.ops.nms_quadri(corners(r.rotated(n, 100)), r.uniform(n), threshold)[1]]


def rotated_feature_align(r, points):
    """With boxes outside; the names in mmcv's documentation are not what it does: y comes before x."""
    boxes = r.rotated(2 * 5 * 6, 40).view(2, 5, 6, 5) - 4
    return with_gradients(lambda x: mmcv.ops.rotated_feature_align(x, boxes, 0.125, points), r.normal(2, 3, 5, 6))


def active_rotated_filter(r):
    indices = np.stack([r.state.permutation(18).reshape(2, 3, 3) + 1 for _ in range(4)], -1)
    indices = torch.from_numpy(indices).int()
    return with_gradients(lambda x: mmcv.ops.active_rotated_filter(x, indices), r.normal(5, 3, 2, 3, 3))


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
    **{
        f'box_iou_quadri {n} {m} {mode}': (box_iou_quadri, (n, m, mode, n == m), 2e-6)
        for n, m, mode in ((0, 5, 'iou'), (40, 50, 'iou'), (40, 40, 'iof'))
    },
    **{f'nms_quadri {t}': (nms_quadri, (400, t), 0) for t in (0.0, 0.3)},
    **{f'rotated_feature_align {points}': (rotated_feature_align, (points,), 1e-6) for points in (1, 5)},
    'active_rotated_filter': (active_rotated_filter, (), 0),
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
    """Write the outputs of compiled mmcv.

    In this folder: ``PYTHONPATH=../helpers python -c "import test_mmcv_ops as t; t.store()"``.
    """
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


@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool(ratio):
    """RoIAlign of the RoI moved for each bin; the gradients are its differences."""
    r = Random()
    x, rois = r.normal(2, 3, 10, 12).double(), r.rois(r.boxes(6, 60) + 8).double()
    offset = r.normal(6, 2, 3, 4).double()
    extent = (rois[:, 3:] - rois[:, 1:3])[..., None, None] * 0.1

    def definition(x):
        bins = []
        for row, column in np.ndindex(3, 4):
            moved = rois.clone()
            moved[:, 1:] += (offset * extent)[:, :, row, column].repeat(1, 2)
            bins.append(mmcv.ops.roi_align(x, moved, (3, 4), 0.125, ratio)[:, :, row, column])
        return torch.stack(bins, 2).view(6, 3, 3, 4)

    def pool(x, offset):
        return mmcv.ops.deform_roi_pool(x, rois, offset, (3, 4), 0.125, ratio, 0.1)

    near(run(lambda x: pool(x, offset), x), run(definition, x), 1e-6)
    with operators(ext):
        assert torch.allclose(pool(x, None), mmcv.ops.roi_align(x, rois, (3, 4), 0.125, ratio))
        torch.autograd.gradcheck(lambda offset: pool(x, offset), offset.requires_grad_())


@pytest.mark.parametrize('clockwise', [False, True])
def test_riroi_align_rotated(clockwise):
    """Rotated RoIAlign whose orientations are rolled by whole steps of the angle and interpolated between them."""
    r = Random()
    x, rois = r.normal(2, 2 * 8, 10, 12), r.rois(r.rotated(20, 80))

    def definition(x):
        pooled = mmcv.ops.roi_align_rotated(x, rois, (3, 4), 0.125, 2, False, clockwise).view(20, 2, 8, 3, 4)
        steps = rois[:, 5].double() * 8 / (2 * np.pi)
        rows = []
        for row, step in zip(pooled, steps.tolist()):
            whole = int(np.floor(step))
            rows.append(row.roll(whole, 1) * (whole + 1 - step) + row.roll(whole - 1, 1) * (step - whole))
        return torch.stack(rows).view(20, 16, 3, 4)

    near(run(lambda x: mmcv.ops.riroi_align_rotated(x, rois, (3, 4), 0.125, 2, 8, clockwise), x), run(definition, x))


def clip(subject, convex):
    """Area of a polygon within a convex one, both counterclockwise (Sutherland and Hodgman, 1974)."""

    def side(a, b, p):
        return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])

    for a, b in zip(convex, np.roll(convex, -1, 0)):
        kept = []
        for p, q in zip(subject, subject[1:] + subject[:1]):
            s, t = side(a, b, p), side(a, b, q)
            kept += [p] if s >= 0 else []
            kept += [p + (q - p) * s / (s - t)] if (s >= 0) != (t >= 0) else []
        subject = kept
    return sum(p[0] * q[1] - p[1] * q[0] for p, q in zip(subject, subject[1:] + subject[:1])) / 2


def point_sets(r, n):
    """Point sets (N, 18) in double precision, and convex polygons (N, 8): random, and those of which points are the
    same, in a row, or on the polygon."""
    polygons = corners(r.rotated(n, 40)).double()
    points = (polygons.view(n, 4, 2).mean(1, keepdim=True) + 5 * r.normal(n, 9, 2)).double()
    points[0, 5:] = points[0, 4]
    points[1, 3:8, 1] = points[1, 3:8, 0] = torch.arange(5).double()
    points[2, :4] = polygons[2].view(4, 2)
    points[2, 4:] = polygons[2].view(4, 2).mean(0)
    points[3] = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    return points.flatten(1), polygons


def hulls(points):
    from scipy.spatial import ConvexHull

    return [list(p[ConvexHull(p).vertices]) for p in points.view(-1, 9, 2).numpy()]


def test_convex_iou():
    points, polygons = point_sets(Random(), 12)
    with operators(ext):
        actual = mmcv.ops.convex_iou(points, polygons)
        generalized, gradient = mmcv.ops.convex_giou(points, polygons)
        nothing = mmcv.ops.convex_iou(torch.ones(1, 18), polygons.float())
    quads = [list(quad) for quad in polygons.view(-1, 4, 2).numpy()]

    def area(polygon):
        return clip(polygon, polygon)

    inter = np.array([[clip(hull, quad) for quad in quads] for hull in hulls(points)])
    union = np.array([area(hull) for hull in hulls(points)])[:, None] + [area(quad) for quad in quads] - inter
    near([actual], [torch.from_numpy(inter / union)], 1e-9)
    assert actual[2, 2] == pytest.approx(1) and not nothing.any()

    from scipy.spatial import ConvexHull

    enclosing = [ConvexHull(np.concatenate([p.reshape(9, 2), q])).volume for p, q in zip(points.numpy(), quads)]
    near([generalized], [torch.from_numpy((inter / union).diagonal() - 1 + union.diagonal() / enclosing)], 1e-9)

    smooth = slice(4, None)  # the others have corners at which there is no derivative

    def changed(i, step):
        moved = points[smooth].clone()
        moved[:, i] += step
        with operators(ext):
            return mmcv.ops.convex_giou(moved, polygons[smooth])[0]

    numeric = torch.stack([(changed(i, 1e-5) - changed(i, -1e-5)) / 2e-5 for i in range(18)], 1)
    near([gradient[smooth]], [numeric], 1e-6)
    assert torch.isfinite(gradient).all()


def test_overlaps_of_quadrilaterals_that_are_no_rectangles():
    """Exact, where mmcv's code takes them for rectangles; once each is its own, and a corner of one on an edge."""
    quads = torch.tensor([[0.0, 0, 8, 0, 6, 5, 1, 3], [0, 0, 4, -2, 9, 1, 3, 6], [2, 0, 6, 0, 5, 2, 3, 2]])
    with operators(ext):
        actual = mmcv.ops.box_iou_quadri(quads, quads, 'iof')
    polygons = [list(quad) for quad in quads.view(-1, 4, 2).double().numpy()]
    expected = [[clip(p, q) / clip(p, p) for q in polygons] for p in polygons]
    near([actual], [torch.tensor(expected)], 1e-6)


def test_min_area_polygons():
    """Around all points, and as small as the smallest of rectangles in 20,000 directions."""
    points, _ = point_sets(Random(), 12)
    with operators(ext):
        actual = mmcv.ops.min_area_polygons(points).view(-1, 4, 2)
    sides = actual.roll(-1, 1) - actual
    extent = sides.norm(dim=2)
    assert ((sides * sides.roll(-1, 1)).sum(2).abs() < 1e-9).all()  # right angles
    angle = torch.linspace(0, np.pi / 2, 20001).double()
    axes = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    along = torch.einsum('dax,npx->ndap', axes, points.view(-1, 9, 2))
    areas = (along.amax(3) - along.amin(3)).prod(2).amin(1)
    area = extent[:, 0] * extent[:, 1]
    assert (area <= areas * (1 + 1e-9)).all() and (area >= areas * (1 - 1e-3)).all()
    for rectangle, own in zip(actual, points.view(-1, 9, 2)):
        local = (own - rectangle[0]) @ torch.stack([rectangle[1] - rectangle[0], rectangle[3] - rectangle[0]], 1)
        assert (local >= -1e-9).all() and (local <= extent[0, 0] * 1e9).all()


def test_points_in_polygons():
    r = Random()
    points, boxes = r.uniform(200, 2, high=40), r.rotated(7, 40)
    with operators(ext):
        actual = mmcv.ops.points_in_polygons(points, corners(boxes))
    ways, angle = points[:, None] - boxes[:, :2], boxes[:, 4]
    along = ways[..., 0] * angle.cos() + ways[..., 1] * angle.sin()
    across = ways[..., 1] * angle.cos() - ways[..., 0] * angle.sin()
    expected = (along.abs() < boxes[:, 2] / 2) & (across.abs() < boxes[:, 3] / 2)
    assert torch.equal(actual, expected.float()) and expected.any()


def test_chamfer_distance():
    r = Random()
    first, second = r.normal(3, 8, 2), r.normal(3, 8, 2)

    def definition(first, second):
        distances = (first[:, :, None] - second[:, None]).square().sum(3)
        return torch.stack([distances.amin(2), distances.amin(1)])

    near(
        run(lambda *t: torch.stack(mmcv.ops.chamfer_distance(*t)[:2]), first, second),
        by_definition(definition, first, second),
    )


def test_differentiable_iou_of_rotated_boxes():
    """The IoU, its gradients, and boxes that are the same, nearly the same and apart."""
    r = Random()
    first, second = r.rotated(40, 30).double(), r.rotated(40, 30).double()
    first[:3] = second[:3]
    first[1, 4] += 1e-7
    first[3, 0] += 500
    with operators(ext):
        actual = mmcv.ops.diff_iou_rotated_2d(first[None], second[None])[0]
        near([actual], [mmcv.ops.box_iou_rotated(first, second, aligned=True)], 1e-4)
        smooth = [boxes[None, 4:].requires_grad_() for boxes in (first, second)]
        torch.autograd.gradcheck(mmcv.ops.diff_iou_rotated_2d, smooth)


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
