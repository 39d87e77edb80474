"""The set-up: what is run with real commands, small ones; nothing is installed and no network is needed."""

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT

SCRIPT = ROOT / 'tools/quickstart.py'
if sys.platform == 'win32' or not (3, 10) <= sys.version_info[:2] <= (3, 12):
    pytest.skip('quickstart.py is for Python 3.10 to 3.12 on Linux', allow_module_level=True)

spec = importlib.util.spec_from_file_location('quickstart', SCRIPT)
quickstart = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quickstart)
# For what is to be killed: the beginning of a script for another process.
LOAD = f"""
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location('quickstart', {str(SCRIPT)!r})
quickstart = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quickstart)
"""


@pytest.fixture
def setup(tmp_path):
    """The set-up of an empty checkout."""
    return quickstart.Setup(tmp_path)


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the pins of this one and the traces of an environment."""
    site = tmp_path / '.venv/lib' / f'python{quickstart.VERSION}' / 'site-packages'
    for folder in ('torch-2.10.0.dist-info', 'onedl_mmcv-2.3.6.dist-info', 'torch', 'mmcv'):
        (site / folder).mkdir(parents=True)
    (site / 'torch/version.py').write_text("__version__ = '2.10.0'")
    (site / 'mmcv/_ext.py').write_bytes(b'operators')
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    for name in ('setup.py', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path, site


def upgrade_torch(root, site):
    (site / 'torch-2.10.0.dist-info').rename(site / 'torch-2.11.0.dist-info')


def replace_torch_in_place(root, site):
    (site / 'torch/version.py').write_text("__version__ = '2.10.0+cpu'")


def remove_mmcv(root, site):
    (site / 'onedl_mmcv-2.3.6.dist-info').rmdir()


def replace_operators(root, site):
    """Same size, other content: what counts is the time of change."""
    time.sleep(0.01)
    (site / 'mmcv/_ext.py').write_bytes(b'OPERATORS')


def compile_mmcv(root, site):
    (site / 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so').write_bytes(b'operators')


def change_pin(root, site):
    pins = root / 'requirements/onedl.txt'
    pins.write_text(pins.read_text().replace('0.10.12', '0.10.13'))


CHANGES = [upgrade_torch, replace_torch_in_place, remove_mmcv, replace_operators, compile_mmcv, change_pin]


@pytest.mark.parametrize('change', CHANGES)
def test_what_changes_is_set_up_again(checkout, change):
    root, site = checkout
    before = quickstart.Setup(root)
    before.verified.parent.mkdir()
    before.python.parent.mkdir()
    before.python.symlink_to(sys.executable)
    before.verified.write_text(json.dumps(before.fingerprint()))
    assert quickstart.Setup(root).ready()
    assert not quickstart.Setup(root, compile_mmcv=True).ready()
    change(root, site)
    assert not quickstart.Setup(root).ready()
    before.verified.write_text('{"cut')
    assert not quickstart.Setup(root).ready()


def test_nothing_to_be_done_where_it_was_set_up():
    """The second run; in CI this checkout is one that quickstart.py has set up."""
    if not quickstart.Setup(ROOT).ready():
        pytest.skip('this checkout was not set up by tools/quickstart.py')
    result = subprocess.run([sys.executable, SCRIPT, 'install'], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert 'nothing to be done' in result.stdout


def test_failing_stage_is_explained(setup):
    text = 'seq 100; echo disk: No space left on device; exit 3'
    with pytest.raises(quickstart.SetupError) as caught:
        setup.run(quickstart.Stage('bad', 'title', ['bash', '-c', text]))
    message = str(caught.value)
    assert 'stage "bad"' in message and 'exit code 3' in message
    assert str(setup.home / 'logs/bad.log') in message
    assert 'free some disk space' in message
    assert '    100\n' in message and '    50\n' not in message  # the end of the output only


@pytest.mark.parametrize(
    'output, advice',
    [
        ("Failed to establish a new connection: NewConnectionError('...')", 'network'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('fatal error: Python.h: No such file or directory', 'leave --compile-mmcv out'),
        ("error: command 'g++' failed: No such file or directory", 'install a C++ compiler'),
        ('OSError: CUDA_HOME environment variable is not set', 'install nvcc'),
        ('something unheard of', 'run the same command again'),
    ],
)
def test_advice(tmp_path, output, advice):
    (tmp_path / 'log').write_text(output)
    assert advice in quickstart.failure('It failed', tmp_path / 'log').splitlines()[-1]


def test_machine_is_checked(setup, monkeypatch):
    """Before the long stages: room on the disk, and a compiler if one is needed."""
    monkeypatch.setattr(quickstart, 'DISK_GB', 1e9)
    with pytest.raises(quickstart.SetupError, match='GB are free'):
        setup.check_machine()
    monkeypatch.setattr(quickstart, 'DISK_GB', 0)
    monkeypatch.setenv('PATH', str(setup.root))
    setup.check_machine()
    setup.compile_mmcv = True
    with pytest.raises(quickstart.SetupError, match='no C\\+\\+ compiler'):
        setup.check_machine()


def test_remains_of_an_interrupted_pip_are_removed(tmp_path):
    for folder in ('~orch', 'torch', 'torch-2.10.0.dist-info', 'numpy-2.2.6.dist-info'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'numpy-2.2.6.dist-info/INSTALLER').write_text('pip')
    quickstart.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['numpy-2.2.6.dist-info', 'torch']


def test_broken_environment_is_made_anew(setup, capfd):
    (setup.venv / 'bin').mkdir(parents=True)
    (setup.venv / 'bin/python').symlink_to('/nonexistent/python')
    setup.home.joinpath('tmp').mkdir(parents=True)
    setup.make_venv()
    assert 'is broken: it is made anew' in capfd.readouterr().out
    subprocess.run([setup.python, '-m', 'pip', '--version'], check=True, stdout=subprocess.DEVNULL)
    made = setup.python.lstat().st_mtime_ns
    setup.make_venv()
    assert setup.python.lstat().st_mtime_ns == made  # a sound one is left alone


def test_progress_shows_what_is_being_done():
    progress = quickstart.Progress(io.StringIO(), every=0)
    assert progress.feed('[11/81] c++ b.cpp')
    progress.tick()
    assert 's: [11/81] c++ b.cpp' in progress.out.getvalue()
    assert not progress.feed('Progress 1000000 of 900000000')  # too many of these for the log
    progress.tick()
    assert '1 of 900 MB' in progress.out.getvalue()


def test_second_set_up_waits(tmp_path):
    """Two at once in one checkout: the second says so and waits."""
    code = (
        f'{LOAD}with quickstart.locked(pathlib.Path({str(tmp_path / "lock")!r}), "busy"):\n'
        '    print("got it", flush=True); time.sleep(float(sys.argv[1]))\n'
    )
    first = subprocess.Popen([sys.executable, '-c', code, '1'], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == 'got it\n'
    second = subprocess.run([sys.executable, '-c', code, '0'], stdout=subprocess.PIPE, text=True, timeout=30)
    assert second.stdout.splitlines() == ['busy; waiting for it to end', 'got it']
    assert first.wait(5) == 0


def test_what_a_killed_set_up_left_is_ended(tmp_path):
    """Its job would hold the lock for a minute."""
    job = f"""{LOAD}
