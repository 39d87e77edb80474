"""The set-up: what is run with real commands, small ones; nothing is installed and no network is needed."""

import importlib.util
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
    setup = quickstart.Setup(tmp_path)
    with quickstart.locked(tmp_path / 'lock', 'busy') as setup.lock:
        yield setup


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the pins of this one and the traces of an environment."""
    site = tmp_path / '.venv/lib' / f'python{quickstart.VERSION}' / 'site-packages'
    for folder in ('torch-2.14.1.dist-info', 'onedl_mmcv-2.3.6.dist-info', 'torch', 'mmcv'):
        (site / folder).mkdir(parents=True)
    (site / 'torch/version.py').write_text("__version__ = '2.14.1'")
    (site / 'mmcv/_ext.py').write_bytes(b'operators')
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    for name in ('setup.py', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path, site


def upgrade_torch(root, site):
    (site / 'torch-2.14.1.dist-info').rename(site / 'torch-2.15.0.dist-info')


def replace_torch_in_place(root, site):
    (site / 'torch/version.py').write_text("__version__ = '2.14.1+cpu'")


def remove_mmcv(root, site):
    (site / 'onedl_mmcv-2.3.6.dist-info').rmdir()


def replace_operators(root, site):
    """Same size, other content."""
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
    before.verified.write_text(before.state())
    assert quickstart.Setup(root).ready()
    change(root, site)
    assert not quickstart.Setup(root).ready()
    before.verified.write_text(before.state()[:20])  # cut off
    assert not quickstart.Setup(root).ready()


def test_nothing_to_be_done_where_it_was_set_up():
    """The second run; in CI this checkout is one that quickstart.py has set up."""
    if not quickstart.Setup(ROOT).ready():
        pytest.skip('this checkout was not set up by tools/quickstart.py')
    result = subprocess.run([sys.executable, SCRIPT, 'install'], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert 'nothing to be done' in result.stdout


def test_failing_step_is_explained(setup):
    text = 'seq 100; echo disk: No space left on device; exit 3'
    with pytest.raises(quickstart.SetupError) as caught:
        setup.run('bad', 'Doing it', 'bash', '-c', text)
    message = str(caught.value)
    assert '"Doing it" failed with exit code 3' in message
    assert str(setup.home / 'logs/bad.log') in message
    assert 'free some disk space' in message
    assert '    100\n' in message and '    50\n' not in message  # the end of the output only


@pytest.mark.parametrize(
    'output, advice',
    [
        ("Failed to establish a new connection: NewConnectionError('...')", 'network'),
        ('something unheard of', 'run the same command again'),
    ],
)
def test_advice(tmp_path, output, advice):
    (tmp_path / 'log').write_text(output)
    assert advice in quickstart.failure('It failed', tmp_path / 'log').splitlines()[-1]


def test_full_disk_is_found_before_the_long_stages(setup, monkeypatch):
    monkeypatch.setattr(quickstart, 'DISK_GB', 1e9)
    with pytest.raises(quickstart.SetupError, match='GB are free'):
        setup.install()
    assert not setup.venv.exists()


def test_remains_of_an_interrupted_pip_are_removed(tmp_path):
    for folder in ('~orch', 'torch', 'torch-2.10.0.dist-info', 'numpy-2.2.6.dist-info'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'numpy-2.2.6.dist-info/INSTALLER').write_text('pip')
    quickstart.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['numpy-2.2.6.dist-info', 'torch']


def test_broken_environment_is_made_anew(setup, capfd):
    (setup.venv / 'bin').mkdir(parents=True)
    (setup.venv / 'bin/python').symlink_to('/nonexistent/python')
    (setup.home / 'tmp').mkdir(parents=True)
    setup.make_venv()
    assert 'is broken: it is made anew' in capfd.readouterr().out
    subprocess.run([setup.python, '-m', 'pip', '--version'], check=True, stdout=subprocess.DEVNULL)
    made = setup.python.lstat().st_mtime_ns
    setup.make_venv()
    assert setup.python.lstat().st_mtime_ns == made  # a sound one is left alone


def test_progress_shows_what_is_being_done(tmp_path):
    """On a terminal in one line; counts of a download are too many for the log."""
    text = 'echo Collecting torch; echo Progress 1000000 of 900000000; sleep 1; printf unfinished'
    run = f'quickstart.run(["bash", "-c", {text!r}], lock, ".", pathlib.Path("log"))'
    code = f'{LOAD}with quickstart.locked(pathlib.Path("lock"), "busy") as lock: {run}'
    terminal, inner = os.openpty()
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, stdout=inner, check=True)
    os.close(inner)
    shown = os.read(terminal, 4096).decode()
    os.close(terminal)
    assert 's: 1 of 900 MB' in shown and '\n' not in shown
    assert (tmp_path / 'log').read_text() == 'Collecting torch\nunfinished\n'


@pytest.mark.parametrize(
    'line, shown, share',
    [
        ('Progress 1000000 of 900000000', '1 of 900 MB', None),
        ('Collecting torch', 'Collecting torch', None),
        (
            '11/28 03:20 - INFO - Epoch(train) [2][ 50/500]  lr: 4.9e-04  eta: 0:06:48  loss: 1.15  loss_cls: 2',
            'epoch 2 of 3, 50 of 500, loss 1.15, 0:06:48 left',
            0.366667,
        ),
        ('Epoch(train)  [3][500/500]  eta: 0:00:00  loss: 1.15', 'epoch 3 of 3, 500 of 500, loss 1.15', 1),
        ('Epoch(val) [3][10/13]    eta: 0:00:09  time: 1', 'val, 10 of 13, 0:00:09 left', None),
        ('Epoch(test) [10/13]    eta: 0:00:09  time: 1', 'test, 10 of 13, 0:00:09 left', 0.769231),
    ],
)
def test_what_the_screen_shows_of_a_log(line, shown, share):
    progress = quickstart.Progress()
    assert progress.read('schedule  3 epochs of 500 iterations of 4 images; AdamW').startswith('schedule')
    assert progress.read(line) == shown
    assert progress.share == (share and pytest.approx(share, abs=1e-6))
    assert progress.step == (shown if 'Epoch' in line else 'starting')


def test_the_demo_ends_with_a_table(setup, capsys):
    pytest.importorskip('rich')
    scores = {'coco/bbox_mAP': 0.648, 'coco/bbox_mAP_50': 0.9}
    quickstart.show_results(setup, scores, 'work_dirs/digits_demo/epoch_3.pth', '13 min 20 s')
    shown = capsys.readouterr().out
    assert '13 min 20 s' in shown and 'epoch_3.pth' in shown
    assert [row.split('│')[2].strip() for row in shown.splitlines() if 'AP' in row] == ['64.8', 'not found']


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
    quickstart.run(['bash', '-c', 'echo $$ > pid; sleep 60'], lock, folder, folder / 'log')
"""
    process, pid = subprocess.Popen([sys.executable, '-c', job]), tmp_path / 'pid'
    while not pid.exists() or not pid.read_text().strip():
        time.sleep(0.02)
        assert process.poll() is None
    time.sleep(0.2)
    process.kill()
    process.wait()
    with quickstart.locked(tmp_path / 'lock', 'busy'):
        for _ in range(100):  # its files, the lock among them, are closed a moment before it is gone
            if not running(pid.read_text()):
                break
            time.sleep(0.02)
        assert not running(pid.read_text())


