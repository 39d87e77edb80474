#!/usr/bin/env python3
"""Set up this checkout and use it: one command, on a machine that has no more than Python.

python3 tools/quickstart.py demo       set up, then train and test a small detector on the embedded data set
python3 tools/quickstart.py test       set up, then run the tests; further arguments go to pytest (test -m slow)
python3 tools/quickstart.py install    only set up

Set-up makes .venv in the checkout (with --family openmmlab, .venv-openmmlab with the original releases of OpenMMLab in
place of their maintained continuation), installs the pinned libraries in stages and checks that they work. mmcv's
operators are those of torchvision and PyTorch (xcit_mm/mmcv_ops), for CPU and GPU, so nothing is compiled; with
--compile-mmcv they are compiled. Set-up can be interrupted and run again: finished stages are not repeated, and when
nothing is to be done it takes a moment.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List, NamedTuple, Tuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).resolve().parents[1]
VERSION = '{}.{}'.format(*sys.version_info)
DISK_GB = 12  # 8 for .venv, and 4 more while pip unpacks
TOOLS = ('packaging>=24.2', 'wheel', 'psutil')  # to build with
CONFIG = 'configs/mask_rcnn_xcit_n12_8_digits.py'
WORK_DIR = 'work_dirs/digits_demo'

# Run in the new environment. The last "checking" line in the log tells what failed, even after a crash.
CHECK = """
def step(name):
    print('checking', name, flush=True)

step('torch'); import torch
step('cv2'); import cv2
step('mmcv'); import mmcv
step('operators'); from mmcv.ops import nms
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist()
assert kept == [0, 2], f'nms kept {kept} in place of [0, 2]'
step('mmengine'); import mmengine
step('mmdet'); import mmdet
step('mmseg'); import mmseg
step('mmpretrain'); import mmpretrain
step('xcit_mm'); import xcit_mm
"""

NETWORK = r'NewConnectionError|ConnectTimeout|[Rr]ead timed out|ProxyError|Max retries|name resolution|unreachable'
COMPILER = (
    r"Python\.h: No such|(cc|c\+\+|g\+\+)'? (failed: No such file|not found)|No such file or directory: '\S*(cc|\+\+)'"
)
HINTS = (
    (r'No space left on device|Disk quota exceeded', 'free some disk space and run the same command again'),
    (NETWORK, 'this looks like the network: check connection and proxy settings and run the same command again'),
    (r'CERTIFICATE_VERIFY_FAILED', "pip does not trust the server's certificate: see pip's option --cert (PIP_CERT)"),
    (r'Killed signal|fatal error: Killed|[Cc]annot allocate memory', 'the memory ran out: set MAX_JOBS=1'),
    (COMPILER, f'install a C++ compiler and the headers of Python {VERSION}, or leave --compile-mmcv out'),
    (r'CUDA_HOME|nvcc', "install nvcc of PyTorch's CUDA version, or leave --compile-mmcv out"),
    (r'No matching distribution found', 'the package index pip uses has no such version for this Python and system'),
)


class Family(NamedTuple):
    """One of the two families of distributions that provide mmengine, mmcv, mmpretrain, mmdet and mmseg."""

    name: str  # of the requirements file
    suffix: str  # of the folders in the checkout
    pythons: Tuple[Tuple[int, int], Tuple[int, int]]  # oldest and newest
    mmcv: str
    setuptools: str


FAMILIES = {
    'onedl': Family('onedl', '', ((3, 10), (3, 12)), 'onedl-mmcv', 'setuptools>=80'),
    # mmcv 2.1 is built and mmengine 0.10 run with pkg_resources, which later setuptools lack.
    'openmmlab': Family('openmmlab', '-openmmlab', ((3, 10), (3, 11)), 'mmcv', 'setuptools<80'),
}


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to try."""


class Terminated(KeyboardInterrupt):
    """Asked to stop by a signal that, unlike Ctrl-C, running commands do not get as well."""


class Stage(NamedTuple):
    """One step of the set-up: a command, which has little to do if it was run before."""

    name: str
    title: str
    command: List[str]
    env: Tuple[Tuple[str, str], ...] = ()


def say(text=''):
    print(text, flush=True)


