"""Where weights come from: web addresses and their cache, the Hugging Face hub, the names of the model zoo.

The hub is a folder in the layout of huggingface_hub's cache, which its client reads without network.
"""

import hashlib
import json
import os
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from backbones import build, deviation, official_names, randomise
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, load_checkpoint
from processes import ROOT, call
from safetensors.torch import load_file, save_file
from torch import nn

import xcit_mm
from xcit_mm.apis import create_backbone
from xcit_mm.checkpoint import CheckpointError, is_address, read_checkpoint
from xcit_mm.checkpoint.sources import _HASH, cache_path, hub_twin, resolve
from xcit_mm.conversion.convert import convert
from xcit_mm.model_zoo import all_models, all_weights, find_weights
from xcit_mm.visualization import load_backbone

COMMIT = 'f' * 40


@pytest.fixture
def source(tiny):
    return randomise(build(arch=tiny))


def classifier_file(model):
    """What the original release publishes."""
    head = {'head.weight': torch.zeros(10, 32), 'head.bias': torch.zeros(10)}
    return {'model': {**official_names(model.state_dict()), **head}}


def pretrained(address, **kwargs):
    model = build(init_cfg=dict(type='Pretrained', checkpoint=address), **kwargs)
    model.init_weights()
    return model


def assert_same(model, reference):
    state, expected = model.state_dict(), reference.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


# Web addresses and their cache.


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A folder, the address under which a server on this machine shows it, and PyTorch's cache, empty."""
    folder = tmp_path / 'web'
    folder.mkdir()
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    yield folder, f'http://127.0.0.1:{server.server_port}', tmp_path / 'home' / 'hub' / 'checkpoints'
    server.shutdown()


def keep(address, content):
    """A file in the cache, as if it had been downloaded."""
    path = cache_path(address)
    os.makedirs(os.path.dirname(path))
    torch.save(content, path)


def files_of(cache):
    return [path for path in cache.rglob('*') if path.is_file()]


@pytest.mark.parametrize('name', ['model.safetensors', 'checkpoint.pth', 'model.safetensors?download=1&v={}'])
def test_two_addresses_with_one_file_name_are_two_files(name, tiny, web):
    """In every reader: init_cfg, load_from, attention maps, conversion, a teacher."""
    folder, address, cache = web
    models, file = [randomise(build(arch=tiny), seed=seed) for seed in (1, 2)], name.split('?')[0]
    for i, model in enumerate(models):
        (folder / f'{i}').mkdir()
        if file.endswith('.safetensors'):
            save_file(model.state_dict(), folder / f'{i}' / file)
        else:
            torch.save(classifier_file(model), folder / f'{i}' / file)
    addresses = [f'{address}/{i}/{name.format(i)}' for i in (0, 1)]
    for _ in range(2):  # downloaded, and out of the cache
        for where, model in zip(addresses, models):
            assert_same(pretrained(where, arch=tiny), model)
            assert_same(load_backbone(where), model)
            state = CheckpointLoader.load_checkpoint(where, map_location='cpu')['state_dict']
            assert torch.equal(state['backbone.cls_token'], model.cls_token)
    assert len(files_of(cache)) == 2
    for i, where in enumerate(addresses):
        target = folder / f'{i}.pth'
        convert(where, str(target), 'xcit_mm')
        assert_same(pretrained(str(target), arch=tiny), models[i])


def test_addresses_that_differ_in_their_query_alone_are_two_files():
    one, other = (cache_path(f'https://example.org/model.pth?version={i}') for i in (1, 2))
    assert one != other and os.path.basename(one) == os.path.basename(other) == 'model.pth'
    for odd in ('https://example.org/', 'https://example.org/..', 'https://example.org/a%2Fb.pth'):
        assert os.path.basename(cache_path(odd)) not in ('', '.', '..')


