#!/usr/bin/env python3
"""Set up this checkout and use it: one command, on a machine that has no more than Python.

python3 tools/quickstart.py demo       set up, then train and test a small detector on the embedded data set
python3 tools/quickstart.py test       set up, then run the tests; further arguments go to pytest (test -m slow)
python3 tools/quickstart.py install    only set up

Set-up makes .venv in the checkout (with --family openmmlab, .venv-openmmlab with the original releases of OpenMMLab in
place of their maintained continuation), installs the pinned libraries and checks that they work. mmcv's operators are
those of torchvision and PyTorch (xcit_mm/mmcv_ops), for CPU and GPU, so nothing is compiled. Set-up can be interrupted
and run again: what is installed is not installed again, and when nothing is to be done it takes a moment.
"""

import argparse
import contextlib
import functools
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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

print = functools.partial(print, flush=True)
ROOT = Path(__file__).resolve().parents[1]
VERSION = '{}.{}'.format(*sys.version_info)
DISK_GB = 12  # 8 for .venv, and 4 more while pip unpacks
CONFIG = 'configs/mask_rcnn_xcit_n12_8_digits.py'
WORK_DIR = 'work_dirs/digits_demo'
# Of each family: what the names of its folders end in, and its oldest and newest Python.
FAMILIES = {'onedl': ('', (3, 10), (3, 12)), 'openmmlab': ('-openmmlab', (3, 10), (3, 11))}

# Run in the new environment. The last "checking" line in the log tells what failed, even after a crash.
CHECK = """
import importlib
for name in 'torch', 'cv2', 'mmcv', 'mmcv.ops', 'mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'xcit_mm':
    print('checking', name, flush=True)
    importlib.import_module(name)
"""

HINTS = {
    r'No space left on device|Disk quota exceeded': 'free some disk space and run the same command again',
    r'NewConnectionError|ConnectTimeout|[Rr]ead timed out|ProxyError|Max retries|name resolution|unreachable': 'this '
    'looks like the network: check connection and proxy settings and run the same command again',
    r'': 'run the same command again; if that fails as well, delete .venv* and .setup* and start afresh',
}


class SetupError(Exception):
    """Set-up cannot continue; the message says why and what to try."""


def clock(start):
    """The time since ``start``, as text."""
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'


