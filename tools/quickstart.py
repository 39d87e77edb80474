#!/usr/bin/env python3
"""Set up this checkout and use it: one command, on a machine that has no more than Python and a C++ compiler.

python3 tools/quickstart.py demo       set up, then train and test a small detector on the embedded data set
python3 tools/quickstart.py test       set up, then run the tests; further arguments go to pytest (test -m slow)
python3 tools/quickstart.py install    only set up

Set-up makes .venv in the checkout (with --family openmmlab, .venv-openmmlab with the original releases of OpenMMLab in
place of their maintained continuation), installs the pinned libraries in stages and checks that they work. It can be
interrupted and run again: finished stages are not repeated, and when nothing is to be done it takes a moment.
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
import sysconfig
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
CONFIG = 'configs/mask_rcnn_xcit_n12_8_digits.py'
WORK_DIR = 'work_dirs/digits_demo'

# Run in the new environment. The last "checking" line in the log tells what failed, even after a crash.
CHECK = """
def step(name):
    print('checking', name, flush=True)

step('torch'); import torch
step('cv2'); import cv2
step('mmcv'); import mmcv
step('operators'); from mmcv.ops import get_compiling_cuda_version, nms
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist()
assert kept == [0, 2], f'nms kept {kept} in place of [0, 2]'
cuda = get_compiling_cuda_version()
step('mmengine'); import mmengine
step('mmdet'); import mmdet
step('mmseg'); import mmseg
step('mmpretrain'); import mmpretrain
step('xcit_mm'); import xcit_mm
print('operators compiled for CUDA:', cuda)
"""

COMPILER = 'install a C++ compiler (Debian, Ubuntu: apt install g++)'
HEADERS = f'install the headers of Python {VERSION} (Debian, Ubuntu: apt install python{VERSION}-dev)'
NO_NETWORK = r'NewConnectionError|ConnectTimeout|[Rr]ead timed out|ProxyError|Max retries|name resolution|unreachable'
NO_MEMORY = r'Killed signal|fatal error: Killed|[Cc]annot allocate memory|virtual memory exhausted'
NO_COMPILER = r"(cc|c\+\+|g\+\+)'? (failed: No such file|not found)|No such file or directory: '\S*(cc|\+\+)'"
HINTS = (
    (r'No space left on device|Disk quota exceeded', 'free some disk space and run the same command again'),
    (NO_NETWORK, 'this looks like the network: check connection and proxy settings and run the same command again'),
    (r'CERTIFICATE_VERIFY_FAILED', "pip does not trust the server's certificate: see pip's option --cert (PIP_CERT)"),
    (NO_MEMORY, 'the compiler ran out of memory: MAX_JOBS=1 python3 tools/quickstart.py install'),
    (r'Python\.h: No such file', HEADERS),
    (NO_COMPILER, COMPILER),
    (r'No matching distribution found', 'the package index pip uses has no such version for this Python and system'),
)


class Family(NamedTuple):
    """One of the two families of distributions that provide mmengine, mmcv, mmpretrain, mmdet and mmseg."""

    name: str  # of the requirements file
    suffix: str  # of the folders in the checkout
    pythons: Tuple[Tuple[int, int], Tuple[int, int]]  # oldest and newest
    mmengine: str
    mmcv: str
    build_tools: Tuple[str, ...]


FAMILIES = {
    family.name: family
    for family in (
        Family('onedl', '', ((3, 10), (3, 12)), 'onedl-mmengine', 'onedl-mmcv', ('setuptools>=80', 'packaging>=24.2')),
        # mmcv 2.1 is built and mmengine 0.10 run with pkg_resources, which later setuptools lack.
        Family('openmmlab', '-openmmlab', ((3, 10), (3, 11)), 'mmengine', 'mmcv', ('setuptools<80', 'packaging')),
    )
}


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to try."""


class Terminated(KeyboardInterrupt):
    """Asked to stop by a signal that, unlike Ctrl-C, running commands do not get as well."""


