"""torch.compile takes the backbone as one graph, for any size, in inference, training and autocast."""

import pytest
import torch
from backbones import build, deviation, randomise

pytestmark = [
    pytest.mark.usefixtures('one_thread'),
    pytest.mark.skipif(not hasattr(torch.compiler, 'is_compiling'), reason='no torch.compiler.is_compiling'),
]


@pytest.mark.parametrize('mode', ['inference', 'training', pytest.param('autocast', marks=pytest.mark.slow)])
def test_one_graph_for_any_size(tiny, mode):
    net = randomise(build(arch=dict(tiny, depth=2), patch_size=8, out_type='featmap')).train(mode == 'training')
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=count)
    # 48 tokens: the token form of XCA; 192 and 77: the covariance form.
    for size in ((48, 64), (96, 128), (57, 83)):
        image = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.set_grad_enabled(mode == 'training'), torch.autocast('cpu', enabled=mode == 'autocast'):
            outs, expected = compiled(image), net(image)
        bar = 2e-2 if mode == 'autocast' else 1e-5
        assert all(deviation(a.float(), b.float()) < bar for a, b in zip(outs, expected))
    # In inference one for each form of XCA; fewer tokens than 128 in all would be a third.
    assert len(graphs) == (1 if mode == 'training' else 2)
