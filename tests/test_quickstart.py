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

ROOT = Path(__file__).resolve().parents[1]
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


def shell(name, text, **options):
    return quickstart.Stage(name, name, ['bash', '-c', text], **options)


@pytest.fixture
def setup(tmp_path):
    """The set-up of an empty checkout."""
    setup = quickstart.Setup(tmp_path)
    setup.load()
    return setup


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the pins of this one and the traces of an environment."""
    site = tmp_path / '.venv/lib' / f'python{quickstart.VERSION}' / 'site-packages'
    for folder in ('torch-2.10.0.dist-info', 'onedl_mmcv-2.3.6.dist-info', 'torch', 'mmcv'):
        (site / folder).mkdir(parents=True)
    (site / 'torch/version.py').write_text("__version__ = '2.10.0'")
    (site / 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so').write_bytes(b'operators')
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
    next(site.glob('mmcv/_ext*')).write_bytes(b'OPERATORS')


def change_pin(root, site):
    pins = root / 'requirements/onedl.txt'
    pins.write_text(pins.read_text().replace('0.10.12', '0.10.13'))


@pytest.mark.parametrize('change', [upgrade_torch, replace_torch_in_place, remove_mmcv, replace_operators, change_pin])
def test_fingerprint_changes(checkout, change):
    before = quickstart.fingerprint(*checkout)
    assert quickstart.fingerprint(*checkout) == before
    assert json.loads(json.dumps(before)) == before  # as it comes back from the record
    change(*checkout)
    assert quickstart.fingerprint(*checkout) != before


def test_nothing_to_be_done_where_it_was_set_up():
    """The second run; in CI this checkout is one that quickstart.py has set up."""
    current = quickstart.Setup(ROOT)
    current.load()
    if not current.ready():
        pytest.skip('this checkout was not set up by tools/quickstart.py')
    start = time.monotonic()
    result = subprocess.run([sys.executable, SCRIPT, 'install'], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert 'nothing to be done' in result.stdout
    assert time.monotonic() - start < 5


def test_stages_resume_after_a_kill(tmp_path):
    """Killed without warning in its second stage, a set-up repeats that one and not the first."""
    driver = tmp_path / 'driver.py'
    driver.write_text(
        f'{LOAD}setup = quickstart.Setup(pathlib.Path({str(tmp_path)!r}))\n'
        'setup.load()\n'
        'stage = lambda name, text: quickstart.Stage(name, name, ["bash", "-c", text])\n'
        'setup.run_all([stage("first", "echo 1 >> ran"), stage("second", "echo 2 >> ran; sleep ${PAUSE}"),'
        ' stage("third", "echo 3 >> ran")])\n'
    )
    ran = tmp_path / 'ran'
    process = subprocess.Popen([sys.executable, driver], env={**os.environ, 'PAUSE': '3'}, stdout=subprocess.DEVNULL)
    while not ran.exists() or '2' not in ran.read_text():
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    subprocess.run([sys.executable, driver], env={**os.environ, 'PAUSE': '0'}, check=True)
    assert ran.read_text().split() == ['1', '2', '2', '3']
    subprocess.run([sys.executable, driver], env={**os.environ, 'PAUSE': '0'}, check=True)
    assert ran.read_text().split() == ['1', '2', '2', '3']


def test_stage_is_repeated_when_it_changes_or_its_package_is_gone(setup):
    first = shell('a', 'mkdir -p "$0"', needs=['some-package'])
    first.command.append(str(setup.site / 'Some_Package-1.0.dist-info'))
    setup.run_all([first])
    (setup.site / 'Some_Package-1.0.dist-info/INSTALLER').write_text('pip')
    assert setup.done(first)
    assert not setup.done(first._replace(depends='another pin'))
    shutil.rmtree(setup.site / 'Some_Package-1.0.dist-info')
    assert not setup.done(first)


def test_record_is_void_for_another_environment(setup):
    setup.venv.mkdir()
    (setup.venv / 'pyvenv.cfg').write_text('home = /usr/bin')
    setup.load()
    setup.save(stages={'torch': 'key'})
    again = quickstart.Setup(setup.root)
    again.load()
    assert again.record['stages'] == {'torch': 'key'}
    os.utime(setup.venv / 'pyvenv.cfg', (1, 1))
    again.load()
    assert 'stages' not in again.record


def test_failing_stage_is_explained(setup):
    with pytest.raises(quickstart.SetupError) as caught:
        setup.run_all([shell('good', 'true'), shell('bad', 'seq 100; echo disk: No space left on device; exit 3')])
    message = str(caught.value)
    assert 'stage "bad"' in message and 'exit code 3' in message
    assert str(setup.home / 'logs/bad.log') in message
    assert 'free some disk space' in message
    assert '    100\n' in message and '    50\n' not in message  # the end of the output only
    assert list(setup.record['stages']) == ['good']


@pytest.mark.parametrize(
    'output, advice',
    [
        ("Failed to establish a new connection: NewConnectionError('...')", 'network'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('fatal error: Python.h: No such file or directory', 'headers'),
        ("error: command 'g++' failed: No such file or directory", 'compiler'),
        ('something unheard of', 'run the same command again'),
    ],
)
def test_advice(tmp_path, output, advice):
    (tmp_path / 'log').write_text(output)
    assert advice in quickstart.failure('It failed', tmp_path / 'log').splitlines()[-1]


def test_machine_is_checked(setup, monkeypatch):
    """Before the long stages: room on the disk, and a compiler."""
    monkeypatch.setattr(quickstart, 'DISK_GB', 1e9)
    with pytest.raises(quickstart.SetupError, match='GB are free'):
        setup.check_machine()
    monkeypatch.setattr(quickstart, 'DISK_GB', 0)
    monkeypatch.setenv('PATH', str(setup.root))
    with pytest.raises(quickstart.SetupError, match='install a C\\+\\+ compiler'):
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


@pytest.mark.parametrize(
    'line, step',
    [
        ('  [12/80] c++ -MMD -MF nms.o.d -c nms.cpp', (12, 80)),
        ('[80/80] c++', (80, 80)),
        ('[notice] A new release of pip', None),
        ('Collecting torch==2.10.0', None),
    ],
)
def test_ninja_step(line, step):
    assert quickstart.ninja_step(line) == step


def test_progress_tells_how_long_it_takes():
    progress = quickstart.Progress(io.StringIO(), every=0)
    assert progress.feed('[1/81] c++ a.cpp')
    time.sleep(0.1)
    assert progress.feed('[11/81] c++ b.cpp')
    progress.tick()
    assert 'compiled 11 of 81, about 1 s left' in progress.out.getvalue()
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
        stages = {stage.name: stage for stage in setup.stages()}
        assert list(stages) == ['pip', 'torch', 'tools', 'mmengine', 'mmcv', setup.family.name, 'project']
        assert torch in stages['torch'].command and mmcv in stages['mmcv'].command and tool in stages['tools'].command
        assert all(str(setup.python) == stage.command[0] for stage in stages.values())


@pytest.mark.parametrize(
    'arguments, code, text',
    [
        ((), 2, 'say what to do'),
        (('demo', '--help'), 0, '--again'),
        (('test', '--help'), 0, '--family {onedl,openmmlab}'),
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