def clock(seconds):
    """A duration for people."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'


def pins(root, name):
    """The requirements in requirements/<name>.txt."""
    lines = (line.split('#')[0].strip() for line in (root / 'requirements' / f'{name}.txt').read_text().splitlines())
    return [line for line in lines if line]


def distributions(site):
    """Name and version of everything in a site-packages folder, read without importing anything."""
    return sorted(path.name[: -len('.dist-info')] for path in site.glob('*.dist-info'))


def failure(what, log):
    """What to say of a failed command: the end of its output, where all of it is, and what to try."""
    text = log.read_text(errors='replace')
    tail = '\n'.join('    ' + line[:200] for line in text.strip().splitlines()[-15:])
    again = 'run the same command again; if that fails as well, delete .venv* and .setup* and start afresh'
    advice = next((advice for pattern, advice in HINTS if re.search(pattern, text)), again)
    return f'{what}. Its output ended with\n\n{tail}\n\nAll of it: {log}\nWhat to try: {advice}.'


class Progress:
    """One line on what a command is doing: rewritten in place on a terminal, else a new line now and then."""

    def __init__(self, out, every=20.0):
        self.out, self.tty = out, out.isatty()
        self.every = 0.5 if self.tty else every
        self.start = self.shown = time.monotonic()
        self.what = 'starting'

    def feed(self, line):
        """Take a line of output; True if it is worth keeping in the log."""
        download = re.match(r'Progress (\d+) of (\d+)', line)
        if download:
            self.what = '{:.0f} of {:.0f} MB'.format(*(int(size) / 1e6 for size in download.groups()))
        else:
            self.what = line.strip() or self.what  # of ninja: [12/80] and what it compiles
        return not download

    def tick(self):
        """Show the line if it is time to."""
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        text = f'      {clock(now - self.start)}: {self.what}'
        width = shutil.get_terminal_size().columns - 1 if self.tty else 110
        self.out.write(f'\r\x1b[2K{text[:width]}' if self.tty else f'{text[:width]}\n')
        self.out.flush()

    def end(self):
        """Clear the line."""
        if self.tty:
            self.out.write('\r\x1b[2K')
            self.out.flush()


def stop(process):
    """End a command and everything it started. Interrupted, pip still tidies up; then patience ends."""
    for number, patience in ((signal.SIGINT, 10), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            if process.poll() is None or number == signal.SIGKILL:  # the last also for what outlived the command
                os.killpg(process.pid, number)
                process.wait(patience)


def stream(command, log, cwd=ROOT, env=None, lock=None, every=20.0):
    """Run a command with all its output in a log file and one progress line on the screen; return its exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    progress, rest = Progress(sys.stdout, every), b''
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    env = {**os.environ, **(env or {})}
    with log.open('wb') as file, selectors.DefaultSelector() as selector:
        keep = (lock,) if lock else ()
        with interrupt_later() as interrupted:
            process = subprocess.Popen(command, cwd=str(cwd), env=env, start_new_session=True, pass_fds=keep, **pipes)
        try:
            if interrupted:
                raise KeyboardInterrupt
            selector.register(process.stdout, selectors.EVENT_READ)
            if lock:
                note(lock, process)
            while True:
                if selector.select(timeout=0.5):
                    chunk = os.read(process.stdout.fileno(), 65536)
                    *lines, rest = (rest + chunk).split(b'\n')
                    file.writelines(line + b'\n' for line in lines if progress.feed(line.decode(errors='replace')))
                    file.flush()
                    if not chunk:
                        file.write(rest)
                        return process.wait()
                progress.tick()
        finally:
            progress.end()
            if process.poll() is None:
                stop(process)
            process.stdout.close()


@contextlib.contextmanager
def interrupt_later():
    """Note Ctrl-C in a list: in the middle of starting a process it would leave that running."""
    interrupted = []
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def locked(path, busy):
    """Hold a lock file, saying so if that means to wait; gives its file descriptor.

    Jobs started under the lock inherit it. One whose starter was killed is ended: pip would go on for minutes, and the
    data loaders of a training for ever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(str(path), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            starter, job = map(int, os.pread(fd, 40, 0).split() or (os.getpid(), 0))
            try:
                os.kill(starter, 0)
                say(f'{busy}; waiting for it to end')
            except ProcessLookupError:
                say(f'{busy}, left over from one that was killed; ending it')
                os.killpg(job, signal.SIGKILL)
            fcntl.flock(fd, fcntl.LOCK_EX)
        os.ftruncate(fd, 0)
        yield fd
    finally:
        os.close(fd)


def note(lock, process):
    """Write into the lock file which job inherits it from whom."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f'{os.getpid()} {process.pid}'.encode(), 0)