def test_what_other_programs_keep_under_the_file_name_alone_is_not_taken(source, tiny, web):
    """PyTorch's own downloads lie there, of whichever address came first; without network they are named."""
    folder, address, cache = web
    cache.mkdir(parents=True)
    torch.save(classifier_file(randomise(build(arch=tiny), seed=9)), cache / 'model.pth')
    with pytest.raises(CheckpointError, match='There is a file .*checkpoints/model.pth, of an address that nobody'):
        pretrained(f'{address}/model.pth', arch=tiny)
    torch.save(classifier_file(source), folder / 'model.pth')
    assert_same(pretrained(f'{address}/model.pth', arch=tiny), source)


def test_a_file_that_other_programs_keep_is_taken_if_its_name_promises_this_content(source, tiny, web):
    _, address, cache = web
    cache.mkdir(parents=True)
    torch.save(classifier_file(source), cache / 'file')
    name = f'model-{hashlib.sha256((cache / "file").read_bytes()).hexdigest()[:8]}.pth'
    (cache / 'file').rename(cache / name)
    assert_same(pretrained(f'{address}/{name}', arch=tiny), source)  # which the server does not have
    torch.save(classifier_file(randomise(build(arch=tiny), seed=9)), cache / name)
    with pytest.raises(CheckpointError, match='could not be downloaded'):
        pretrained(f'{address}/{name}', arch=tiny)


def test_an_address_is_downloaded_once_and_its_hash_checked(source, tiny, web):
    folder, address, _ = web
    torch.save(classifier_file(source), folder / 'model.pth')
    digest = hashlib.sha256((folder / 'model.pth').read_bytes()).hexdigest()[:8]
    for name in (f'good-{digest}.pth', 'bad-00000000.pth'):
        (folder / name).write_bytes((folder / 'model.pth').read_bytes())
    assert_same(pretrained(f'{address}/good-{digest}.pth', arch=tiny), source)
    with pytest.raises(CheckpointError, match='bad-00000000.pth.*hash'):
        pretrained(f'{address}/bad-00000000.pth', arch=tiny)
    with pytest.raises(CheckpointError, match='could not be downloaded'):
        pretrained(f'{address}/none.pth', arch=tiny)
    (folder / f'good-{digest}.pth').unlink()
    assert_same(pretrained(f'{address}/good-{digest}.pth', arch=tiny), source)


def test_a_file_in_the_cache_that_is_not_what_its_name_promises_is_refused(source, tiny, web):
    """Safetensors have no checksums of their own."""
    folder, address, _ = web
    save_file(source.state_dict(), folder / 'file')
    content = bytearray((folder / 'file').read_bytes())
    name = f'model-{hashlib.sha256(content).hexdigest()[:8]}.safetensors'
    (folder / 'file').rename(folder / name)
    assert_same(pretrained(f'{address}/{name}', arch=tiny), source)
    content[-3] ^= 1
    with open(cache_path(f'{address}/{name}'), 'wb') as file:
        file.write(content)
    with pytest.raises(CheckpointError, match='is not the file that was published: its SHA-256 .* Remove that file'):
        pretrained(f'{address}/{name}', arch=tiny)


@pytest.mark.parametrize(
    'name, expected',
    [
        ('xcit-nano-12-p16_3rdparty_in1k_20230213-ed776c38.pth', 'ed776c38'),
        ('model-0123456789abcdef.pth.tar', '0123456789abcdef'),
        ('xcit-s-cifar10-linf.pth.tar', None),
        ('vit-b.pth', None),  # too short
        ('run-20230213.pth', None),  # a date
    ],
)
def test_which_names_promise_a_hash(name, expected):
    found = _HASH.search(name)
    assert (found and found[1]) == expected


def test_a_download_that_is_no_checkpoint_is_not_kept(source, tiny, web):
    folder, address, cache = web
    (folder / 'model.pth').write_text('<!DOCTYPE html><html><body>503 Service Unavailable</body></html>')
    with pytest.raises(CheckpointError, match='/model.pth sent was not kept.*<!DOCTYPE') as error:
        pretrained(f'{address}/model.pth', arch=tiny)
    assert cache_path(f'{address}/model.pth') in str(error.value) and not files_of(cache)
    torch.save(classifier_file(source), folder / 'model.pth')
    assert_same(pretrained(f'{address}/model.pth', arch=tiny), source)


