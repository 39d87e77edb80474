"""Training that is killed again and again, at random moments, and ends with the bits of a run that never was.

Minutes of training: run with -m slow -s, which prints what was done.
"""

import os
import random
import re
import time
from collections import Counter

import pytest
from processes import ROOT, end_group, start_tool
from small_runs import assert_same, state

from xcit_mm.datasets.digits import make_digits
from xcit_mm.resilience.checkpointing import damage

KILLS = 20
LIMIT = 3000  # s for one start of the run, on a machine that does other things too
MODELS = dict(
    detector='mask_rcnn_xcit_n12_8_digits',
    segmentor='sem_fpn_xcit_n6_8_digits',
)
SMALL = """
maps = [32] * 4
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=32, depth=2, num_heads=4), out_indices=(0, 0, 1, 1),
                  drop_path_rate=0.1),
    neck=dict(in_channels=maps),
)
"""
# In small, with augmentation, an average of the weights, and processes that load data.
CHANGES = dict(
    detector=SMALL
    + """
train_pipeline = [
    dict(type='xcit_mm.LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=(96, 96), ratio_range=(0.7, 1.3), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=1)
train_cfg = dict(max_epochs=30, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=30, T_max=30, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=2, save_best='auto'))
""",
    segmentor=SMALL
    + """
train_dataloader = dict(batch_size=4, num_workers=2)
val_dataloader = dict(batch_size=1)
train_cfg = dict(max_iters=120, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=120, T_max=120),
]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4, max_keep_ckpts=2, save_best='mIoU'))
""",
)
ADDED_TO_ALL = """
custom_hooks = [
    dict(type='xcit_mm.IterationSeedHook'),
    dict(type='EMAHook', momentum=0.01, update_buffers=True, priority='ABOVE_NORMAL'),
]
"""
INTERVAL = dict(detector=4, segmentor=4)  # iterations between checkpoints
LAST = dict(detector='epoch_30.pth', segmentor='iter_120.pth')
# What a kill waits for in the log, and up to how many seconds it comes after that.
MOMENTS = {
    'training': (r'\(train\)', 0.5),
    'writing a checkpoint': (r'Saving checkpoint at', 0.06),
    'validating': (r'\(val\)[^\n]*\[ *1/', 0.3),
    'any time': (None, 8.0),
}


class Started:
    """A run in a process of its own."""

    def __init__(self, arguments, cwd, log):
        self.log = log
        log.touch()
        self.process = start_tool('train.py', *arguments, cwd=cwd, outputs=[log, log])
        self.pid = self.process.pid
        while self.process.is_alive() and os.getpgid(self.pid) != self.pid:
            time.sleep(0.01)
        self.end = time.monotonic() + LIMIT

    def wait(self):
        self.process.join()

    def wait_for(self, pattern, seen):
        """Until the log has the pattern after place ``seen``, or the run is over."""
        while self.process.is_alive():
            assert time.monotonic() < self.end, self.log.read_text()[-3000:]
            if pattern is None or re.search(pattern, self.log.read_text()[seen:]):
                return True
            time.sleep(0.002)
        return False

    def finish(self):
        self.process.join(LIMIT)
        assert self.process.exitcode == 0, self.log.read_text()[-3000:]


def iterations(text, kind):
    """Numbers of the iterations that a log tells of."""
    if kind == 'segmentor':
        return [int(n) for n in re.findall(r'Iter\(train\) *\[ *(\d+)/', text)]
    return [
        (int(e) - 1) * int(n) + int(i) for e, i, n in re.findall(r'Epoch\(train\) *\[(\d+)\]\[ *(\d+)/(\d+)\]', text)
    ]


@pytest.mark.slow
@pytest.mark.parametrize('kind', MODELS)
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(kind, tmp_path, record_property):
    make_digits(tmp_path / 'digits', train=16, val=6, size=64, seed=0)
    base = ROOT / 'configs' / f'{MODELS[kind]}.py'
    (tmp_path / 'cfg.py').write_text(f'_base_ = {str(base)!r}\n{CHANGES[kind]}{ADDED_TO_ALL}')
    data = tmp_path / 'digits' / dict(detector='coco', segmentor='ade')[kind]

    def start(name, *options):
        arguments = [tmp_path / 'cfg.py', '--work-dir', tmp_path / name, '--data-root', data, *options]
        return Started(arguments, tmp_path, tmp_path / f'{name}.log')

    start('whole').finish()
    choice = random.Random(0)
    kills, repeated, reached = Counter(), [], 0
    while sum(kills.values()) < KILLS:
        moment = list(MOMENTS)[sum(kills.values()) % len(MOMENTS)]
        pattern, delay = MOMENTS[moment]
        log = tmp_path / 'killed.log'
        seen = len(log.read_text()) if log.exists() else 0
        run = start('killed', '--resume')
        killed = run.wait_for(pattern, seen)
        time.sleep(choice.uniform(0, delay))
        alive = run.process.is_alive()
        end_group(run)
        assert killed and alive, f'the run was over after {dict(kills)}:\n{log.read_text()[-3000:]}'
        kills[moment] += 1
        for path in [*tmp_path.glob('killed/epoch_*.pth'), *tmp_path.glob('killed/iter_*.pth')]:
            assert damage(str(path)) is None, path
        done = iterations(log.read_text()[seen:], kind)
        if done:
            if reached:
                repeated.append(reached - done[0] + 1)
            reached = max(reached, done[-1])
    seen = len(log.read_text())
    start('killed', '--resume').finish()
    repeated.append(reached - iterations(log.read_text()[seen:], kind)[0] + 1)
    # One more than logged can be done: a kill between the update and the line that tells of it.
    assert max(repeated) <= INTERVAL[kind]
    assert_same(state(tmp_path / 'whole' / LAST[kind]), state(tmp_path / 'killed' / LAST[kind]))
    assert 'is skipped' not in log.read_text()
    unfinished = sum('.unfinished' in name for name in os.listdir(tmp_path / 'killed'))
    record_property('kills', str(dict(kills)))
    print(f'{kind}: {dict(kills)}, iterations repeated at most {max(repeated)}, left unfinished {unfinished}')
    best = [sorted(path.name for path in tmp_path.glob(f'{name}/best_*')) for name in ('whole', 'killed')]
    assert best[0] == best[1]
