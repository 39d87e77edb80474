"""Batch norm over several CPU processes equals batch norm over the whole batch."""

import torch
from backbones import build
from processes import run_group
from torch import nn

from xcit_mm.models import SyncBN


def _process(rank, world, folder):
    norm = SyncBN(6)
    norm.load_state_dict(torch.load(f'{folder}/norm.pth', weights_only=True))
    # Unequal shares: the last process has the larger part.
    x = torch.load(f'{folder}/x.pth', weights_only=True)
    x = (x[:2] if rank == 0 else x[2:]).requires_grad_()
    out = norm(x)
    (out.sin() * out).sum().backward()
    content = dict(out=out.detach(), grad=x.grad, weight=norm.weight.grad, bias=norm.bias.grad, state=norm.state_dict())
    torch.save(content, f'{folder}/{rank}.pth')
    norm.eval()(x)  # evaluation needs no other process


def test_two_processes_equal_one(tmp_path):
    torch.manual_seed(0)
    reference = nn.BatchNorm2d(6)
    nn.init.normal_(reference.weight)
    nn.init.normal_(reference.bias)
    torch.save(reference.state_dict(), tmp_path / 'norm.pth')
    x = 3 * torch.randn(5, 6, 4, 7) + 20
    torch.save(x, tmp_path / 'x.pth')
    run_group(_process, tmp_path)
    parts = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1)]

    x.requires_grad_()
    out = reference(x)
    (out.sin() * out).sum().backward()
    close = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([p['out'] for p in parts]), out, **close)
    torch.testing.assert_close(torch.cat([p['grad'] for p in parts]), x.grad, **close)
    for name in ('weight', 'bias'):
        torch.testing.assert_close(sum(p[name] for p in parts), getattr(reference, name).grad, rtol=1e-4, atol=1e-4)
    for part in parts:
        torch.testing.assert_close(part['state'], reference.state_dict(), **close)


def test_alone_it_is_pytorchs(tiny):
    torch.manual_seed(0)
    ours = build(arch=tiny, bn_norm_cfg=dict(type='xcit_mm.SyncBN')).train()
    assert any(isinstance(m, SyncBN) for m in ours.modules())
    plain = build(arch=tiny).train()
    plain.load_state_dict(ours.state_dict())
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(image)[0], plain(image)[0])
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())