class Stage(NamedTuple):
    """One step of the set-up: a command that is run until it has succeeded once."""

    name: str
    title: str
    command: List[str]
    needs: List[str] = []  # distributions it leaves; if one is gone the stage is repeated
    depends: str = ''  # text whose change makes it run again

    @property
    def key(self):
        """Changes when the stage would do something else than when it was run."""
        return hashlib.sha256(repr((self.command, self.depends)).encode()).hexdigest()[:16]


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


def names(requirements):
    """The distributions that requirements ask for."""
    return [re.split(r'[^\w.-]', requirement)[0].lower() for requirement in requirements]


def distributions(site):
    """Name and version of everything in a site-packages folder, read without importing anything."""
    return sorted(path.name[: -len('.dist-info')] for path in site.glob('*.dist-info'))


def fingerprint(root, site, family='onedl'):
    """What a verification is valid for: the checkout and its pins, what is installed, and the compiled operators."""
    texts = [root / 'setup.py', root / 'pyproject.toml', *sorted(root.glob(f'requirements/{family}*.txt'))]
    files = [site / 'torch/version.py', *sorted((site / 'mmcv').glob('_ext*.so'))]
    return {
        'checkout': str(root),
        'pins': hashlib.sha256(b'\0'.join(path.read_bytes() for path in texts)).hexdigest(),
        'check': hashlib.sha256(CHECK.encode()).hexdigest(),
        'installed': distributions(site),
        'files': [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()],
    }