def test_a_damaged_file_in_the_cache_is_named_and_left_to_its_owner(source, tiny, web):
    folder, address, _ = web
    torch.save(classifier_file(source), folder / 'model.pth')
    path = cache_path(f'{address}/model.pth')
    os.makedirs(os.path.dirname(path))
    with open(path, 'wb') as file:
        file.write((folder / 'model.pth').read_bytes()[:-100])
    with pytest.raises(CheckpointError, match='Remove that file to have http.*/model.pth downloaded again'):
        pretrained(f'{address}/model.pth', arch=tiny)
    os.remove(path)
    assert_same(pretrained(f'{address}/model.pth', arch=tiny), source)


def test_the_other_processes_of_a_machine_take_what_the_first_has_fetched(source, tiny, web, monkeypatch):
    _, address, cache = web
    monkeypatch.setenv('LOCAL_RANK', '1')
    with pytest.raises(CheckpointError, match='the first process of this machine says why'):
        pretrained(f'{address}/model.pth', arch=tiny)
    assert not cache.exists()
    keep(f'{address}/model.pth', classifier_file(source))  # by the first process
    assert_same(pretrained(f'{address}/model.pth', arch=tiny), source)


def test_where_the_original_server_is_gone_the_hub_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *_: (_ for _ in ()).throw(OSError('HTTP Error 403')))
    for model in (find for find in all_models() if find.name in ('xcit_s12_8_dist_in1k', 'xcit_l24_16_dist_384_in1k')):
        for address in (model.weights, model.weights_mmpretrain):
            with pytest.raises(CheckpointError, match=f'403. The .* same weights as hf-hub:timm/{model.timm_name}'):
                read_checkpoint(address)
    twins = {hub_twin(model.weights) for model in all_models() if model.task == 'classification'}
    published = {f'hf-hub:timm/{name}' for name in timm.list_models('xcit*', pretrained=True)}
    assert twins == published and len(published) == 42
    assert hub_twin('https://dl.fbaipublicfiles.com/xcit/coco/maskrcnn_xcit_small_12_p8.pth') is None


# The Hugging Face hub.


class Hub:
    """huggingface_hub's cache, filled by hand as its client fills it."""

    def __init__(self, folder):
        self.folder = folder

    def add(self, repository, files, commit=COMMIT, revision='main'):
        """Files (path -> bytes) of a revision: blobs by their SHA-256, and links to them."""
        base = self.folder / f'models--{repository.replace("/", "--")}'
        (base / 'blobs').mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            blob = base / 'blobs' / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            link = base / 'snapshots' / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        (base / 'refs').mkdir(exist_ok=True)
        (base / 'refs' / revision).write_text(commit)
        return base


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The client without network, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    return Hub(tmp_path / 'hub')


def as_bytes(state, folder, safe=True):
    path = folder / 'file'
    save_file(state, path) if safe else torch.save(state, path)
    return path.read_bytes()


def test_safetensors_are_preferred_to_pickles_and_a_revision_and_a_file_can_be_named(tiny, hub, tmp_path):
    models = [randomise(build(arch=tiny), seed=seed) for seed in range(4)]
    safe, pickled, older, other = (model.state_dict() for model in models)
    files = {'pytorch_model.bin': as_bytes(pickled, tmp_path, False), 'model.safetensors': as_bytes(safe, tmp_path)}
    hub.add('me/xcit', {**files, 'more/other.safetensors': as_bytes(other, tmp_path), 'README.md': b'#'})
    hub.add('me/xcit', {'model.safetensors': as_bytes(older, tmp_path)}, commit='a' * 40, revision='v1')
    for address, model in (
        ('hf-hub:me/xcit', models[0]),
        ('hf_hub:me/xcit', models[0]),
        ('hf-hub:me/xcit:pytorch_model.bin', models[1]),
        ('hf-hub:me/xcit@v1', models[2]),
        (f'hf-hub:me/xcit@{"a" * 40}', models[2]),
        ('hf-hub:me/xcit@main:more/other.safetensors', models[3]),
    ):
        assert is_address(address)
        assert_same(pretrained(address, arch=tiny), model)
        assert_same(load_backbone(address), model)
    convert('hf-hub:me/xcit@v1', str(tmp_path / 'converted.pth'), 'timm')
    assert_same(pretrained(str(tmp_path / 'converted.pth'), arch=tiny), models[2])