class Setup:
    """The environment of one checkout."""

    def __init__(self, root=ROOT, family='onedl', compile_mmcv=False):
        self.family, suffix = FAMILIES[family], FAMILIES[family].suffix
        self.root, self.venv, self.home = root, root / f'.venv{suffix}', root / f'.setup{suffix}'
        self.python, self.site = self.venv / 'bin/python', self.venv / f'lib/python{VERSION}/site-packages'
        self.verified, self.log, self.lock = self.home / 'verified.json', self.home / 'logs/verify.log', None
        # Operators that were compiled, by an earlier set-up or the user, stay.
        self.compile_mmcv, self.compiled = compile_mmcv, compile_mmcv or any(self.site.glob('mmcv/_ext*.so'))

    def fingerprint(self):
        """What a verification is valid for: the checkout and its pins, what is installed, and mmcv's operators."""
        pinned = self.root.glob(f'requirements/{self.family.name}*.txt')
        texts = [self.root / 'setup.py', self.root / 'pyproject.toml', *sorted(pinned)]
        files = [self.site / 'torch/version.py', *sorted(self.site.glob('mmcv/_ext*'))]
        return {
            'checkout': str(self.root),
            'pins': hashlib.sha256(b'\0'.join(path.read_bytes() for path in texts)).hexdigest(),
            'check': hashlib.sha256(CHECK.encode()).hexdigest(),
            'compiled': self.compiled,
            'installed': distributions(self.site),
            'files': [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()],
        }

    def ready(self):
        """Whether what is installed is what was verified."""
        with contextlib.suppress(OSError, ValueError):
            return os.access(str(self.python), os.X_OK) and json.loads(self.verified.read_text()) == self.fingerprint()
        return False

    def run(self, stage):
        """Run a command of the set-up, or raise SetupError with the end of its output and what to try."""
        log = self.home / 'logs' / f'{stage.name}.log'
        temporary = {} if 'TMPDIR' in os.environ else {'TMPDIR': str(self.home / 'tmp')}  # so a killed pip's is found
        code = stream(stage.command, log, self.root, {**temporary, **dict(stage.env)}, self.lock)
        if code:
            raise SetupError(failure(f'stage "{stage.name}" ({stage.title}) failed with exit code {code}', log))

    def run_all(self):
        """Run all stages; pip passes over what is installed."""
        stages = self.stages()
        for number, stage in enumerate(stages, 1):
            say(f'[{number}/{len(stages)}] {stage.title}')
            start = time.monotonic()
            sweep(self.site)
            self.run(stage)
            say(f'      done in {clock(time.monotonic() - start)}')

    def stages(self):
        """What is installed, in order."""
        family, install = self.family.name, [str(self.python), '-m', 'pip', 'install', '--progress-bar', 'raw']
        torch, libraries = pins(self.root, f'{family}-torch'), pins(self.root, family)
        mmcv = next(pin for pin in libraries if pin.startswith(f'{self.family.mmcv}=='))
        build = [*install, '--no-build-isolation', '-c', f'requirements/{family}-torch.txt']
        # Not from pip's cache: a wheel there may be of either kind, and a compiled one fits one PyTorch alone.
        alone = [*install, '--force-reinstall', '--no-deps', '--no-cache-dir']
        ninja = ['ninja'] if self.compiled else []
        operators = [str(self.python), '-m', 'xcit_mm.mmcv_ops', 'install']
        # Built in isolation, where there is no PyTorch, mmcv consists of Python alone.
        get_mmcv = Stage('mmcv', mmcv, [*alone, '--build-constraint', f'requirements/{family}.txt', mmcv])
        if self.compiled:
            memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
            jobs = os.environ.get('MAX_JOBS') or str(max(1, min(os.cpu_count() or 1, int(memory / 2))))
            env, command = (('MMCV_WITH_OPS', '1'), ('MAX_JOBS', jobs)), [*alone, '--no-build-isolation', '-v', mmcv]
            get_mmcv = Stage('mmcv', f'{mmcv}, compiled (about 7 min on two cores)', command, env)
        there = mmcv.replace('-', '_').replace('==', '-') in distributions(self.site)
        if there and self.compiled == any(self.site.glob('mmcv/_ext*.so')):
            get_mmcv = None
        stages = [
            Stage('pip', 'pip', [*install[:4], '--upgrade', 'pip>=25.3']),  # with the options below
            Stage('torch', f'{" ".join(torch)} (some minutes: 3 GB)', [*install, *torch]),
            Stage('tools', 'build tools', [*build, '--upgrade', self.family.setuptools, *TOOLS, *ninja]),
            get_mmcv,
            Stage(
                'libraries', f'{" ".join(libraries)}, this project and its tools', [*build, *libraries, '-e', '.[dev]']
            ),
            None if self.compiled else Stage('operators', "mmcv's operators, of torchvision and PyTorch", operators),
        ]
        return [stage for stage in stages if stage]

    def make_venv(self):
        """Make .venv, and make it anew if what is there cannot be used."""
        if self.venv.exists() or self.venv.is_symlink():
            probe = 'import sys; from pip._internal.cli.main import main; print("{}.{}".format(*sys.version_info))'
            version = b''
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                version = subprocess.check_output([str(self.python), '-c', probe], stderr=subprocess.DEVNULL)
            version = version.decode().strip()
            if version == VERSION:
                return
            trouble = f'holds Python {version}, not {VERSION}' if version else 'is broken'
            say(f'The {self.venv.name} here {trouble}: it is made anew.')
            self.venv.unlink() if self.venv.is_symlink() else shutil.rmtree(str(self.venv))
        say(f'Making {self.venv.name}')
        python = getattr(sys, '_base_executable', sys.executable)  # not the one of an environment about to be replaced
        self.run(Stage('venv', 'virtual environment', [python, '-m', 'venv', str(self.venv)]))

    def check_machine(self):
        """Raise SetupError for what would make a later stage fail, before the long ones begin."""
        free = shutil.disk_usage(str(self.root)).free / 1e9
        if not (self.site / 'torch').exists() and free < DISK_GB:
            raise SetupError(f'{free:.1f} GB are free in {self.root}; setting up takes {DISK_GB} GB for a while.')
        if self.compile_mmcv and not any(map(shutil.which, (os.environ.get('CXX', 'c++').split()[0], 'g++'))):
            raise SetupError(
                'there is no C++ compiler: install one (Debian: apt install g++), or leave --compile-mmcv out.'
            )

    def check(self):
        """Import and try everything in .venv; the name of what failed, or None, and the error."""
        # Not run in the checkout, so that it is the installed xcit_mm that counts.
        code = stream([str(self.python), '-c', CHECK], self.log, self.home)
        text = self.log.read_text(errors='replace')
        failed = ['python', *re.findall(r'^checking (\w+)$', text, re.M)][-1] if code else None
        return failed, (text.strip().splitlines() or [''])[-1]

    def verify(self):
        """Check that what is installed works, and try to repair what does not, once each."""
        say('Checking that everything works')
        start, tried, (failed, error) = time.monotonic(), [], self.check()
        versions = dict(name.rsplit('-', 1) for name in distributions(self.site))
        while failed and failed not in tried:
            tried.append(failed)
            say(f'      {failed} does not work: {error[:160]}')
            if failed == 'cv2' and '.so' in error and 'opencv_python' in versions:
                say('      This system has no display libraries. Taking the OpenCV that needs none.')
                pin = f'opencv-python-headless=={versions["opencv_python"]}'
                pip = [str(self.python), '-m', 'pip', 'install', '--force-reinstall', '--no-deps', pin]
                self.run(Stage('opencv', 'OpenCV', pip))
            else:
                if failed == 'operators':  # compiled for another PyTorch, or cut off
                    self.compiled = self.compile_mmcv
                    for path in self.site.glob('mmcv/_ext*'):
                        path.unlink()
                say('      Going through all stages again, which installs what is missing.')
                self.run_all()
            failed, error = self.check()
        if failed:
            raise SetupError(failure(f'{failed} does not work, nor after a repair', self.log))
        draft = self.verified.with_suffix('.new')
        draft.write_text(json.dumps(self.fingerprint(), indent=1))
        os.replace(str(draft), str(self.verified))  # never half written
        say(f'      it does ({clock(time.monotonic() - start)})')

    def install(self):
        """Bring the environment to where it is known to work."""
        start = time.monotonic()
        with locked(self.home / 'lock', 'A set-up is at work in this checkout') as self.lock:
            if self.ready():
                say(f'Set-up: nothing to be done ({time.monotonic() - start:.1f} s).')
                return
            shutil.rmtree(str(self.home / 'tmp'), ignore_errors=True)
            (self.home / 'tmp').mkdir(parents=True)
            self.make_venv()
            self.check_machine()
            self.run_all()
            self.verify()
            shutil.rmtree(str(self.home / 'tmp'), ignore_errors=True)
            say(f'Set-up: complete in {clock(time.monotonic() - start)}.')


