"""A process of a distributed run dies or gets a signal: the others end, the run is started again, and it goes on."""

import os
import re
import sys
import threading
import time

import pytest
from mmengine.config import Config
from processes import ROOT, call, free_port
from small_runs import assert_same, small_cfg, state

from xcit_mm.resilience.checkpointing import damage

OPTIONS = {
    'train_cfg.max_epochs': 4,
    'train_cfg.val_interval': 4,
    'default_hooks.checkpoint.interval': 1,
    'train_dataloader.batch_size': 2,
    'log_level': 'INFO',
}


@pytest.fixture
def cfg(small_models, small_digits, tmp_path):
    return small_cfg(small_models, 'classifier', small_digits, tmp_path / 'run', **OPTIONS)


def dying(cfg, note, rank=1, iteration=5, **options):
    hook = dict(type='DyingHook', rank=rank, iteration=iteration, note=str(note), **options, _scope_='mmengine')
    return Config(
        {**cfg.to_dict(), 'custom_hooks': [*cfg.custom_hooks, hook], 'custom_imports': dict(imports=['dying'])}
    )


def environment():
    return dict(
        os.environ,
        OMP_NUM_THREADS='1',
        PYTHONPATH=str(ROOT / 'tests' / 'helpers'),
        PYTHON=sys.executable,
        PORT=free_port(),
    )


def dist_train(cfg, folder, *arguments, **variables):
    """tools/dist_train.sh with two processes."""
    cfg.dump(folder / 'cfg.py')
    command = ['bash', ROOT / 'tools' / 'dist_train.sh', folder / 'cfg.py', '2', *arguments]
    return call(command, cwd=folder, env={**environment(), **variables})


@pytest.mark.slow
def test_the_others_end_within_a_minute_and_say_why(cfg, tmp_path):
    done = dist_train(dying(cfg, tmp_path / 'note'), tmp_path)
    lasted = time.time() - float((tmp_path / 'note').read_text())
    assert done.returncode != 0 and lasted < 60
    assert 'error (process 0): another process of the run has ended' in done.stderr, done.stderr[-3000:]
    assert damage(str(tmp_path / 'run' / 'epoch_1.pth')) is None
    print(f'ended {lasted:.1f} s after the other')


@pytest.mark.slow
def test_the_run_starts_again_and_ends_with_the_same_bits(cfg, tmp_path):
    whole = Config({**cfg.to_dict(), 'work_dir': str(tmp_path / 'whole')})
    done = dist_train(whole, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    done = dist_train(dying(cfg, tmp_path / 'note', iteration=8), tmp_path, MAX_RESTARTS='1')
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'note').exists()
    assert re.search(r'Resuming from the newest intact checkpoint, .*epoch_2\.pth', done.stdout + done.stderr)
    assert_same(state(tmp_path / 'whole' / 'epoch_4.pth'), state(tmp_path / 'run' / 'epoch_4.pth'))


def two_at_once(function):
    """The results of ``function(0)`` and ``function(1)``, each with the time of its end."""
    results = {}

    def work(number):
        results[number] = function(number)
        results[number].ended = time.time()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(2)]


def nodes(cfg, folder, *arguments, **variables):
    """Two machines of one process each, as two torchruns on the loopback."""
    cfg.dump(folder / 'cfg.py')
    common = {**environment(), 'NNODES': '2', **variables}
    command = ['bash', ROOT / 'tools' / 'dist_train.sh', folder / 'cfg.py', '1', *arguments]
    return two_at_once(lambda number: call(command, cwd=folder, env={**common, 'NODE_RANK': str(number)}))


@pytest.mark.slow
def test_two_nodes_train_as_two_processes_do(cfg, tmp_path):
    done = dist_train(Config({**cfg.to_dict(), 'work_dir': str(tmp_path / 'whole')}), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for done in nodes(cfg, tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same(state(tmp_path / 'whole' / 'epoch_4.pth'), state(tmp_path / 'run' / 'epoch_4.pth'))


@pytest.mark.slow
def test_the_other_node_ends_within_a_minute(cfg, tmp_path):
    results = nodes(dying(cfg, tmp_path / 'note'), tmp_path)
    death = float((tmp_path / 'note').read_text())
    assert all(done.returncode != 0 and done.ended - death < 60 for done in results)
    assert 'another process of the run has ended' in results[0].stderr
    print('ended', [f'{done.ended - death:.1f} s' for done in results], 'after the process')


@pytest.mark.slow
def test_both_nodes_start_again(cfg, tmp_path):
    results = nodes(dying(cfg, tmp_path / 'note', iteration=8), tmp_path, MAX_RESTARTS='1')
    for done in results:
        assert done.returncode == 0, done.stderr[-3000:]
    assert any('Resuming from the newest intact checkpoint' in done.stdout + done.stderr for done in results)
    assert damage(str(tmp_path / 'run' / 'epoch_4.pth')) is None


def alone(cfg, folder, *arguments):
    """Two processes that nobody watches over, as srun starts them."""
    cfg.dump(folder / 'cfg.py')
    common = {**environment(), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1'}
    common['MASTER_PORT'] = common.pop('PORT')
    command = [sys.executable, ROOT / 'tools' / 'train.py', folder / 'cfg.py', '--launcher', 'pytorch', *arguments]
    return two_at_once(
        lambda rank: call(command, cwd=folder, env={**common, 'RANK': str(rank), 'LOCAL_RANK': str(rank)})
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1'])
def test_a_signal_to_one_process_ends_all_with_one_checkpoint(name, cfg, tmp_path):
    for done in alone(Config({**cfg.to_dict(), 'work_dir': str(tmp_path / 'whole')}), tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    for done in alone(dying(cfg, tmp_path / 'note', iteration=5, signal_name=name), tmp_path):
        assert done.returncode == 75, done.stderr[-3000:]
    assert damage(str(tmp_path / 'run' / 'interrupted.pth')) is None
    for done in alone(cfg, tmp_path, '--resume'):
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same(state(tmp_path / 'whole' / 'epoch_4.pth'), state(tmp_path / 'run' / 'epoch_4.pth'))


def test_slurm_starts_a_run_that_was_preempted_again(tmp_path):
    """With stand-ins for SLURM's commands, which write down their arguments: there is no SLURM here."""
    (tmp_path / 'srun').write_text('#!/bin/sh\necho "srun $*" >> calls\n[ -e once ] && exit 0\ntouch once\nexit 75\n')
    (tmp_path / 'scontrol').write_text('#!/bin/sh\necho "scontrol $*" >> calls\n')
    for name in ('srun', 'scontrol'):
        (tmp_path / name).chmod(0o755)
    env = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', GRACE='90')
    env.pop('SLURM_JOB_ID', None)
    command = ['bash', ROOT / 'tools' / 'slurm_train.sh', 'part', 'job', 'cfg.py', 'work']
    assert call(command, cwd=tmp_path, env=env).returncode == 0
    first, second = (tmp_path / 'calls').read_text().splitlines()
    assert '--signal=USR1@90' in first and '--resume' not in first and second.count('--resume') == 1
    for name in ('once', 'calls'):
        (tmp_path / name).unlink()
    assert call(command, cwd=tmp_path, env={**env, 'SLURM_JOB_ID': '7'}).returncode == 0
    assert (tmp_path / 'calls').read_text().splitlines()[1:] == ['scontrol requeue 7']
    (tmp_path / 'srun').write_text('#!/bin/sh\nexit 3\n')
    assert call(command, cwd=tmp_path, env=env).returncode == 3
