"""Weights or optimizer state divided between processes by FSDP and DeepSpeed, through MMEngine, on the CPU."""

import os

import pytest
import torch
from mmengine.config import Config
from processes import ROOT, run, run_group
from shared_batches import BATCH, deviations, make_cfg, train_and_test
from small_runs import small_cfg

from xcit_mm.engine.setup import adapt_to_device, build_runner

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.slow]


def member(rank, world, folder, resume):
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world))
    cfg = Config.fromfile(f'{folder}/fsdp.py')
    cfg.resume = resume
    if not resume:
        cfg.train_cfg.max_iters = 2
        cfg.train_cfg.val_interval = 2
    adapt_to_device(cfg)
    runner = build_runner(cfg)
    runner.train()
    # Each process holds its part alone of what lies in the blocks.
    blocks = [p.numel() for name, p in runner.model.named_parameters() if '.blocks.' in name]
    torch.save(sum(blocks), f'{folder}/held_{rank}.pth')


@pytest.mark.skipif(not hasattr(torch.cpu, 'current_device'), reason="this PyTorch's FSDP needs an accelerator")
def test_divided_weights_are_trained_saved_and_resumed_as_whole_ones(small_models, small_digits, tmp_path):
    cfg = make_cfg('semantic_fpn', small_models, small_digits, tmp_path / 'one', seed=0)
    cfg.default_hooks.checkpoint.interval = 1
    divided = Config({**cfg.to_dict(), 'work_dir': str(tmp_path / 'divided'), 'launcher': 'pytorch'})
    train_and_test(cfg, 1, tmp_path / 'one.pth')
    divided.merge_from_dict(Config.fromfile(ROOT / 'configs/_base_/strategies/fsdp.py').to_dict())
    divided.train_dataloader.batch_size = BATCH // 2
    divided.dump(tmp_path / 'fsdp.py')
    run_group(member, tmp_path, False, world=2, limit=900)
    assert (tmp_path / 'divided' / 'iter_2.pth').is_file()
    run_group(member, tmp_path, True, world=2, limit=900)
    one = torch.load(tmp_path / 'one.pth', weights_only=False)['last_weights']
    both = torch.load(tmp_path / 'divided' / 'iter_3.pth', weights_only=False)['state_dict']
    found = deviations(both, one)
    print('deviations', found)
    assert max(found) < 1e-5
    whole = sum(value.numel() for name, value in one.items() if '.blocks.' in name and 'running' not in name)
    held = [torch.load(tmp_path / f'held_{rank}.pth') for rank in range(2)]
    assert max(held) < 0.6 * whole


def test_deepspeed_trains_saves_and_resumes(small_models, small_digits, tmp_path, monkeypatch):
    """Needs ``pip install 'deepspeed<0.17'``."""
    pytest.importorskip('deepspeed')
    monkeypatch.setenv('DS_ACCELERATOR', 'cpu')
    cfg = small_cfg(small_models, 'detector', small_digits, tmp_path / 'work')
    cfg.merge_from_dict(Config.fromfile(ROOT / 'configs/_base_/strategies/deepspeed.py').to_dict())
    cfg.optim_wrapper.type = 'DeepSpeedOptimWrapper'
    cfg.log_level = 'INFO'
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.default_hooks.checkpoint.interval = 1
    cfg.dump(tmp_path / 'cfg.py')
    run('train.py', tmp_path / 'cfg.py', cwd=tmp_path, launcher='2')
    assert (tmp_path / 'work' / 'epoch_1.pth' / 'mp_rank_00_model_states.pt').is_file()
    options = '--resume', '--cfg-options', 'train_cfg.max_epochs=2'
    output = run('train.py', tmp_path / 'cfg.py', *options, cwd=tmp_path, launcher='2')
    assert 'resumed epoch: 1' in output and 'Epoch(train) [2]' in output