def sweep(site):
    """Remove what an interrupted pip leaves: folders it renamed, and records of packages it had not finished."""
    unfinished = [path for path in site.glob('*.dist-info') if not (path / 'INSTALLER').exists()]  # pip writes it last
    for path in (*site.glob('~*'), *unfinished):
        shutil.rmtree(str(path), ignore_errors=True)


def follow(command, setup, lock=None):
    """Run a command of the project in its environment, its output passed through; return its exit code.

    Given a lock it is a job of its own, ended with all its processes.
    """
    env = dict(os.environ, PYTHONUNBUFFERED='1')
    job = dict(start_new_session=True, stdin=subprocess.DEVNULL, pass_fds=(lock,)) if lock else {}
    process = subprocess.Popen([str(setup.python), *command], cwd=str(setup.root), env=env, **job)
    try:
        if lock:
            note(lock, process)
        return process.wait()
    except KeyboardInterrupt as interrupt:
        if lock:
            stop(process)
        elif isinstance(interrupt, Terminated):  # of Ctrl-C it knows by itself
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        raise


def newest(paths):
    """The path changed last, None of none."""
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def demo(setup, resume, again, lock):
    """Make the data set, train, test, and say where everything is."""
    start, work, test = time.monotonic(), setup.root / WORK_DIR, setup.root / WORK_DIR / 'test'
    pointer, finished = work / 'last_checkpoint', work / 'finished.json'

    def step(number, title, *command):
        say(f'\n=== {number}/3 {title}\n    {setup.venv.name}/bin/python {" ".join(command)}')
        begin, code = time.monotonic(), follow(command, setup, lock)
        if code:
            raise SetupError(f'step {number} ended with exit code {code}. Run again, the demo goes on from here.')
        say(f'=== {number}/3 done in {clock(time.monotonic() - begin)}')

    step(1, 'Making the data set (seconds)', 'tools/make_digits.py', 'data/digits')
    if again:
        for path in (finished, pointer):  # without the pointer nothing is resumed
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    if finished.exists() and pointer.exists():
        say(f'\n=== 2/3 {WORK_DIR} holds a finished training, which is used. To train anew: demo --again')
    else:
        if pointer.exists():
            say(f'\n{WORK_DIR} holds an unfinished training, which goes on from its last checkpoint.')
        options = ['--work-dir', WORK_DIR, *(['--resume'] if resume or pointer.exists() else [])]
        step(2, 'Training Mask R-CNN on XCiT (12 to 25 min on two cores)', 'tools/train.py', CONFIG, *options)
        if not pointer.exists():
            raise SetupError(f'the training left no checkpoint in {work}.')
        finished.write_text(json.dumps({'checkpoint': pointer.read_text().strip()}))
    checkpoint = f'{WORK_DIR}/{Path(pointer.read_text().strip()).name}'  # the checkout may have been moved since
    begin, options = time.time(), ['--work-dir', f'{WORK_DIR}/test', '--show-dir', f'{WORK_DIR}/test/pictures']
    step(3, 'Testing, with pictures (about 1 min)', 'tools/test.py', CONFIG, checkpoint, *options)

    result = newest(path for path in test.glob('*/*.json') if path.stat().st_mtime >= begin - 2)
    pictures = newest(test.glob('pictures'))
    scores = json.loads(result.read_text()) if result else {}
    say(f'\nThe demo took {clock(time.monotonic() - start)}.')
    for label, name in (('box AP', 'bbox_mAP'), ('mask AP', 'segm_mAP')):
        value = next((scores[key] for key in scores if key.endswith(name)), None)
        say(f'  {label:11}{"not found" if value is None else f"{100 * value:.1f}"}')
    count = len([path for path in pictures.rglob('*') if path.is_file()]) if pictures else 0
    say(f'  {"pictures":11}{pictures or "none"}\n{"":13}{count}, the truth on the left, the prediction on the right')
    say(f'  {"checkpoint":11}{setup.root / checkpoint}')
    for label, log in (('logs', newest(work.glob('2*/*.log'))), ('', newest(test.glob('*/*.log')))):
        say(f'  {label:11}{log or "none"}')
    say('What next: README.md, on putting the backbone into a config of yours; or train on COCO with')
    say(f'  {setup.venv.name}/bin/python tools/train.py configs/mask_rcnn_xcit_s12_8_3x_coco.py')