def test_a_backbone_of_any_arch_is_built_from_its_repository(tiny, hub, tmp_path):
    model = randomise(build(arch=tiny, patch_size=8, in_channels=4))
    hub.add('me/mine', {'model.safetensors': as_bytes(model.state_dict(), tmp_path)})
    backbone = create_backbone('hf-hub:me/mine', True)
    assert_same(backbone, model)
    assert create_backbone('hf-hub:me/mine', True, out_type='featmap')(torch.randn(1, 4, 32, 32))[0].shape[1] == 32
    hub.add('me/other', {'model.safetensors': as_bytes(nn.Linear(2, 2).state_dict(), tmp_path)})
    with pytest.raises(CheckpointError, match='hf-hub:me/other holds no XCiT'):
        create_backbone('hf-hub:me/other', True)


def test_a_repository_of_pickles_alone_is_read_without_running_them(tiny, hub, tmp_path):
    good, state = randomise(build(arch=tiny)), {'x': nn.Linear(1, 1)}
    hub.add('me/pickles', {'pytorch_model.bin': as_bytes(good.state_dict(), tmp_path, False)})
    assert_same(pretrained('hf-hub:me/pickles', arch=tiny), good)
    hub.add('me/code', {'pytorch_model.bin': as_bytes(state, tmp_path, False)})
    with pytest.raises(CheckpointError, match="was refused: it asks to run 'torch.nn.modules.linear.Linear'"):
        pretrained('hf-hub:me/code', arch=tiny)


def test_files_of_other_names_are_found_where_there_is_one(tiny, hub, tmp_path):
    good = randomise(build(arch=tiny))
    hub.add('me/one', {'prostate.pth': as_bytes(good.state_dict(), tmp_path, False), 'config.json': b'{}'})
    assert_same(pretrained('hf-hub:me/one', arch=tiny), good)
    content = as_bytes(good.state_dict(), tmp_path)
    hub.add('me/two', {'a.safetensors': content, 'b.safetensors': content})
    with pytest.raises(CheckpointError, match='has 2 files of weights .*name one: hf-hub:me/two:a.safetensors'):
        pretrained('hf-hub:me/two', arch=tiny)


def test_a_changed_bit_in_the_hubs_cache_is_found(tiny, hub, tmp_path):
    content = as_bytes(randomise(build(arch=tiny)).state_dict(), tmp_path)
    base = hub.add('me/xcit', {'model.safetensors': content})
    (blob,) = (base / 'blobs').iterdir()
    blob.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(CheckpointError, match='is not the file that was published.*to have hf-hub:me/xcit downloaded'):
        pretrained('hf-hub:me/xcit', arch=tiny)


