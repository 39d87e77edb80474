"""The paper's ablations: each takes out what it says and nothing else, and each trains."""

import pytest
import torch
import torch.nn.functional as F
from backbones import build, deviation, randomise
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from processes import ROOT
from torch import nn

from xcit_mm.published import read_table

C, DEPTH, HEADS = 384, 12, 8
LPI = 2 * (9 * C + C) + 2 * C  # two depthwise 3x3 with biases, and a batch norm
XCA = 3 * C * C + 3 * C + C * C + C + HEADS
NORM_AND_SCALE = 3 * C
STEM_16 = 9 * (3 * 48 + 48 * 96 + 96 * 192 + 192 * 384) + 2 * (48 + 96 + 192 + 384)
STEM_8 = 9 * (3 * 96 + 96 * 192 + 192 * 384) + 2 * (96 + 192 + 384)
ABLATIONS = {  # name of the config: parameters taken out, the paper's name of it
    's12_16_linear_patches': (STEM_16 - (3 * 16 * 16 * C + C), 'linear patch projection'),
    's12_8_linear_patches': (STEM_8 - (3 * 8 * 8 * C + C), 'linear patch projection'),
    's12_16_no_lpi': (DEPTH * (LPI + NORM_AND_SCALE), 'without LPI'),
    's12_16_no_xca': (DEPTH * (XCA + NORM_AND_SCALE), 'without XCA'),
    's12_16_no_l2_norm': (0, 'without l2 normalisation'),
    's12_16_no_temperature': (DEPTH * HEADS, 'without learned temperature'),
}
SMALL = dict(embed_dims=32, depth=2, num_heads=4)


def config(name):
    return Config.fromfile(ROOT / f'configs/ablation_xcit_{name}_in1k.py')


def count(cfg):
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmpretrain'):
        return sum(p.numel() for p in MODELS.build(cfg.model).parameters())


@pytest.mark.parametrize('name', ABLATIONS)
def test_each_config_changes_only_what_it_says(name):
    cfg = config(name)
    arch_and_patch = '_'.join(name.split('_')[:2])
    baseline = Config.fromfile(ROOT / f'configs/xcit_{arch_and_patch}_in1k.py')
    assert count(baseline) - count(cfg) == ABLATIONS[name][0]
    ours, theirs = cfg.to_dict(), baseline.to_dict()
    published = theirs['model']['backbone']
    switches = [(key, value) for key, value in ours['model']['backbone'].items() if published.get(key) != value]
    assert len(switches) == 2 and ('type', 'xcit_mm.AblatedXCiT') in switches
    ours['model']['backbone'] = published
    assert ours == theirs


@pytest.mark.parametrize('name', ABLATIONS)
def test_each_config_names_the_published_result(name):
    arch, patch = name.split('_')[:2]
    (row,) = (
        row
        for row in read_table('paper_table4_ablations')
        if (row['model'], row['ablation']) == (f'XCiT-{arch.upper()}/{patch}', ABLATIONS[name][1])
    )
    text = (ROOT / f'configs/ablation_xcit_{name}_in1k.py').read_text()
    assert f'top-1 {row["top1"]} %' in text if row['top1'] else 'the training failed' in text


@pytest.mark.parametrize('name', ABLATIONS)
def test_each_trains(name, one_thread):
    cfg = config(name)
    torch.manual_seed(0)
    backbone = MODELS.build(dict(cfg.model.backbone, arch=SMALL))
    head = nn.Linear(32, 2)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    images, labels = torch.randn(8, 3, 40, 56), torch.arange(8) % 2
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(head(backbone(images)[0]), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize('out_type', ['cls_token', 'pyramid'])
def test_nothing_taken_out_is_xcit(out_type):
    whole = randomise(build(arch=SMALL, patch_size=8, out_type=out_type))
    ours = MODELS.build(dict(type='xcit_mm.AblatedXCiT', arch=SMALL, patch_size=8, out_type=out_type)).eval()
    ours.load_state_dict(whole.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(ours(images), whole(images)))


@pytest.mark.parametrize(
    'options, zeroed', [(dict(lpi=False), 'gamma3'), (dict(xca=False), 'gamma1')], ids=['LPI', 'XCA']
)
def test_a_missing_part_is_one_that_adds_nothing(options, zeroed):
    whole = randomise(build(arch=SMALL, patch_size=8))
    for block in whole.blocks:
        nn.init.zeros_(getattr(block, zeroed))
    ours = MODELS.build(dict(type='xcit_mm.AblatedXCiT', arch=SMALL, patch_size=8, **options)).eval()
    kept = ours.state_dict().keys()
    ours.load_state_dict({key: value for key, value in whole.state_dict().items() if key in kept})
    images = torch.randn(2, 3, 48, 64)
    assert deviation(ours(images)[0], whole(images)[0]) < 1e-5


def test_without_l2_norm_the_attention_is_that_of_raw_queries_and_keys():
    backbone = randomise(MODELS.build(dict(type='xcit_mm.AblatedXCiT', arch=SMALL, patch_size=8, l2_norm=False)))
    attn = backbone.blocks[0].attn
    x = torch.randn(1, 100, 32) / 10
    q, k, v = attn.qkv(x)[0].T.reshape(3, 4, 8, 100)
    expected = ((attn.temperature * (q @ k.transpose(1, 2))).softmax(-1) @ v).reshape(32, 100).T @ attn.proj.weight.T
    torch.testing.assert_close(attn(x)[0], expected + attn.proj.bias, rtol=1e-4, atol=1e-5)


def test_a_temperature_that_is_not_learned_is_one():
    backbone = MODELS.build(dict(type='xcit_mm.AblatedXCiT', arch=SMALL, learned_temperature=False))
    assert all((block.attn.temperature == 1).all() for block in backbone.blocks)
    assert not any('temperature' in key for key in backbone.state_dict())


def test_what_is_not_possible_is_named():
    with pytest.raises(ValueError, match="patch_projection must be 'convolutional' or 'linear', got 'mlp'"):
        MODELS.build(dict(type='xcit_mm.AblatedXCiT', arch=SMALL, patch_projection='mlp'))
    with pytest.raises(ValueError, match='with xca=False there is no l2_norm'):
        MODELS.build(dict(type='xcit_mm.AblatedXCiT', arch=SMALL, xca=False, l2_norm=False))