def running(pid):
    stat = Path(f'/proc/{pid.strip()}/stat')
    return stat.exists() and stat.read_text().split()[2] != 'Z'


def test_interruption_ends_what_was_started(tmp_path):
    """After Ctrl-C no command of the set-up is left running."""
    code = (
        f'{LOAD}with quickstart.locked(pathlib.Path("lock"), "busy") as lock:\n'
        '    quickstart.run(["bash", "-c", "sleep 60 & echo $! > pid; wait"], lock, ".", pathlib.Path("log"))\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=tmp_path,
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


def test_each_family_has_an_environment_of_its_own(tmp_path):
    """Other folders, other packages."""
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    for family, suffix, torch, mmcv in (
        ('onedl', '', 'torch==', 'onedl-mmcv==2.3.6'),
        ('openmmlab', '-openmmlab', 'torch==2.1.2', 'mmcv==2.1.0'),
    ):
        setup = quickstart.Setup(tmp_path, family)
        assert (setup.venv.name, setup.home.name) == (f'.venv{suffix}', f'.setup{suffix}')
        stages = {name: (title, command) for name, title, command in setup.stages()}
        assert list(stages) == ['pip', 'torch', 'mmcv', 'libraries', 'operators']
        assert torch in stages['torch'][0] and mmcv in stages['mmcv'][1]
        assert all(setup.python == command[0] for _, command in stages.values())


def test_compiled_operators_stay_while_they_work(checkout):
    root, site = checkout
    compile_mmcv(root, site)
    setup = quickstart.Setup(root)
    assert 'operators' not in [name for name, _, _ in setup.stages()]
    assert [name for name, _, _ in setup.stages(replace=True)][-1] == 'operators'


@pytest.mark.parametrize(
    'arguments, code, text',
    [
        ((), 2, 'say what to do'),
        (('demo', '--help'), 0, '--again'),
        (('test', '--help'), 0, '--family {onedl,openmmlab}'),
        (('install', '--compile-mmcv'), 2, 'C++20'),
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