class Endpoint(BaseHTTPRequestHandler):
    """What the hub's server answers to its client: files of a folder by repository, in the revision 'main'."""

    folder, tokens = None, []

    def do_GET(self):
        self.tokens.append(self.headers.get('Authorization'))
        parts = self.path.split('?')[0].strip('/').split('/')
        if parts[:2] == ['api', 'models']:
            repository = self.folder / '/'.join(parts[2:4])
            names = [str(path.relative_to(repository)) for path in repository.rglob('*') if path.is_file()]
            files = [{'rfilename': name, 'path': name, 'type': 'file', 'size': 1, 'oid': '0'} for name in names]
            content = json.dumps(files if 'tree' in parts else {'id': 'me', 'sha': COMMIT, 'siblings': files}).encode()
            return self.answer(200 if repository.is_dir() else 404, content, 'RepoNotFound')
        repository, path = self.folder / '/'.join(parts[:2]), self.folder / '/'.join(parts[:2] + parts[4:])
        found = parts[2:4] in (['resolve', 'main'], ['resolve', COMMIT]) and path.is_file()
        content = path.read_bytes() if found else b'not here'
        self.answer(200 if found else 404, content, 'EntryNotFound' if repository.is_dir() else 'RepoNotFound')

    do_HEAD = do_GET

    def answer(self, code, content, error):
        self.send_response(code)
        headers = {'ETag': f'"{hashlib.sha256(content).hexdigest()}"', 'Content-Length': str(len(content))}
        headers.update({'X-Repo-Commit': COMMIT} if code == 200 else {'X-Error-Code': error})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_the_hubs_client_is_asked_with_its_own_settings(tiny, tmp_path):
    """A mirror and a token by their environment variables; pickles and files of other names where there is no other."""
    models = {name: randomise(build(arch=tiny), seed=i) for i, name in enumerate(('both', 'pickle', 'other'))}
    for name, model in models.items():
        (tmp_path / 'web' / 'me' / name).mkdir(parents=True)
        file = {'both': 'model.safetensors', 'pickle': 'pytorch_model.bin', 'other': 'weights/best.pth'}[name]
        path = tmp_path / 'web' / 'me' / name / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(as_bytes(model.state_dict(), tmp_path, safe=name == 'both'))
    (tmp_path / 'web' / 'me' / 'both' / 'pytorch_model.bin').write_bytes(b'never looked at')
    Endpoint.folder, Endpoint.tokens = tmp_path / 'web', []
    server = ThreadingHTTPServer(('127.0.0.1', 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
from xcit_mm.checkpoint import CheckpointError, read_checkpoint
for name in ('both', 'pickle', 'other', 'both'):
    print(name, read_checkpoint(f'hf-hub:me/{name}')['state_dict']['backbone.cls_token'].flatten()[0].item())
try:
    read_checkpoint('hf-hub:me/gone')
except CheckpointError as error:
    print(error)
"""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(('HF_', 'HUGGING'))},
        **dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HUB_CACHE=str(tmp_path / 'hub')),
        **dict(HF_TOKEN='hf_secret', HF_HUB_DISABLE_TELEMETRY='1', PYTHONPATH=str(ROOT)),
    }
    try:
        done = call([sys.executable, '-c', code], env=environment, cwd=tmp_path)
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    *read, refused = [line for line in done.stdout.splitlines() if line.startswith(('both', 'pickle', 'other', 'hf-'))]
    for line, name in zip(read, ('both', 'pickle', 'other', 'both')):
        assert line.split()[0] == name
        assert float(line.split()[1]) == pytest.approx(models[name].cls_token.flatten()[0].item())
    assert len(read) == 4 and 'hf-hub:me/gone could not be fetched' in refused and 'RepositoryNotFound' in refused
    assert 'Bearer hf_secret' in Endpoint.tokens and 'hf_secret' not in done.stdout + done.stderr


@pytest.mark.parametrize(
    'address, words',
    [
        (
            'hf-hub:me/nothing',
            r'could not be fetched from the Hugging Face .*hf download me/nothing model.safetensors',
        ),
        ('hf-hub:me/nothing@v2:x.pth', r'hf download me/nothing x.pth --revision v2'),
        ('hf-hub:', 'is no address of the Hugging Face hub; expected hf-hub:OWNER/NAME'),
        ('hf-hub:a/b/c', 'is no address of the Hugging Face hub'),
        ('hf-hub:me/x:model.pth@main', 'is no address of the Hugging Face hub'),
        ('hf-hub:me/x:../../etc/passwd', 'could not be fetched'),
    ],
)
def test_what_the_hub_does_not_have_is_explained(address, words, tiny, hub):
    with pytest.raises(CheckpointError, match=words):
        pretrained(address, arch=tiny)


def test_without_the_hubs_client_it_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(CheckpointError, match='pip install huggingface_hub'):
        pretrained('hf-hub:me/xcit', arch=tiny)


# Names.


def test_all_of_timms_names_are_names_here():
    assert xcit_mm.list_models(source='timm') == sorted(timm.list_models('xcit*', pretrained=True))
    for name in xcit_mm.list_models(source='timm'):
        cfg, weights = timm.get_pretrained_cfg(name), find_weights(name)
        assert weights.address == f'hf-hub:{cfg.hf_hub_id}'
        # The config is that of the same weights of the original release.
        same = find_weights(os.path.basename(weights.config)[: -len('.py')])
        assert same.address == cfg.url and weights.size == cfg.input_size[1]
        assert weights.licence.lower() == cfg.license
    # Names without a tag, and those of older versions.
    for name in timm.list_models('xcit*'):
        assert find_weights(name).address == timm.get_pretrained_cfg(name).url


def test_every_name_has_a_config_and_says_what_is_known():
    assert len(xcit_mm.list_models()) == len(all_weights()) == 66 + 42 + 42 + 12 + 9
    assert len({weights.address for weights in all_weights()}) == len(all_weights())
    for weights in all_weights():
        assert os.path.isfile(xcit_mm.config_path(weights.name)), weights.name
        assert 0 < weights.value < 100 and weights.metric and weights.data and weights.licence
        assert resolve(f'xcit_mm://{weights.name}') == weights.address
    with pytest.raises(ValueError, match='did you mean .*xcit_small_12_p8_224'):
        xcit_mm.model_info('xcit_small_13_p8_224')
    with pytest.raises(CheckpointError, match='no published weights of .*did you mean .*dino_xcit_small_12_p8'):
        read_checkpoint('xcit_mm://dino_xcit_smal_12_p8')


def test_true_takes_timms_name_from_the_hub(hub, tmp_path):
    """The weights as timm saves them, and its features."""
    name = 'xcit_nano_12_p16_224.fb_dist_in1k'
    theirs = randomise(timm.create_model(name))
    hub.add(f'timm/{name}', {'model.safetensors': as_bytes(theirs.state_dict(), tmp_path)})
    image = torch.randn(2, 3, 57, 44)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(image), pre_logits=True)
        for arguments in (
            (name, True),
            (f'hf-hub:timm/{name}', True),
            (name, f'hf-hub:timm/{name}'),
            (name, f'xcit_mm://{name}'),
            ('xcit_n12_16', f'hf-hub:timm/{name}@main:model.safetensors'),
        ):
            assert deviation(create_backbone(*arguments)(image)[0], expected) < 1e-5


@pytest.mark.parametrize(
    'name, arch, patch_size',
    [
        ('dino_xcit_medium_24_p8', 'm24', 8),
        ('dino_xcit_small_12_p16_full', 's12', 16),
        ('debenedetti2022light_xcit_m12_cifar10_linf', 'm12', 4),
        ('debenedetti2022light_xcit_l12_imagenet_linf', 'l12', 16),
        ('xcit-tiny-24-p8_3rdparty-dist_in1k-384px', 't24', 8),
        ('xcit_large_24_p16_384.fb_dist_in1k', 'l24', 16),
        ('hf-hub:someone/xcit_tiny_12_p8_finetuned', 't12', 8),
    ],
)
def test_every_kind_of_name_makes_its_backbone(name, arch, patch_size):
    with torch.device('meta'):
        ours, same = create_backbone(name), build(arch=arch, patch_size=patch_size)
    assert ours.patch_size == patch_size
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, same)]
    assert shapes[0] == shapes[1]


def test_dinos_names_are_a_backbone_a_full_run_and_a_linear_head(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    name = 'dino_xcit_small_12_p16'
    backbones = [randomise(build(arch='s12'), seed=seed) for seed in (1, 2)]
    states = [official_names(backbone.state_dict()) for backbone in backbones]
    keep(find_weights(name).address, states[0])
    keep(
        find_weights(f'{name}_full').address,
        {
            'student': {f'module.backbone.{key}': value for key, value in states[0].items()},
            'teacher': {f'backbone.{key}': value for key, value in states[1].items()},
            'epoch': 300,
        },
    )
    linear = {'module.linear.weight': torch.randn(1000, 384), 'module.linear.bias': torch.randn(1000)}
    keep(find_weights(f'{name}_linear').address, {'epoch': 100, 'state_dict': linear, 'best_acc': 77.8})
    assert_same(create_backbone(name, True), backbones[0])
    assert_same(create_backbone(f'{name}_full', True), backbones[1])
    # The whole classifier of the linear config: the backbone from its own address, the head by this name.
    cfg = Config.fromfile(xcit_mm.config_path(f'{name}_linear'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, f'xcit_mm://{name}_linear', strict=True)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = backbones[0](image)[0] @ linear['module.linear.weight'].t() + linear['module.linear.bias']
        assert deviation(model(image, mode='tensor'), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('name', timm.list_models('xcit*', pretrained=True))
def test_every_name_of_timm_gives_timms_features(name, hub, tmp_path, one_thread):
    """Backbone and whole classifier."""
    with torch.device('meta'):
        theirs = timm.create_model(name)
    theirs = randomise(theirs.to_empty(device='cpu'))
    theirs.pos_embed.eps = 1e-6
    hub.add(f'timm/{name}', {'model.safetensors': as_bytes(theirs.state_dict(), tmp_path)})
    image = torch.randn(1, 3, 57, 44)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(image), pre_logits=True)
        assert deviation(create_backbone(name, True)(image)[0], expected) < 1e-5
        cfg = Config.fromfile(xcit_mm.config_path(name))
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            # Without a teacher.
            ours = MODELS.build(dict(type='ImageClassifier', backbone=cfg.model.backbone, head=cfg.model.head))
        load_checkpoint(ours.eval(), f'xcit_mm://{name}', strict=True)
        assert deviation(ours(image, mode='tensor'), theirs.head(expected)) < 1e-5


def test_a_linear_head_is_no_backbone():
    with pytest.raises(ValueError, match="those of its backbone are 'dino_xcit_small_12_p8'"):
        create_backbone('dino_xcit_small_12_p8_linear', True)


def test_the_tools_and_the_inferencer_take_addresses(small_models, small_digits, hub, tmp_path):
    """A whole classifier from the hub, tested by the command and used by the inferencer."""
    import numpy as np

    from xcit_mm.apis import Inferencer

    config, checkpoint = small_models['classifier']
    with open(checkpoint, 'rb') as file:
        content = file.read()
    hub.add('me/digits', {'epoch_1.pth': content})
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = [Inferencer(config, where, device='cpu')(pixels) for where in (checkpoint, 'hf-hub:me/digits')]
    assert found[0] == found[1]
    environment = dict(os.environ, HF_HUB_CACHE=str(hub.folder), HF_HUB_OFFLINE='1')
    command = [sys.executable, ROOT / 'tools/test.py', config, 'hf-hub:me/digits', '--work-dir', tmp_path / 'work']
    done = call([*command, '--data-root', small_digits / 'imagenet'], env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'accuracy/top1' in done.stdout + done.stderr


def test_files_of_the_hub_are_what_load_file_reads(hub, tmp_path, source):
    base = hub.add('me/xcit', {'model.safetensors': as_bytes(source.state_dict(), tmp_path)})
    read = read_checkpoint('hf-hub:me/xcit')['state_dict']
    raw = load_file(base / 'snapshots' / COMMIT / 'model.safetensors')
    assert torch.equal(read['backbone.cls_token'], raw['cls_token'])
