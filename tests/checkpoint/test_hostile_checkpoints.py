"""Some hundred bad checkpoints: no code is run, no model is half loaded, no memory is filled, one message each."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from backbones import randomise
from bad_checkpoints import HEAD, LAYER, bad_checkpoints, torch_bytes
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner as MMEngineRunner
from processes import ROOT, call
from safetensors.torch import load_file

import xcit_mm.engine.setup as engine
from xcit_mm.checkpoint import CheckpointError, load_checkpoint_file
from xcit_mm.conversion.convert import convert
from xcit_mm.engine.hooks import CheckpointFitHook

ARCH = dict(embed_dims=16, depth=1, num_heads=2)
UNUSUAL_BUT_WHOLE = ('metadata of another kind', 'dicts without methods', 'two files.pth')
MEMORY = 64 << 20  # bytes that one bad file may take; all of them are smaller than 2 MB

pytestmark = pytest.mark.usefixtures('one_thread')


def classifier_cfg():
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=dict(type='xcit_mm.XCiT', arch=ARCH, patch_size=16, out_type='cls_token'),
                head=dict(type='LinearClsHead', num_classes=2, in_channels=16),
            ),
        )
    )


@pytest.fixture(scope='module')
def classifier():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return randomise(MODELS.build(classifier_cfg().model))


@pytest.fixture(scope='module')
def corpus(classifier, tmp_path_factory):
    """The files, and where code in them would make a folder."""
    folder = tmp_path_factory.mktemp('corpus')
    canary, paths = folder / 'canary', []
    for number, (name, content) in enumerate(bad_checkpoints(classifier.state_dict(), canary)):
        path = folder / f'{number:03d} {name}'
        path.write_bytes(content)
        paths.append(path)
    assert not canary.exists() and len(set(paths)) == len(paths)
    return paths, canary


def reset_peak():
    """Forget the largest size that this process had, and give its size now in bytes."""
    Path('/proc/self/clear_refs').write_text('5')
    return memory('VmRSS')


def memory(key):
    return int(re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) << 10


class Runner:
    """As much of MMEngine's runner as loads a checkpoint, with its hook of this project."""

    def __init__(self, model):
        self.load = lambda path: MMEngineRunner.load_checkpoint(self, path)
        self.model, self.logger = model, MMLogger.get_current_instance()
        self._resume, self._train_loop, self._has_loaded = False, None, False

    def call_hook(self, name, checkpoint):
        getattr(CheckpointFitHook(), name)(self, checkpoint=checkpoint)


def start_backbone(path, model):
    backbone = copy.deepcopy(model.backbone)
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    backbone._is_init = False
    try:
        backbone.init_weights()
    finally:
        model.backbone.load_state_dict(backbone.state_dict())


def load_whole(path, model):
    Runner(model).load(str(path))


def before_a_test(path, model):
    engine.check_model(classifier_cfg(), str(path), 'test')


def convert_file(path, model):
    target = path.parent / 'converted.pth'
    try:
        convert(str(path), str(target), 'xcit_mm')
        assert target.exists()
        target.unlink()
    finally:
        assert not list(path.parent.glob('*converted*'))


