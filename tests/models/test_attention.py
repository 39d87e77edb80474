"""XCA and class attention: the fast forms against the paper's formulas."""

import pytest
import torch
import torch.nn.functional as F
from backbones import deviation, randomise

from xcit_mm.models import XCA, ClassAttention, attention


def gradients(module, output, *inputs):
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    return torch.autograd.grad((output * weight).sum(), [*inputs, *module.parameters()])


@pytest.mark.parametrize('shape, heads', [((2, 300, 64), 4), ((1, 35, 32), 8), ((3, 7, 48), 2)])
def test_xca_forms_agree_in_output_and_gradients(shape, heads):
    xca = randomise(XCA(shape[-1], heads))
    x = torch.randn(shape, requires_grad=True)
    token, covariance = xca.token_form(x), xca.covariance_form(x)
    assert deviation(covariance, token) < 1e-5
    for a, b in zip(gradients(xca, covariance, x), gradients(xca, token, x)):
        assert deviation(a, b) < 1e-4


def test_xca_forms_draw_the_same_attention_dropout():
    xca = randomise(XCA(32, 4, attn_drop=0.5)).train()
    x = torch.randn(2, 80, 32)
    torch.manual_seed(0)
    token = xca.token_form(x)
    torch.manual_seed(0)
    assert deviation(xca.covariance_form(x), token) < 1e-5
    assert deviation(xca.covariance_form(x), token) > 0.01


def test_xca_keeps_its_digits_where_the_tokens_have_a_large_common_part():
    """Second moments about zero lose digits to a mean; the layer norm before XCA bounds how far it can go."""
    xca = randomise(XCA(64, 4))
    x = F.layer_norm(torch.randn(1, 2000, 64) + 5 * torch.randn(64), (64,))
    exact = XCA.token_form(xca.double(), x.double())
    assert deviation(xca.float().covariance_form(x).double(), exact) < 1e-5


def test_xca_in_half_precision_does_not_overflow():
    """Sums over many tokens pass fp16's largest value (65504) by far."""
    xca = randomise(XCA(16, 2))
    x = 3 * torch.randn(1, 40000, 16)
    assert (x.square().sum(1) > 65504).all()
    exact = xca.covariance_form(x)
    # PyTorch before 2.4 has no autocast to fp16 on the CPU.
    for dtype in (torch.bfloat16, *([torch.float16] if hasattr(torch, 'get_autocast_dtype') else [])):
        with torch.autocast('cpu', dtype):
            half = xca.covariance_form(x.to(dtype))
        assert half.dtype == dtype
        assert deviation(half.float(), exact) < 0.02


def test_class_attention_is_the_attention_of_the_class_token():
    module = randomise(ClassAttention(48, 6))
    cls_token, tokens = torch.randn(2, 1, 48), torch.randn(2, 50, 48)
    everything = torch.cat([cls_token, tokens], dim=1)
    q, k, v = module.qkv(everything).view(2, 51, 3, 6, 8).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q[:, :, :1], k, v)
    expected = module.proj(expected.transpose(1, 2).reshape(2, 1, 48))
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


def forms_taken(attn, monkeypatch):
    """The forms that a layer takes from now on, in order."""
    taken = []
    for form in ('token_form', 'covariance_form'):
        run = getattr(attn, form)
        monkeypatch.setattr(attn, form, lambda x, run=run, form=form: taken.append(form) or run(x))
    return taken


@pytest.mark.parametrize('tiles', [False, True])
def test_the_form_depends_on_tokens_channels_and_fast_half_precision(tiles, monkeypatch):
    monkeypatch.setattr(attention, 'HAS_TILES', tiles)
    monkeypatch.setitem(attention.LEAST_VALUES, 'cpu', 0)
    attn = attention.XCA(16, 2)
    taken = forms_taken(attn, monkeypatch)
    outputs = []
    for tokens, dtype in ((31, torch.float32), (32, torch.float32), (63, torch.bfloat16), (64, torch.bfloat16)):
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs.append(attn(torch.randn(1, tokens, 16)))
    assert taken == ['token_form', 'covariance_form', 'token_form' if tiles else 'covariance_form', 'covariance_form']
    assert [out.shape[1] for out in outputs] == [31, 32, 63, 64]


def test_few_small_images_are_not_worth_the_covariance_form(monkeypatch):
    attn = attention.XCA(128, 4)
    taken = forms_taken(attn, monkeypatch)
    images = torch.randn(5, 512, 128)
    alone = attn(images[:1])
    together = attn(images)
    assert taken == ['token_form', 'covariance_form']
    assert (together[:1] - alone).abs().max() < 1e-5 * alone.abs().max()
