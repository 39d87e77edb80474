"""The segmentor that predicts very large images in strips."""

import pytest
import torch
from mmengine.config import Config
from processes import ROOT

pytest.importorskip('mmseg')

from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module', params=[False, True], ids=['edges', 'align_corners'])
def segmentor(request):
    register_all_modules(init_default_scope=True)
    model = Config.fromfile(ROOT / 'configs/sem_fpn_xcit_n6_8_digits.py').model
    model.decode_head.align_corners = request.param
    torch.manual_seed(0)
    segmentor = MODELS.build(model).eval()
    torch.nn.init.normal_(segmentor.decode_head.conv_seg.weight)  # many classes in every image
    return segmentor


def samples(original, image, padded):
    """Two data samples as the test pipeline and the preprocessor leave them: sizes are (height, width)."""
    padding = [0, padded[1] - image[1], 0, padded[0] - image[0]]
    meta = dict(ori_shape=original, img_shape=image, pad_shape=padded, img_padding_size=padding)
    return [SegDataSample(metainfo=dict(meta)) for _ in range(2)]


@pytest.mark.parametrize(
    'sizes',
    [
        ((97, 131), (97, 131), (97, 131)),
        ((97, 131), (64, 86), (64, 96)),
        ((50, 40), (64, 51), (70, 60)),
    ],
    ids=['as it is', 'enlarged', 'shrunk'],
)
def test_strips_give_the_classes_of_mmsegmentation(segmentor, sizes, monkeypatch):
    images = torch.randn(2, 3, *sizes[2], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = segmentor.predict(images, samples(*sizes))
        monkeypatch.setattr(segmentor, 'max_logits', 0)
        monkeypatch.setattr(segmentor, 'strip_logits', 11 * sizes[0][1] * 7)  # seven rows
        strips = segmentor.predict(images, samples(*sizes))
    for expected, found in zip(whole, strips):
        assert 'seg_logits' not in found
        assert found.pred_sem_seg.data.dtype == expected.pred_sem_seg.data.dtype
        assert found.pred_sem_seg.data.unique().numel() > 1
        best, second = expected.seg_logits.data.topk(2, dim=0).values
        decided = best - second > 1e-5
        assert decided.float().mean() > 0.99
        assert torch.equal(found.pred_sem_seg.data[0][decided], expected.pred_sem_seg.data[0][decided])


def test_what_needs_logits_gets_them(segmentor, monkeypatch):
    """Small images, and views of test-time augmentation."""
    size = (64, 64)
    with torch.no_grad():
        assert all('seg_logits' in s for s in segmentor.predict(torch.randn(2, 3, *size), samples(size, size, size)))
        monkeypatch.setattr(segmentor, 'max_logits', 0)
        flipped = samples(size, size, size)
        for sample in flipped:
            sample.set_metainfo(dict(flip=True, flip_direction='horizontal'))
        assert all('seg_logits' in s for s in segmentor.predict(torch.randn(2, 3, *size), flipped))