def run(command, lock, cwd, log, env=None, bar=None):
    """Run a command that inherits the lock in a session of its own; return its exit code. An interruption ends it.

    Its output goes to the file ``log``. The screen shows how far it is, in one line or in ``bar``.
    """
    interrupted = []  # in the middle of starting a process, Ctrl-C would leave that running
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    options = dict(start_new_session=True, pass_fds=[lock], cwd=str(cwd), **pipes)
    try:
        process = subprocess.Popen([str(part) for part in command], env={**os.environ, **(env or {})}, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        if interrupted:
            raise KeyboardInterrupt
        os.ftruncate(lock, 0)
        os.pwrite(lock, f'{os.getpid()} {process.pid}'.encode(), 0)  # this process and the one it started
        follow(process.stdout, log, bar)
        return process.wait()
    finally:
        if process.poll() is None:
            stop(process)


def stop(process):
    """Stop a command and everything it started: by SIGINT, on which pip tidies up, then SIGTERM, then SIGKILL."""
    for number, patience in ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            if process.poll() is None or number == signal.SIGKILL:  # the last also for what outlived the command
                os.killpg(process.pid, number)
                process.wait(patience)


def follow(stdout, log, bar=None):
    """Write output to a log until it ends, and show how far it is: in ``bar``, in one line of a terminal, or by lines.

    ``stdout`` stays open: what is interrupted may still have something to say before it ends.
    """
    tty, start, what, rest = sys.stdout.isatty(), time.monotonic(), 'starting', b''
    shown, width = start, shutil.get_terminal_size((110, 1)).columns - 1
    selector, progress = selectors.DefaultSelector(), Progress()
    selector.register(stdout, selectors.EVENT_READ)
    with log.open('wb') as file:
        while True:
            if selector.select(timeout=0.5):
                chunk = os.read(stdout.fileno(), 65536)
                *lines, rest = (rest + chunk).split(b'\n')
                for line in lines if chunk else [rest]:
                    text = line.decode(errors='replace').strip()
                    what = progress.read(text) or what
                    if not text.startswith('Progress '):
                        file.write(line + b'\n')
                file.flush()
                if bar:
                    bar(progress)
                if not chunk:
                    return print('\r\x1b[2K' if tty and not bar else '', end='')
            if not bar and time.monotonic() - shown >= (0.5 if tty else 20):
                shown, text = time.monotonic(), f'      {clock(start)}: {what}'[:width]
                print(f'\r\x1b[2K{text}' if tty else text, end='' if tty else '\n')


class Progress:
    """How far a command is, by its output.

    Attributes:
        share (float or None): From 0 to 1, if it is known.
        step (str): The latest step of a loop of MMEngine's.
    """

    def __init__(self):
        self.share, self.step, self.epochs = None, 'starting', 1

    def read(self, line):
        """What to show after a line of pip's or of MMEngine's; the line itself if it is neither's."""
        download = re.match(r'Progress (\d+) of (\d+)', line)
        if download:
            return '{:.0f} of {:.0f} MB'.format(*(int(size) / 1e6 for size in download.groups()))
        schedule = re.match(r'schedule +(\d+) epochs', line)
        if schedule:
            self.epochs = int(schedule[1])
        step = re.search(r'Epoch\((\w+)\) +(?:\[(\d+)\])?\[ *(\d+)/(\d+)\](.*)', line)
        if not step:
            return line
        done, of = int(step[3]), int(step[4])
        left, loss = (re.search(rf'\b{name}: ([\d:.]+)', step[5]) for name in ('eta', 'loss'))
        if step[1] == 'train':
            epoch = int(step[2])
            self.share = (epoch - 1 + done / of) / self.epochs
            text = f'epoch {epoch} of {self.epochs}, {done} of {of}, loss {loss[1] if loss else "?"}'
        else:
            self.share = done / of if step[1] == 'test' else self.share
            text = f'{step[1]}, {done} of {of}'
        self.step = f'{text}, {left[1]} left' if left and done < of else text
        return self.step


@contextlib.contextmanager
def locked(path, busy):
    """Hold a lock file, saying so if that means to wait; gives its file descriptor.

    Jobs under the lock inherit it. One whose starter was killed is ended: it would run for minutes, or for ever.
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
                print(f'{busy}; waiting for it to end')
            except ProcessLookupError:
                print(f'{busy}, left over from one that was killed; ending it')
                os.killpg(job, signal.SIGKILL)
            fcntl.flock(fd, fcntl.LOCK_EX)
        os.ftruncate(fd, 0)
        yield fd
    finally:
        os.close(fd)


class Setup:
    """The environment of one checkout."""

    def __init__(self, root=ROOT, family='onedl'):
        self.root, self.family, suffix = root, family, FAMILIES[family][0]
        self.venv, self.home = root / f'.venv{suffix}', root / f'.setup{suffix}'
        self.python, self.site = self.venv / 'bin/python', self.venv / f'lib/python{VERSION}/site-packages'
        self.verified, self.lock = self.home / 'verified', None

    def state(self):
        """A hash of what a verification is valid for: the checkout, its pins, what is installed, mmcv's operators."""
        texts = [self.root / 'setup.py', self.root / 'pyproject.toml', *sorted(self.root.glob('requirements/*'))]
        files = [self.site / 'torch/version.py', *sorted(self.site.glob('mmcv/_ext*'))]
        state = [str(self.root), CHECK, *(path.read_text() for path in texts)]
        state += sorted(path.name for path in self.site.glob('*.dist-info'))
        state += [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files if path.exists()]
        return hashlib.sha256(repr(state).encode()).hexdigest()

    def ready(self):
        """Whether what is installed is what was verified."""
        return self.python.exists() and self.verified.exists() and self.verified.read_text() == self.state()

    def run(self, name, title, *command):
        """Run a step of the set-up, or raise SetupError with the end of its output and what to try."""
        log, start = self.home / f'logs/{name}.log', time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        print(title)
        sweep(self.site)
        code = run(command, self.lock, self.root, log, {'TMPDIR': str(self.home / 'tmp')})  # so a killed pip's is found
        if code:
            raise SetupError(failure(f'"{title}" failed with exit code {code}', log))
        print(f'      done in {clock(start)}')

    def stages(self, replace=False):
        """Name, title and command of each; pip passes over what is there. ``replace``: compiled operators as well."""
        pins = {path.stem: path.read_text() for path in self.root.glob(f'requirements/{self.family}*.txt')}
        mmcv = re.search(r'^\S*mmcv==\S+', pins[self.family], re.M)[0]
        torch = ' '.join(re.findall(r'^\S+==\S+', pins[f'{self.family}-torch'], re.M))
        files = ['-r', f'requirements/{self.family}-torch.txt'], ['-r', f'requirements/{self.family}.txt']
        pip = [self.python, '-m', 'pip', 'install']
        yield 'pip', 'pip', [*pip, '--upgrade', 'pip>=25.3']  # with the options below
        pip += ['--progress-bar', 'raw']
        build = [*pip, '--build-constraint', f'requirements/{self.family}.txt']
        yield 'torch', f'{torch} (some minutes: 3 GB)', [*pip, *files[0]]
        # Built in isolation, where there is no PyTorch, mmcv consists of Python alone; a wheel in pip's cache may not.
        yield 'mmcv', f'{mmcv}, without compiled operators', [*build, '--no-deps', '--no-cache-dir', mmcv]
        libraries = [*build, *sum(files, []), '-e', '.[dev]']
        yield 'libraries', 'the OpenMMLab libraries, this project and its tools', libraries
        if replace or not list(self.site.glob('mmcv/_ext*.so')):  # those that somebody compiled stay
            command = [self.python, '-m', 'xcit_mm.mmcv_ops', 'install', '--replace']
            yield 'operators', "mmcv's operators, of torchvision and PyTorch", command

    def run_all(self, replace=False):
        """Run all stages."""
        stages = list(self.stages(replace))
        for number, (name, title, command) in enumerate(stages, 1):
            self.run(name, f'[{number}/{len(stages)}] {title}', *command)

    def make_venv(self):
        """Make .venv, and make it anew if what is there cannot be used."""
        probe = 'import sys; from pip._internal.cli.main import main; print("{}.{}".format(*sys.version_info))'
        version = ''
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = [str(self.python), '-c', probe]
            version = subprocess.check_output(command, stderr=subprocess.DEVNULL).decode().strip()
        if version == VERSION:
            return
        if self.venv.exists() or self.venv.is_symlink():
            trouble = f'holds Python {version}, not {VERSION}' if version else 'is broken'
            print(f'The {self.venv.name} here {trouble}: it is made anew.')
            self.venv.unlink() if self.venv.is_symlink() else shutil.rmtree(str(self.venv))
        python = getattr(sys, '_base_executable', sys.executable)  # not the one of an environment about to be replaced
        self.run('venv', f'Making {self.venv.name}', python, '-m', 'venv', self.venv)

    def verify(self):
        """Import and try everything in .venv, and try to repair what does not work, once each."""
        print('Checking that everything works')
        log, tried = self.home / 'logs/verify.log', []
        while run([self.python, '-c', CHECK], self.lock, self.home, log):  # not in the checkout: the installed counts
            text = log.read_text(errors='replace')
            failed, error = ['python', *re.findall(r'^checking (\S+)$', text, re.M)][-1], text.strip().split('\n')[-1]
            if failed in tried:
                raise SetupError(failure(f'{failed} does not work, nor after a repair', log))
            tried.append(failed)
            print(f'      {failed} does not work: {error[:160]}')
            opencv = next(self.site.glob('opencv_python-*.dist-info'), None)
            if failed == 'cv2' and '.so' in error and opencv:
                pin = opencv.name[: -len('.dist-info')].replace('opencv_python-', 'opencv-python-headless==')
                title = 'This system has no display libraries. Taking the OpenCV that needs none.'
                self.run('opencv', title, self.python, '-m', 'pip', 'install', '--force-reinstall', '--no-deps', pin)
            else:
                print('      Going through all stages again, which installs what is missing.')
                self.run_all(replace=failed == 'mmcv.ops')
        self.verified.write_text(self.state())

    def install(self):
        """Bring the environment to a verified state."""
        start = time.monotonic()
        with locked(self.home / 'lock', 'A set-up is at work in this checkout') as self.lock:
            if self.ready():
                print(f'Set-up: nothing to be done ({time.monotonic() - start:.1f} s).')
                return
            free = shutil.disk_usage(str(self.root)).free / 1e9
            if not (self.site / 'torch').exists() and free < DISK_GB:
                raise SetupError(f'{free:.1f} GB are free in {self.root}; setting up takes {DISK_GB} GB for a while.')
            temporary = self.home / 'tmp'
            shutil.rmtree(str(temporary), ignore_errors=True)
            temporary.mkdir(parents=True)
            self.make_venv()
            self.run_all()
            self.verify()
            shutil.rmtree(str(temporary), ignore_errors=True)
            print(f'Set-up: complete in {clock(start)}.')


def sweep(site):
    """Remove what an interrupted pip leaves: folders it renamed, and records of packages it had not finished."""
    unfinished = [path for path in site.glob('*.dist-info') if not (path / 'INSTALLER').exists()]  # pip writes it last
    for path in (*site.glob('~*'), *unfinished):
        shutil.rmtree(str(path), ignore_errors=True)


def failure(what, log):
    """What to say of a failed command: the end of its output, where all of it is, and what to try."""
    text = log.read_text(errors='replace')
    tail = '\n'.join('    ' + line[:200] for line in text.strip().splitlines()[-15:])
    advice = next(advice for pattern, advice in HINTS.items() if re.search(pattern, text))
    return f'{what}. Its output ended with\n\n{tail}\n\nAll of it: {log}\nWhat to try: {advice}.'


@contextlib.contextmanager
def drawn_bar():
    """A progress bar on a terminal: gives a function that shows a Progress, or None elsewhere."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    with Bars(TextColumn('     '), BarColumn(), TimeElapsedColumn(), TextColumn('{task.description}')) as bars:
        task = bars.add_task('starting', total=None)

        def show(progress):
            total = None if progress.share is None else 1
            bars.update(task, description=progress.step, total=total, completed=progress.share or 0)

        yield show
        bars.update(task, description='', total=1, completed=1)


def demo(setup, again, lock):
    """Make the data set, train, test, and show the results. What the libraries print goes to logs."""
    sys.path.append(str(setup.site))  # for rich; .venv has the Python that runs this
    work, begin = setup.root / WORK_DIR, time.monotonic()
    pointer = work / 'last_checkpoint'

    def step(number, title, name, *command):
        log = setup.home / f'logs/demo-{name}.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f'[{number}/3] {title}')
        with drawn_bar() as bar:
            code = run([setup.python, '-u', *command], lock, setup.root, log, bar=bar)
        if code:
            text = failure(f'Step {number} ended with exit code {code}', log)
            raise SetupError(f'{text}\nRun again, the demo continues from here.')

    step(1, 'The data set: handwritten digits on photographs', 'data', 'tools/make_digits.py', 'data/digits')
    if again and pointer.exists():
        pointer.unlink()
    resume = ['--resume'] if pointer.exists() else []  # one that is finished ends at once
    title = f'{"Resuming" if resume else "Training"} Mask R-CNN on XCiT, 10 to 25 min on two cores'
    step(2, title, 'train', 'tools/train.py', CONFIG, '--work-dir', WORK_DIR, *resume)
    checkpoint = f'{WORK_DIR}/{Path(pointer.read_text().strip()).name}'  # the checkout may have been moved since
    tested, options = time.time(), ['--work-dir', f'{WORK_DIR}/test', '--show-dir', f'{WORK_DIR}/test/pictures']
    step(3, 'Testing, with pictures', 'test', 'tools/test.py', CONFIG, checkpoint, *options)

    results = [path for path in work.glob('test/*/*.json') if path.stat().st_mtime >= tested - 2]
    scores = json.loads(max(results, key=lambda path: path.stat().st_mtime).read_text()) if results else {}
    show_results(setup, scores, checkpoint, clock(begin))


def show_results(setup, scores, checkpoint, duration):
    """Print scores, where everything is, and what to do next."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f'Mask R-CNN on XCiT-N12/8, {duration}', title_justify='left', show_header=False)
    table.add_column(style='bold', no_wrap=True)
    table.add_column(overflow='fold')
    for label, name in (('box AP', 'bbox_mAP'), ('mask AP', 'segm_mAP')):
        value = next((scores[key] for key in scores if key.endswith(name)), None)
        table.add_row(label, 'not found' if value is None else f'{100 * value:.1f}')
    table.add_row('pictures', f'{WORK_DIR}/test/pictures (left the labels, right the prediction)')
    table.add_row('checkpoint', checkpoint)
    table.add_row('logs', f'{WORK_DIR}/2*/*.log, {setup.home.name}/logs')
    following = Table(title='Next', title_justify='left', show_header=False)
    following.add_column(style='bold', no_wrap=True)
    following.add_column(overflow='fold')
    following.add_row('activate', f'source {setup.venv.name}/bin/activate')
    following.add_row('your images', 'xcit-mm finetune FOLDER')
    following.add_row('COCO', 'tools/train.py configs/mask_rcnn_xcit_s12_8_3x_coco.py')
    following.add_row('read', 'README.md, docs/tutorial.md')
    console.print()
    console.print(table)
    console.print(following)


def test(setup, arguments):
    """Become pytest, with one file of tests at a time on each core, up to the number that memory is enough for."""
    workers = min(os.cpu_count() or 1, 4)
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // workers)))
    several = ['-n', str(workers), '--dist', 'loadfile', '--no-loadscope-reorder']
    os.chdir(str(setup.root))
    os.execv(str(setup.python), [str(setup.python), '-m', 'pytest', *several, *arguments])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', metavar='{install,demo,test}')
    family = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    families = 'the maintained OpenMMLab packages with the newest PyTorch (onedl, the default), or the original ones'
    family.add_argument('--family', choices=FAMILIES, default='onedl', help=families)
    family.add_argument('--compile-mmcv', action='store_true', help='no longer possible; says why, and what to do')
    commands.add_parser('install', parents=[family], help='only set up')
    options = commands.add_parser('demo', parents=[family], help='set up, then train and test on the embedded data set')
    options.add_argument('--again', action='store_true', help='train anew even if there is a training already')
    explained = 'set up, then run the tests; further arguments go to pytest'
    commands.add_parser('test', parents=[family], allow_abbrev=False, help=explained, description=explained)
    given, passed_on = parser.parse_known_args()
    if not given.command:
        parser.error('say what to do: install, demo or test')
    if passed_on and given.command != 'test':
        parser.error(f'unrecognized arguments: {" ".join(passed_on)}')
    if given.compile_mmcv:
        parser.error(
            "nothing is compiled here: mmcv asks for C++17, the pinned PyTorch's headers need C++20. Leave this out, "
            'for operators of torchvision and PyTorch, or compile mmcv for an older PyTorch: docs/install.md'
        )
    if fcntl is None:
        sys.exit('quickstart: this needs Linux; on Windows use WSL')
    # What torch, mmcv and their dependencies have in common.
    oldest, latest = FAMILIES[given.family][1:]
    if not oldest <= sys.version_info[:2] <= latest:
        other = next((name for name in ('python3.11', 'python3.10', 'python3.12') if shutil.which(name)), '')
        advice = f': {other} tools/quickstart.py {" ".join(sys.argv[1:])}' if other else ''
        between = '{}.{} to {}.{}'.format(*oldest, *latest)
        sys.exit(f'quickstart: the libraries need Python {between}, this is {VERSION}{advice}')
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    setup = Setup(family=given.family)
    try:
        setup.install()
        if given.command == 'test':
            test(setup, passed_on)
        if given.command == 'demo':
            with locked(setup.home / 'demo.lock', 'A demo is at work in this checkout') as lock:
                demo(setup, given.again, lock)
    except SetupError as error:
        print(f'\nquickstart: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nInterrupted. What is finished is kept: the same command continues from there.')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