folder = pathlib.Path({str(tmp_path)!r})
with quickstart.locked(folder / 'lock', 'busy') as lock:
    quickstart.stream(['bash', '-c', 'echo $$ > pid; sleep 60'], folder / 'log', folder, lock=lock)
"""
    process, pid = subprocess.Popen([sys.executable, '-c', job]), tmp_path / 'pid'
    while not pid.exists() or not pid.read_text().strip():
        time.sleep(0.02)
        assert process.poll() is None
    time.sleep(0.2)
    process.kill()
    process.wait()
    with quickstart.locked(tmp_path / 'lock', 'busy'):
        assert not running(pid.read_text())


def running(pid):
    stat = Path(f'/proc/{pid.strip()}/stat')
    return stat.exists() and stat.read_text().split()[2] != 'Z'


def test_interruption_ends_what_was_started(tmp_path):
    """After Ctrl-C no command of the set-up is left running."""
    code = (
        f'{LOAD}'
        'command = ["bash", "-c", "sleep 60 & echo $! > pid; wait"]\n'
        f'quickstart.stream(command, pathlib.Path({str(tmp_path / "log")!r}), cwd=pathlib.Path({str(tmp_path)!r}))\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    pid = tmp_path / 'pid'
    while not pid.exists() or not pid.read_text().strip():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    time.sleep(0.1)
    assert not running(pid.read_text())


def test_each_family_has_an_environment_of_its_own():
    """Other folders, other packages, and build tools of their time."""
    default, original = (quickstart.Setup(ROOT, family) for family in ('onedl', 'openmmlab'))
    assert (default.venv.name, default.home.name) == ('.venv', '.setup')
    assert (original.venv.name, original.home.name) == ('.venv-openmmlab', '.setup-openmmlab')
    for setup, torch, mmcv, tool in (
        (default, 'torch==2.10.0', 'onedl-mmcv==2.3.6', 'setuptools>=80'),
        (original, 'torch==2.1.2', 'mmcv==2.1.0', 'setuptools<80'),
    ):
        setup.site = ROOT / 'nothing-installed'
        setup.compiled = False
        stages = {stage.name: stage for stage in setup.stages()}
        assert list(stages) == ['pip', 'torch', 'tools', 'mmcv', 'libraries', 'operators']
        assert torch in stages['torch'].command and mmcv in stages['mmcv'].command and tool in stages['tools'].command
        assert all(str(setup.python) == stage.command[0] for stage in stages.values())
        assert '--no-build-isolation' not in stages['mmcv'].command and not stages['mmcv'].env
        setup.compiled = True
        stages = {stage.name: stage for stage in setup.stages()}
        assert 'operators' not in stages and ('MMCV_WITH_OPS', '1') in stages['mmcv'].env
        assert '--no-build-isolation' in stages['mmcv'].command


def test_compiled_operators_stay(checkout):
    """mmcv is neither replaced nor compiled again where it is compiled; asked to compile, what is not is replaced."""
    root, site = checkout
    stages = {stage.name for stage in quickstart.Setup(root).stages()}
    assert 'mmcv' not in stages and 'operators' in stages
    assert 'mmcv' in {stage.name for stage in quickstart.Setup(root, compile_mmcv=True).stages()}
    compile_mmcv(root, site)
    for asked in (False, True):
        assert not {'mmcv', 'operators'} & {stage.name for stage in quickstart.Setup(root, compile_mmcv=asked).stages()}


@pytest.mark.parametrize(
    'arguments, code, text',
    [
        ((), 2, 'say what to do'),
        (('demo', '--help'), 0, '--again'),
        (('test', '--help'), 0, '--family {onedl,openmmlab}'),
        (('demo', '--help'), 0, '--compile-mmcv'),
        (('install', '--family', 'mm'), 2, "invalid choice: 'mm'"),
        (('demo', '-x'), 2, 'unrecognized arguments: -x'),
    ],
)
def test_usage(arguments, code, text):
    result = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert result.returncode == code and text in result.stdout + result.stderr


def test_ci_runs_the_test_command():
    script = ROOT / '.ci/run'
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == 'exec python3 tools/quickstart.py test'