def outcome(read, path, model):
    """Have a file read into a model with other weights. Returns the error's message, or None if it was taken."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(3)
    try:
        read(path, model)
    except CheckpointError as error:
        message = str(error)
        assert str(path) in message, message
        assert message.replace(str(path), '').isprintable() and len(message) < 1500, message
        assert all((tensor == 3).all() for tensor in model.state_dict().values()), f'{path.name}: half loaded'
        return message
    return None


def may_be_taken(path, original, read):
    """Whether a file is none of the harmful ones, and what a correct reader would get from it.

    The checksums of a zip file leave no doubt; a flipped bit in another format is a weight like any other.
    """
    name = path.name
    if 'bit flipped' in name:
        if 'zip' in name:
            return original
        return {**load_plainly(path)}
    if any(words in name for words in UNUSUAL_BUT_WHOLE):
        return original
    if 'head' in name and read is start_backbone:
        return original
    if 'a head for other classes' in name and read is convert_file:
        return original
    return None


def load_plainly(path):
    if path.suffix == '.safetensors':
        return load_file(path)
    # A flipped bit may have changed the name under which the tensors lie.
    return next(part for part in torch.load(path, weights_only=True).values() if 'cls_token' in str(dict.keys(part)))


@pytest.mark.parametrize(
    'read, share',
    [(start_backbone, 2), (load_whole, 2), (before_a_test, 6), (convert_file, 6)]
    + [
        pytest.param(read, 1, marks=pytest.mark.slow)
        for read in (start_backbone, load_whole, before_a_test, convert_file)
    ],
)
def test_bad_files_are_refused_or_read_whole(read, share, corpus, classifier):
    paths, canary = corpus
    paths = paths[::share]
    original = copy.deepcopy(classifier.state_dict())
    model = copy.deepcopy(classifier)
    read_first = outcome(read, paths[0], model)
    assert read_first  # and everything is imported
    taken, worst = [], (0, '')
    for path in paths:
        before = reset_peak()
        refused = outcome(read, path, model)
        used = memory('VmHWM') - before
        worst = max(worst, (used, path.name))
        assert used < MEMORY, f'{path.name}: {used / 1e6:.0f} MB'
        assert not canary.exists(), f'{path.name} has run code'
        if refused is None:
            taken.append(path.name)
            expected = may_be_taken(path, original, read)
            assert expected is not None, f'{path.name} was taken for a good file'
            if read in (start_backbone, load_whole):
                for name, tensor in model.state_dict().items():
                    if read is load_whole or name.startswith('backbone.'):
                        assert torch.equal(tensor, expected[name].to(tensor.dtype)), (path.name, name)
    print(f'{read.__name__}: {len(paths)} files, {len(taken)} taken, at most {worst[0] / 1e6:.1f} MB ({worst[1]})')
    assert len(paths) >= 200 / share


def test_the_reader_for_pytorch_without_an_allow_list_is_as_strict(corpus, classifier, monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.1')
    paths, canary = corpus
    model = copy.deepcopy(classifier)
    for path in paths[::3]:
        before = reset_peak()
        if outcome(start_backbone, path, model) is None:
            assert may_be_taken(path, {}, start_backbone) is not None, path.name
        assert memory('VmHWM') - before < MEMORY, path.name
        assert not canary.exists(), path.name


def test_a_flipped_bit_among_the_weights_is_noticed(classifier, tmp_path):
    """PyTorch's own reader does not compare the checksums of the zip file."""
    content = bytearray(torch_bytes({'state_dict': classifier.state_dict()}))
    place = content.index(classifier.state_dict()[LAYER].numpy().tobytes())
    content[place + 2] ^= 1
    (tmp_path / 'flipped.pth').write_bytes(content)
    read = torch.load(tmp_path / 'flipped.pth', weights_only=True)['state_dict'][LAYER]
    assert not torch.equal(read, classifier.state_dict()[LAYER])
    with pytest.raises(CheckpointError, match='flipped.pth is not a checkpoint that can be read.*CRC-32'):
        load_checkpoint_file(str(tmp_path / 'flipped.pth'))


@pytest.mark.skipif(not hasattr(torch.serialization, 'set_crc32_options'), reason='this PyTorch always writes them')
def test_a_file_written_without_checksums_is_read(classifier, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'state_dict': classifier.state_dict()}, tmp_path / 'file.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint_file(str(tmp_path / 'file.pth'))['state_dict']


def test_the_name_of_the_file_is_in_the_message_of_a_bare_dict(classifier, tmp_path):
    state = {name: tensor for name, tensor in classifier.state_dict().items() if name != LAYER}
    torch.save({'state_dict': dict(state)}, tmp_path / 'less.pth')
    with pytest.raises(
        CheckpointError, match=r'less\.pth: the checkpoint .*missing \(1\): blocks\.0\.mlp\.fc1\.weight'
    ):
        load_whole(tmp_path / 'less.pth', classifier)


def test_half_precision_and_double_precision_are_good_weights(classifier, tmp_path):
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        state = {k: v.to(kind) if v.is_floating_point() else v for k, v in classifier.state_dict().items()}
        torch.save({'state_dict': state}, tmp_path / 'file.pth')
        model = copy.deepcopy(classifier)
        load_whole(tmp_path / 'file.pth', model)
        assert torch.equal(model.state_dict()[HEAD], state[HEAD].float())


COMMANDS = ['code by GLOBAL.pth', 'memory by bytearray.pth', 'truncated at 1000 zip.pth', 'web page.pth', 'all nan.pth']


def commands(path, config):
    yield 'test.py', config, path
    yield 'convert_checkpoint.py', path, path.parent / 'new.pth', '--to', 'timm'


@pytest.mark.parametrize('name', COMMANDS)
def test_the_tools_say_it_in_one_message(name, corpus, tmp_path, run_tool, capsys):
    paths, canary = corpus
    path = next(path for path in paths if path.name.endswith(name))
    (tmp_path / 'config.py').write_text(f'cfg = {classifier_cfg().to_dict()!r}\nglobals().update(cfg)\n')
    for tool, *arguments in commands(path, tmp_path / 'config.py'):
        with pytest.raises(SystemExit) as end:
            run_tool(ROOT / 'tools' / tool, *arguments)
        (message,) = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 1 and message.startswith('error: ') and str(path) in message
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize('name', COMMANDS)
def test_the_commands_end_with_one_message_and_code_1(name, corpus, tmp_path):
    paths, canary = corpus
    path = next(path for path in paths if path.name.endswith(name))
    (tmp_path / 'config.py').write_text(f'cfg = {classifier_cfg().to_dict()!r}\nglobals().update(cfg)\n')
    for tool, *arguments in commands(path, tmp_path / 'config.py'):
        done = call([sys.executable, ROOT / 'tools' / tool, *arguments], cwd=tmp_path)
        assert done.returncode == 1 and 'Traceback' not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith('error: ')
        assert str(path) in done.stderr
    assert not canary.exists()
