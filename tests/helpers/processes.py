"""Other processes for tests: each with a time limit, and with nothing left of it afterwards."""

import faulthandler
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from xcit_mm.resilience.interruption import end_processes

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    """Of its own, since another file's test may run at the same time."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def end_group(process):
    """Kill a process that leads a session, and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def call(command, limit=600, **options):
    """``subprocess.run`` with all output as text; past the limit (s) the test fails and tells where all stood."""
    env = {**(options.pop('env', None) or os.environ), 'PYTHONFAULTHANDLER': '1'}
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'env': env, **options}
    process = subprocess.Popen([str(word) for word in command], start_new_session=True, **options)
    try:
        stdout, stderr = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # Python prints what each thread was doing
        time.sleep(2)
        end_group(process)
        stdout, stderr = process.communicate()
        pytest.fail(f'{command} did not end within {limit} s:\n{(stdout or "")[-4000:]}\n{(stderr or "")[-8000:]}')
    except BaseException:
        end_group(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@lru_cache(maxsize=None)
def _imported():
    """Processes that have imported the libraries already, which takes them longer than most of what is tested."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(
        ['torch', 'mmcv.ops', 'mmpretrain', 'mmdet.apis', 'mmseg.apis', 'xcit_mm.engine.setup']
    )
    return context


def _main(path, arguments, cwd, environment, outputs):
    os.setsid()
    for stream, output in zip((1, 2), outputs):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
    faulthandler.enable()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 2)))
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name='__main__')


def start_tool(tool, *arguments, cwd, outputs):
    """A script of tools/ in a process of its own, which leads a session; with files for its output and its errors."""
    words = [str(word) for word in (ROOT / 'tools' / tool, *arguments)]
    process = _imported().Process(
        target=_main, args=(words[0], words[1:], str(cwd), dict(os.environ), [str(path) for path in outputs])
    )
    process.start()
    return process


def call_preloaded(command, stdout, **_):
    """``subprocess.run`` of a script of tools/, in a process that has imported the libraries already."""
    process = start_tool(Path(command[1]).name, *command[2:], cwd=os.getcwd(), outputs=[stdout.name] * 2)
    process.join()
    return subprocess.CompletedProcess(command, process.exitcode)


def run(tool, *arguments, cwd, launcher=None, ok=True, limit=600):
    """A script of tools/ with its command line; with ``launcher`` processes by torchrun. Returns all its output."""
    if launcher:
        command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', launcher]
        command += ['--master_port', free_port(), ROOT / 'tools' / tool, *arguments, '--launcher', 'pytorch']
        # Threads of several processes on few cores wait for each other.
        done = call(command, limit, cwd=cwd, env=dict(os.environ, OMP_NUM_THREADS='1'))
        code, output = done.returncode, done.stdout + done.stderr
    else:
        with TemporaryDirectory() as folder:
            outputs = [Path(folder) / 'stdout', Path(folder) / 'stderr']
            process = start_tool(tool, *arguments, cwd=cwd, outputs=outputs)
            try:
                process.join(limit)
                code = process.exitcode
            finally:
                if process.is_alive():
                    os.killpg(process.pid, signal.SIGABRT)  # Python prints what each thread was doing
                    process.join()
            output = ''.join(path.read_text() for path in outputs)
    assert code is not None and (code == 0) == ok, output[-4000:]
    return output


def _member(rank, function, world, folder, arguments, limit):
    # What each process was doing when time ran out is all there is to find the cause by.
    faulthandler.dump_traceback_later(max(limit - 10, 1))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=world)
    function(rank, world, folder, *arguments)
    end_processes()


def run_group(function, folder, *arguments, world=2, limit=300):
    """Run ``function(rank, world, folder, *arguments)`` in a gloo process group of ``world`` new processes."""
    (Path(folder) / 'group').unlink(missing_ok=True)  # of another group's, which would be asked for its addresses
    context = mp.start_processes(
        _member, (function, world, str(folder), arguments, limit), world, join=False, start_method='spawn'
    )
    end = time.monotonic() + limit
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, f'{world} processes did not end within {limit} s'
    finally:
        for process in context.processes:
            process.kill()