def ninja_step(line):
    """(12, 80) for a line `[12/80] c++ ...` of ninja, None for any other."""
    found = re.match(r'\s*\[(\d+)/(\d+)\] ', line)
    return (int(found[1]), int(found[2])) if found else None


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
        self.what, self.first = 'starting', None

    def feed(self, line):
        """Take a line of output; True if it is worth keeping in the log."""
        download = re.match(r'Progress (\d+) of (\d+)', line)
        step = ninja_step(line)
        if download:
            self.what = '{:.0f} of {:.0f} MB'.format(*(int(size) / 1e6 for size in download.groups()))
        elif step:
            now, (done, total) = time.monotonic(), step
            self.first = self.first or (now, done)
            pace = (now - self.first[0]) / max(done - self.first[1], 1)
            known = done - self.first[1] > 3  # compilers start together: the first to end say little
            left = f', about {clock(pace * (total - done))} left' if known else ''
            self.what = f'compiled {done} of {total}{left}'
        elif re.match(r'\s*(Collecting|Downloading|Using cached|Building|Preparing|Installing|checking) ', line):
            self.what = line.strip()
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
    """The environment of one checkout, and the record of how far it is."""

    def __init__(self, root=ROOT, family='onedl'):
        self.family, suffix = FAMILIES[family], FAMILIES[family].suffix
        self.root, self.venv, self.home = root, root / f'.venv{suffix}', root / f'.setup{suffix}'
        self.python, self.site = self.venv / 'bin/python', self.venv / f'lib/python{VERSION}/site-packages'
        self.stamp, self.checks = self.home / 'stamp.json', self.home / 'logs/verify.log'
        self.record, self.lock = {}, None

    def load(self):
        """Read the record; nothing counts if .venv is another than the one it was written for."""
        with contextlib.suppress(OSError, ValueError):
            self.record = json.loads(self.stamp.read_text())
        config = self.venv / 'pyvenv.cfg'
        venv = config.stat().st_mtime_ns if config.exists() else None
        if self.record.get('venv') != venv:
            self.record = {'venv': venv}

    def save(self, **values):
        """Add to the record; it is replaced as a whole, so that it is never half written."""
        self.record.update(values)
        self.home.mkdir(exist_ok=True)
        draft = self.home / 'stamp.json.new'
        draft.write_text(json.dumps(self.record, indent=1))
        os.replace(str(draft), str(self.stamp))

    def ready(self):
        """Whether what is installed is what was verified."""
        return os.access(str(self.python), os.X_OK) and self.record.get('verified') == self.fingerprint()

    def fingerprint(self):
        """What a verification of this environment is valid for."""
        return fingerprint(self.root, self.site, self.family.name)

    def done(self, stage):
        """Whether a stage has finished as it stands now, and what it installed is still there."""
        return self.record.get('stages', {}).get(stage.name) == stage.key and self.has(stage.needs)

    def has(self, needs):
        """Whether these distributions are installed."""
        there = {name.rsplit('-', 1)[0].lower().replace('_', '-') for name in distributions(self.site)}
        return there.issuperset(needs)

    def run(self, stage):
        """Run a command of the set-up, or raise SetupError with the end of its output and what to try."""
        log, start = self.home / 'logs' / f'{stage.name}.log', time.monotonic()
        env = self.environment(compiling=stage.name.startswith('mmcv'))
        code = stream(stage.command, log, self.root, env, self.lock)
        if code:
            raise SetupError(failure(f'stage "{stage.name}" ({stage.title}) failed with exit code {code}', log))
        return time.monotonic() - start

    def run_all(self, stages):
        """Run the stages that are not done, in order; each is recorded as soon as it is."""
        for number, stage in enumerate(stages, 1):
            if self.done(stage):
                say(f'[{number}/{len(stages)}] {stage.name}: done before')
                continue
            say(f'[{number}/{len(stages)}] {stage.title}')
            sweep(self.site)
            seconds = self.run(stage)
            self.save(stages={**self.record.get('stages', {}), stage.name: stage.key})
            say(f'      done in {clock(seconds)}')

    def stages(self):
        """What is installed, in order."""
        family = self.family.name
        torch, libraries = pins(self.root, f'{family}-torch'), pins(self.root, family)
        by_name = dict(zip(names(libraries), libraries))
        engine, mmcv = by_name[self.family.mmengine], by_name[self.family.mmcv]
        rest = [pin for pin in libraries if pin not in (engine, mmcv)]
        tools = [*self.family.build_tools, 'wheel', 'ninja', 'psutil']
        install = [str(self.python), '-m', 'pip', 'install']
        raw = [*install, '--progress-bar', 'raw']
        pinned = ['-c', f'requirements/{family}-torch.txt', '-c', f'requirements/{family}.txt']
        # Without isolation pip builds with what is installed: mmcv has to be compiled against the torch it will meet.
        build = [*raw, '--no-build-isolation', *pinned]
        compiled = f'{mmcv}, compiled here (about 7 min on two cores, at once if pip has it in its cache)'
        depends = ''.join((self.root / name).read_text() for name in ('setup.py', 'pyproject.toml')) + str(self.root)
        return [
            Stage('pip', 'pip', [*install, '--upgrade', 'pip'], ['pip']),
            Stage('torch', f'{" ".join(torch)} (some minutes: 3 GB)', [*raw, *torch], names(torch)),
            Stage('tools', 'build tools', [*raw, '--upgrade', *pinned, *tools], names(tools)),
            Stage('mmengine', engine, [*build, engine], names([engine])),
            Stage('mmcv', compiled, [*build, '-v', mmcv], names([mmcv])),
            Stage(family, ' '.join(rest), [*build, *rest], names(rest)),
            Stage('project', 'this project and its tools', [*build, '-e', '.[dev]'], ['xcit-mm'], depends),
        ]

    def environment(self, compiling=False):
        """The variables that pip gets, added to those of the user."""
        env = {} if 'TMPDIR' in os.environ else {'TMPDIR': str(self.home / 'tmp')}  # what a killed pip leaves is found
        if compiling:
            env['MMCV_WITH_OPS'] = '1'
            memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
            env['MAX_JOBS'] = os.environ.get('MAX_JOBS') or str(max(1, min(os.cpu_count() or 1, int(memory / 2))))
            if not self.cuda_compiler() and os.environ.get('FORCE_CUDA') != '1':
                env['CUDA_VISIBLE_DEVICES'] = ''  # seeing a GPU, mmcv would need a compiler that is not there
        return env

    def cuda_compiler(self):
        """Whether there is an nvcc of the CUDA version that torch was built for."""
        version, home = self.site / 'torch/version.py', os.environ.get('CUDA_HOME')
        nvcc = shutil.which('nvcc', path=f'{home}/bin' if home else None) or shutil.which('/usr/local/cuda/bin/nvcc')
        wanted = re.search(r"cuda\S*.* = '(\d+)\.", version.read_text()) if version.exists() else None
        if not nvcc or not wanted:
            return False
        answer = subprocess.run([nvcc, '--version'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        found = re.search(r'release (\d+)\.', answer.stdout.decode(errors='replace'))
        return bool(found) and found[1] == wanted[1]

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
        self.record = {'venv': (self.venv / 'pyvenv.cfg').stat().st_mtime_ns}

    def check_machine(self):
        """Raise SetupError for what would make a later stage fail, before the long ones begin."""
        free = shutil.disk_usage(str(self.root)).free / 1e9
        if not self.has(['torch']) and free < DISK_GB:
            raise SetupError(f'{free:.1f} GB are free in {self.root}; setting up takes {DISK_GB} GB for a while.')
        if not self.has([self.family.mmcv]):
            if not shutil.which(os.environ.get('CXX', 'c++').split()[0]) and not shutil.which('g++'):
                raise SetupError(f"mmcv's operators are compiled here: {COMPILER}.")
            if not Path(sysconfig.get_paths()['include'], 'Python.h').exists():
                raise SetupError(f"mmcv's operators are compiled here: {HEADERS}.")

    def check(self):
        """Import and try everything in .venv; the name of what failed, or None, and the error."""
        # Not run in the checkout, so that it is the installed xcit_mm that counts.
        code = stream([str(self.python), '-c', CHECK], self.checks, self.home)
        text = self.checks.read_text(errors='replace')
        self.record['cuda_operators'] = bool(re.search(r'compiled for CUDA: \d', text))
        failed = ['python', *re.findall(r'^checking (\w+)$', text, re.M)][-1] if code else None
        return failed, (text.strip().splitlines() or [''])[-1]

    def verify(self):
        """Check that what is installed works, and try to repair what does not, once each."""
        say('Checking that everything works')
        start, tried, (failed, error) = time.monotonic(), [], self.check()
        force = [str(self.python), '-m', 'pip', 'install', '--force-reinstall', '--no-deps', '--progress-bar', 'raw']
        versions = dict(name.rsplit('-', 1) for name in distributions(self.site))
        while failed and failed not in tried:
            tried.append(failed)
            say(f'      {failed} does not work: {error[:160]}')
            if failed == 'operators':
                say('      pip keeps an mmcv it compiled for reuse under any torch. Compiling it anew (about 7 min).')
                mmcv = self.family.mmcv
                pin = f'{mmcv}=={versions[mmcv.replace("-", "_")]}'
                command = [*force, '--no-cache-dir', '--no-build-isolation', '-v', pin]
                seconds = self.run(Stage('mmcv-again', 'compiling mmcv anew', command))
                say(f'      done in {clock(seconds)}')
            elif failed == 'cv2' and '.so' in error and 'opencv_python' in versions:
                say('      This system has no display libraries. Taking the OpenCV that needs none.')
                self.run(Stage('opencv', 'OpenCV', [*force, f'opencv-python-headless=={versions["opencv_python"]}']))
            else:
                say('      Going through all stages again, which installs what is missing.')
                self.save(stages={})
                self.run_all(self.stages())
            failed, error = self.check()
        if failed:
            raise SetupError(failure(f'{failed} does not work, nor after a repair', self.checks))
        self.save(verified=self.fingerprint())
        say(f'      it does ({clock(time.monotonic() - start)})')

    def install(self):
        """Bring the environment to where it is known to work."""
        start = time.monotonic()
        with locked(self.home / 'lock', 'A set-up is at work in this checkout') as self.lock:
            self.load()
            if self.ready():
                say(f'Set-up: nothing to be done ({time.monotonic() - start:.1f} s).')
                return
            shutil.rmtree(str(self.home / 'tmp'), ignore_errors=True)
            (self.home / 'tmp').mkdir(parents=True)
            self.make_venv()
            self.save(verified=None)
            self.check_machine()
            self.run_all(self.stages())
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
    if not setup.record.get('cuda_operators'):
        if shutil.which('nvidia-smi') and env.get('CUDA_VISIBLE_DEVICES') != '':
            say("The GPU is not used: mmcv's operators are for CPUs here, for want of nvcc of torch's CUDA version.")
        env['CUDA_VISIBLE_DEVICES'] = ''  # detectors call the operators where their tensors are
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
    setup = Setup(family=given.family)
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
