"""tools/resolution_study.py as a user runs it: sizes, peers, what is written, going on."""

import csv

import numpy as np
import pytest
import torch
from backbones import build, randomise
from PIL import Image
from processes import ROOT, run

from xcit_mm.datasets.digits import FOLDERS

CONFIG = ROOT / 'configs/xcit_n12_8_digits.py'
ARCH = dict(embed_dims=32, depth=1, num_heads=4)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in FOLDERS:
            (tmp_path / 'images' / split / name).mkdir(parents=True)
            picture = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / 'images' / split / name / '0.png')
    return tmp_path / 'images'


def checkpoint(path, seed):
    backbone = randomise(build(arch=ARCH, patch_size=8), seed)
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    state.update({'head.fc.weight': torch.randn(10, 32, generator=generator), 'head.fc.bias': torch.zeros(10)})
    torch.save(dict(state_dict=state), path)
    return path


def test_sizes_and_peers_are_tested_and_drawn(data, tmp_path):
    ours, peers = (checkpoint(tmp_path / name, seed) for seed, name in enumerate(('ours.pth', 'peer.pth')))
    for name in ('ours.py', 'peer.py'):
        (tmp_path / name).write_text(
            f"_base_ = '{CONFIG}'\n"
            f'model = dict(backbone=dict(_delete_=True, type="xcit_mm.XCiT", arch={ARCH}, patch_size=8), '
            f'head=dict(in_channels=32))\n'
        )
    arguments = ['ours.py', ours, '--data-root', data, '--peer', 'peer.py', peers, '--work-dir', 'study']
    arguments += ['--cfg-options', 'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    log = run('resolution_study.py', *arguments, '--sizes', 32, 48, cwd=tmp_path)
    rows = list(csv.DictReader((tmp_path / 'study/results.csv').read_text().splitlines()))
    assert [(r['model'], r['size']) for r in rows] == [(m, s) for m in ('ours', 'peer') for s in ('32', '48')]
    assert all(0 <= float(r['top1']) <= 100 for r in rows) and 'ours at 48: top-1' in log
    assert (tmp_path / 'study/resolution.png').stat().st_size > 10000

    (tmp_path / 'more').mkdir()
    text = (tmp_path / 'peer.py').read_text()
    (tmp_path / 'more/peer.py').write_text(f'{text}test_evaluator = dict(topk=(2,))\n')  # which gives no top-1
    arguments += ['--peer', 'more/peer.py', peers]
    log = run('resolution_study.py', *arguments, '--sizes', 48, '--resume', cwd=tmp_path, ok=False)
    assert log.count('from an earlier call') == 2
    assert '1 of the tests failed' in log and "more_peer at 48: the test gives no 'accuracy/top1'" in log
    assert len((tmp_path / 'study/results.csv').read_text().splitlines()) == 5