def test(setup, arguments):
    """Run the tests; return pytest's exit code."""
    # One file of tests at a time on each core, up to the number that memory is enough for.
    workers = min(os.cpu_count() or 1, 4)
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // workers)))
    several = ['-n', str(workers), '--dist', 'loadfile', '--no-loadscope-reorder']
    code = follow(['-m', 'pytest', *several, *arguments], setup)
    if code:
        say(f'\nThe tests did not pass (exit code {code}). One alone: python3 tools/quickstart.py test -k NAME')
    else:
        say('\nThe tests passed. What next: python3 tools/quickstart.py demo')
    return code if code >= 0 else 128 - code


def terminate(*_):
    raise Terminated


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', metavar='{install,demo,test}')
    family = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    family.add_argument(
        '--family',
        choices=FAMILIES,
        default='onedl',
        help='the maintained OpenMMLab packages with PyTorch 2.10 (onedl, the default), or the original ones with 2.1',
    )
    family.add_argument(
        '--compile-mmcv', action='store_true', help="compile mmcv's operators (minutes; needs a compiler)"
    )
    commands.add_parser('install', parents=[family], help='only set up')
    options = commands.add_parser('demo', parents=[family], help='set up, then train and test on the embedded data set')
    options.add_argument('--resume', action='store_true', help='let the training go on from its last checkpoint')
    options.add_argument('--again', action='store_true', help='train anew even if there is a training already')
    explained = 'set up, then run the tests; further arguments go to pytest'
    commands.add_parser('test', parents=[family], allow_abbrev=False, help=explained, description=explained)
    given, passed_on = parser.parse_known_args()
    if not given.command:
        parser.error('say what to do: install, demo or test')
    if passed_on and given.command != 'test':
        parser.error(f'unrecognized arguments: {" ".join(passed_on)}')
    if fcntl is None:
        sys.exit('quickstart: this needs Linux; on Windows use WSL')
    # What torch, mmcv and their dependencies have in common.
    oldest, latest = FAMILIES[given.family].pythons
    if not oldest <= sys.version_info[:2] <= latest:
        other = next((name for name in ('python3.11', 'python3.10', 'python3.12') if shutil.which(name)), '')
        advice = f': {other} tools/quickstart.py {" ".join(sys.argv[1:])}' if other else ''
        between = '{}.{} to {}.{}'.format(*oldest, *latest)
        sys.exit(f'quickstart: the libraries need Python {between}, this is {VERSION}{advice}')
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, terminate)
    setup = Setup(family=given.family, compile_mmcv=given.compile_mmcv)
    try:
        setup.install()
        if given.command == 'test':
            return test(setup, passed_on)
        if given.command == 'demo':
            with locked(setup.home / 'demo.lock', 'A demo is at work in this checkout') as lock:
                demo(setup, given.resume, given.again, lock)
    except SetupError as error:
        print(f'\nquickstart: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say('\nInterrupted. What is finished is kept: the same command goes on from there.')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
