"""XCA and class attention against other implementations of the papers' formulas."""

import timm
import torch
import torch.nn.functional as F
from backbones import deviation, randomise

from xcit_mm import ops
from xcit_mm.models import XCA, ClassAttention


def test_class_attention_is_the_attention_of_the_class_token():
    module = randomise(ClassAttention(48, 6))
    cls_token, tokens = torch.randn(2, 1, 48), torch.randn(2, 50, 48)
    everything = torch.cat([cls_token, tokens], dim=1)
    q, k, v = module.qkv(everything).view(2, 51, 3, 6, 8).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q[:, :, :1], k, v)
    expected = module.proj(expected.transpose(1, 2).reshape(2, 1, 48))
    for mode in ops.MODES:
        with ops.use(mode):
            assert deviation(module(cls_token, tokens), expected) < 1e-5
    weights = module.attention(cls_token, tokens)
    assert weights.shape == (2, 6, 51)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6))


def test_class_attention_dropout_weighs_the_value_bias():
    module = randomise(ClassAttention(16, 2, attn_drop=0.5)).train()
    cls_token, tokens = torch.randn(1, 1, 16), torch.randn(1, 9, 16)
    torch.manual_seed(1)
    ours = module(cls_token, tokens)
    everything = torch.cat([cls_token, tokens], dim=1)
    torch.manual_seed(1)
    weights = module.attn_drop(module.attention(cls_token, tokens))
    v = F.linear(everything, module.qkv.weight[32:], module.qkv.bias[32:]).view(1, 10, 2, 8).transpose(1, 2)
    expected = module.proj((weights.unsqueeze(2) @ v).transpose(1, 2).reshape(1, 1, 16))
    assert deviation(ours, expected) < 1e-5


def test_xca_is_that_of_timm():
    xca = randomise(XCA(64, 4))
    theirs = timm.models.xcit.XCA(64, num_heads=4, qkv_bias=True).eval()
    theirs.load_state_dict(xca.state_dict())
    x = torch.randn(2, 50, 64)
    assert deviation(xca(x), theirs(x)) < 1e-6
