"""Checkpoints that are damaged, foreign or made to do harm; each a file with a name that says what is wrong with it."""

import argparse
import builtins
import copyreg
import gzip
import io
import json
import os
import pickle
import runpy
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections import Counter, OrderedDict
from fractions import Fraction

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save as safetensors_bytes

HUGE = 1 << 33  # bytes; more than the memory that the tests allow by far
LAYER = 'backbone.blocks.0.mlp.fc1.weight'
HEAD = 'head.fc.weight'


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.value = function, arguments

    def __reduce__(self):
        return self.value


class WithoutMethods:
    """Unpickled, it is an OrderedDict whose methods cannot be called."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return OrderedDict, (), dict.fromkeys(('get', 'items', 'keys', 'values'), 3), None, iter(self.content.items())


class Storage:
    """A storage as a file declares it, whatever there is of it."""

    def __init__(self, count, kind=torch.FloatStorage, key='0'):
        self.identity = 'storage', kind, key, 'cpu', count


def declared(shape, strides, count=16, offset=0, **storage):
    """A tensor as a file declares it."""
    return Call(
        torch._utils._rebuild_tensor_v2, Storage(count, **storage), offset, shape, strides, False, OrderedDict()
    )


def zip_bytes(content, compression=zipfile.ZIP_STORED, protocol=2):
    """What torch.save writes, by hand, so that it can hold what torch.save refuses."""
    storages = [bytes(64)]

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                return item.identity
            if isinstance(item, torch.storage.TypedStorage):
                storages.append(bytes(item._untyped_storage))
                kind = getattr(torch, item._pickle_storage_type())
                return 'storage', kind, str(len(storages) - 1), 'cpu', len(item)
            return None

    pickled = io.BytesIO()
    Pickler(pickled, protocol).dump(content)
    return pack(pickled.getvalue(), storages, compression)


def pack(pickled, storages=(), compression=zipfile.ZIP_STORED):
    """A zip file of torch.save from its pickle and its storages."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', pickled)
        archive.writestr('archive/byteorder', b'little')
        for key, storage in enumerate(storages):
            archive.writestr(f'archive/data/{key}', storage)
        archive.writestr('archive/version', b'3\n')
    return out.getvalue()


def torch_bytes(content, legacy=False):
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def bad_checkpoints(state, canary):
    """Pairs of a file's name and content.

    Args:
        state (dict): The tensors of a whole classifier.
        canary (Path): A folder that code in the files would make.
    """
    good = {'zip.pth': torch_bytes({'state_dict': state, 'meta': {}})}
    good['legacy.pth'] = torch_bytes({'state_dict': state, 'meta': {}}, legacy=True)
    good['plain.safetensors'] = safetensors_bytes(state)
    for groups in (
        _truncated(good),
        _flipped(good),
        _of_another_shape(state),
        _of_another_type(state),
        _not_finite(state),
        _too_large(state),
        _with_code(state, canary),
        _bombs(state, good),
        _safetensors(state, good['plain.safetensors']),
        _no_checkpoints(good),
    ):
        yield from groups


def _truncated(good):
    for name, content in good.items():
        lengths = {1, 2, 7, 8, 9, 64, 1000, len(content) - 1, len(content) - 22, len(content) - 100}
        lengths |= {len(content) * part // 11 for part in range(1, 11)}
        for length in sorted(lengths):
            yield f'truncated at {length} {name}', content[:length]


def _flipped(good):
    generator = np.random.default_rng(0)
    for name, content in good.items():
        # Everywhere; and in the beginning and end, where the formats keep what describes the rest.
        places = [*generator.integers(0, len(content), 12), *generator.integers(0, 400, 6)]
        places += list(len(content) - 1 - generator.integers(0, 400, 6))
        for place in places:
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(generator.integers(8))
            yield f'bit flipped at {place} {name}', bytes(damaged)


def _of_another_shape(state):
    resnet = {'layer1.0.conv1.weight': torch.zeros(4, 4, 1, 1), 'fc.weight': torch.zeros(2, 4)}
    other = {
        'a list': [1, 2],
        'a number': 3,
        'a text': 'weights',
        'a tensor': torch.zeros(3),
        'nothing': {},
        'a resnet': resnet,
        'a resnet in a state_dict': {'state_dict': resnet},
        'another backbone': {'state_dict': {f'backbone.{k}': v for k, v in resnet.items()}},
        'no state dict': {'epoch': 3, 'optimizer': {'lr': 0.1}},
        'a state_dict that is a list': {'state_dict': list(state)},
        'a state_dict that is None': {'state_dict': None},
        'a state_dict in a state_dict': {'state_dict': {'state_dict': state}},
        'meta that is a number': {'state_dict': state, 'meta': 5},
        'names that are numbers': {'state_dict': {**state, 1: torch.zeros(1)}},
        'names that are tuples': {('a', 'b'): torch.zeros(1)},
        'names that are bytes': {'state_dict': {k.encode(): v for k, v in state.items()}},
        'half of the names': {'state_dict': dict(list(state.items())[::2])},
        'a layer less': {'state_dict': {k: v for k, v in state.items() if k != LAYER}},
        'a layer more': {'state_dict': {**state, LAYER.replace('blocks.0', 'blocks.1'): torch.zeros(1)}},
        'a block of a huge number': {'state_dict': {**state, 'backbone.blocks.99999999.x': state[LAYER]}},
        'a block of an unreadable number': {'state_dict': {**state, f'backbone.blocks.{"9" * 5000}.x': state[LAYER]}},
        'a head for other classes': {'state_dict': {**state, HEAD: torch.zeros(7, 16), 'head.fc.bias': torch.zeros(7)}},
        'names that move the cursor': {f'\x1b[2J\n\r{i}': torch.zeros(1) for i in range(3)},
        'names without end': {'x' * 1000000: torch.zeros(1)},
        'tensors that are numbers': {'state_dict': dict.fromkeys(state, 0.5)},
        'one tensor that is a list': {'state_dict': {**state, LAYER: state[LAYER].tolist()}},
        'one tensor of a head that is a number': {'state_dict': {**state, HEAD: 1.0}},
        'a number of thousands of digits': {'state_dict': {**state, LAYER: torch.zeros(1)}, 'epoch': 10**5000},
    }  # fmt: skip
    for name, content in other.items():
        yield f'{name}.pth', torch_bytes(content)
    for key in ('attn.temperature', 'gamma1', 'mlp.fc1.bias'):
        for what, tensor in (('a scalar', torch.tensor(1.0)), ('empty', torch.zeros(0)), ('long', torch.zeros(99999))):
            content = {'state_dict': {**state, f'backbone.blocks.0.{key}': tensor}}
            yield f'{key} {what}.pth', torch_bytes(content)
    yield 'scalars.pth', torch_bytes({'state_dict': {k: torch.tensor(0.5) for k in state}})
    yield 'transposed.pth', torch_bytes({'state_dict': {k: v.t() if v.dim() == 2 else v for k, v in state.items()}})
    wide = {k: v for k, v in state.items() if 'cls_attn' not in k}
    for number, parts in enumerate(([(4,), (5,), (4,)], [(), (), ()], [(2, 2), (2,), (2, 2)])):
        joined = {f'backbone.ca_layers.0.attn.{n}.weight': torch.zeros(shape) for n, shape in zip('qkv', parts)}
        renamed = {k.replace('.blocks.', '.xca_layers.'): v for k, v in wide.items()}
        content = torch_bytes({'state_dict': {**renamed, **joined}})
        yield f'query, key and value that cannot be joined {number}.pth', content
    odd = OrderedDict(state)
    for number, attribute in enumerate((5, {'': 5}, {'backbone': [1]}, {'backbone': {'source': 3}})):
        odd._metadata = attribute
        yield f'metadata of another kind {number}.pth', torch_bytes({'state_dict': odd, 'epoch': 1})
    inner = WithoutMethods(state)
    yield 'dicts without methods.pth', torch_bytes(WithoutMethods({'state_dict': inner}))


def _of_another_type(state):
    weight = state[LAYER]
    types = {
        'long': weight.long(),
        'byte': weight.byte(),
        'bool': weight.bool(),
        'complex': weight.to(torch.complex64),
        'sparse': weight.to_sparse(),
        'sparse rows': weight.to_sparse_csr(),
        'quantised': torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        'without data': weight.to('meta'),
    }
    for name, tensor in types.items():
        yield f'a weight that is {name}.pth', torch_bytes({'state_dict': {**state, LAYER: tensor}})
        if 'sparse' not in name:
            yield f'a head that is {name}.pth', torch_bytes({'state_dict': {**state, HEAD: tensor[:2].clone()}})
    yield 'all long.pth', torch_bytes({'state_dict': {k: v.long() for k, v in state.items()}})


def _not_finite(state):
    for value in (float('nan'), float('inf'), -float('inf')):
        for key in (LAYER, HEAD, 'backbone.blocks.0.lpi.bn.running_var', 'backbone.cls_token'):
            tensor = state[key].clone()
            tensor.view(-1)[-1] = value
            yield f'{value} in {key}.pth', torch_bytes({'state_dict': {**state, key: tensor}})
    tensor = state[LAYER].double() * 1e300
    yield 'too large for fp32.pth', torch_bytes({'state_dict': {**state, LAYER: tensor}})
    yield 'all nan.safetensors', safetensors_bytes({k: v / 0 for k, v in state.items()})
    yield 'all nan.pth', torch_bytes({'state_dict': {k: v / 0 for k, v in state.items()}})


def _too_large(state):
    side = 1 << 16
    tensors = {
        'a storage larger than its record': declared((1000000,), (1,), count=1000000),
        'a storage of 2^60 values': declared((4,), (1,), count=1 << 60),
        'a storage of fewer than no values': declared((4,), (1,), count=-4),
        'a storage that is not there': declared((4,), (1,), key='7777'),
        'a shape larger than its storage': declared((side, side), (side, 1)),
        'a repeated value': declared((side, side), (0, 0)),
        'a shape of 2^80 values': declared((1 << 40, 1 << 40), (0, 0)),
        'overlapping rows': declared((side, side), (1, 0)),
        'negative sizes': declared((-4, -4), (1, 1)),
        'negative strides': declared((4, 4), (-1, 1)),
        'an offset behind the end': declared((4,), (1,), offset=1 << 40),
        'an offset before the beginning': declared((4,), (1,), offset=-8),
        'more strides than sizes': declared((4,), (1, 1, 1)),
        'sizes that are texts': declared(('4',), ('1',)),
    }
    for name, tensor in tensors.items():
        for place, key in (('the backbone', LAYER), ('class attention', 'backbone.cls_attn_blocks.0.attn.q.weight')):
            content = {**state, key: tensor}
            content.update({key.replace('.q.', f'.{n}.'): tensor for n in 'kv' if '.q.' in key})
            yield f'{name} in {place}.pth', zip_bytes({'state_dict': content})
    # Small tensors from which the arch is told, of a large arch.
    for key, shape in (('gamma1', (100000,)), ('attn.temperature', (100000, 1, 1)), ('mlp.fc1.bias', (1000000,))):
        tensor = torch.zeros(1).expand(shape)
        content = {'state_dict': {**state, f'backbone.blocks.0.{key}': tensor}}
        yield f'a claim of a large arch, {key}.pth', torch_bytes(content)
    many = {f'backbone.blocks.{i}.lpi.x': torch.zeros(1) for i in range(2000)}
    yield 'a claim of many blocks.pth', torch_bytes({'state_dict': {**state, **many}})


def _with_code(state, canary):
    path = str(canary)
    make = f'__import__("os").mkdir({path!r})'
    calls = {
        'mkdir': Call(os.mkdir, path),
        'makedirs': Call(os.makedirs, path),
        'system': Call(os.system, f'mkdir {path}'),
        'Popen': Call(subprocess.Popen, ['mkdir', path]),
        'eval': Call(eval, make),
        'exec': Call(exec, make),
        'import': Call(builtins.__import__, 'antigravity'),
        'getattr': Call(getattr, Call(builtins.__import__, 'os'), 'mkdir'),
        'open': Call(open, path, 'w'),
        'run_path': Call(runpy.run_path, path),
        'torch.load': Call(torch.load, path),
        'torch.hub.load': Call(torch.hub.load, path, 'x'),
        'numpy.load': Call(np.load, path),
        'numpy.save': Call(np.save, path, 3),
        'a class of a library': Fraction(1, 2),
        'reconstructor': Call(copyreg._reconstructor, argparse.ArgumentParser, object, None),
        'another way to getattr': Call(getattr, HistoryBuffer, '__class__'),
        'a method of a tensor': Call(torch.Tensor.to, torch.zeros(1), 'cpu'),
        'a storage from a file': Call(torch.UntypedStorage.from_file, path, True, 64),
    }
    for name, call in calls.items():
        yield f'code, {name}, beside the tensors.pth', zip_bytes({'state_dict': state, 'meta': {'x': call}})
        yield f'code, {name}, as a tensor, legacy.pth', torch_bytes({'state_dict': {**state, LAYER: call}}, legacy=True)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield f'code in a bare pickle {protocol}.pth', pickle.dumps({'state_dict': calls['mkdir']}, protocol)
        yield f'code in protocol {protocol}.pth', zip_bytes({'state_dict': calls['mkdir']}, protocol=protocol)
    argument = pickle.dumps(path, 0)[:-1]
    raw = {
        'GLOBAL': b'\x80\x02cposix\nmkdir\n' + argument + b'\x85R.',
        'INST': b'(' + argument + b'iposix\nmkdir\n.',
        'OBJ': b'(cposix\nmkdir\n' + argument + b'o.',
        'STACK_GLOBAL': b'\x80\x04\x8c\x05posix\x8c\x05mkdir\x93' + argument + b'\x85R.',
        'NEWOBJ': b'\x80\x02cposix\nmkdir\n' + argument + b'\x85\x81.',
        'BUILD': b'\x80\x02cargparse\nNamespace\n)R}X\x0c\x00\x00\x00__setstate__cposix\nmkdir\nsb' + argument + b'b.',
        'old names': b'\x80\x02c__builtin__\neval\n' + pickle.dumps(make, 0)[:-1] + b'\x85R.',
    }
    for name, pickled in raw.items():
        yield f'code by {name}.pth', pack(pickled)
        yield f'code by {name}, bare.pth', pickled
    yield 'code named as weights.safetensors', pickle.dumps(calls['mkdir'])
    script = torch.jit.script(torch.nn.Linear(2, 2))
    yield 'TorchScript.pth', script.save_to_buffer()


def _bombs(state, good):
    zeros = bytes(1 << 28)
    yield 'zip bomb, pickle.pth', pack(zeros, compression=zipfile.ZIP_DEFLATED)
    yield 'zip bomb, storage.pth', pack(pickle.dumps({}, 2), [zeros], zipfile.ZIP_DEFLATED)
    yield 'compressed by another program.pth', zip_bytes({'state_dict': state}, zipfile.ZIP_DEFLATED)
    yield 'zip that declares 4 GB.pth', _with_declared_size(good['zip.pth'], 0xFFFFFFF0)
    yield 'records on top of each other.pth', _overlapping(good['zip.pth'])
    repeated = torch.zeros(1).expand(HUGE)
    calls = {
        'bytearray': Call(bytearray, HUGE),
        'bytes': Call(bytes, HUGE),
        'set': Call(set, repeated),
        'Counter': Call(Counter, repeated),
        'Size': Call(torch.Size, repeated),
        'Tensor': Call(torch.Tensor, HUGE),
        'FloatTensor': Call(torch.FloatTensor, HUGE),
        'ndarray': Call(np.ndarray, (HUGE,), np.dtype('u1')),
        'an array': Call(np.zeros, HUGE),
        'a conversion': Call(
            # by its name before PyTorch 2.3
            getattr(torch._utils, '_rebuild_device_tensor_from_cpu_tensor', None)
            or torch._utils._rebuild_device_tensor_from_numpy,
            repeated, torch.float64, 'cpu', False,
        ),
        'a quantised tensor': Call(
            torch._utils._rebuild_qtensor, Storage(16, torch.QInt8Storage), 0, (HUGE,), (0,),
            (torch.per_tensor_affine, 0.1, 0), False, OrderedDict(),
        ),
        'a tensor with attributes': Call(
            torch._tensor._rebuild_from_type_v2, set, torch.Tensor, (repeated,), {},
        ),
        'a dtype': Call(np.dtype, [('x', f'V{HUGE}')]),
    }  # fmt: skip
    for name, call in calls.items():
        yield f'memory by {name}.pth', zip_bytes({'state_dict': state, 'meta': {'x': call}})
        yield f'memory by {name}, legacy.pth', _legacy({'state_dict': call})
    raw = {
        'LONG_BINPUT': b'\x80\x02}r\xff\xff\xff\x7f.',
        'BYTEARRAY8': b'\x80\x05\x96' + struct.pack('<Q', HUGE) + b'.',
        'BINBYTES8': b'\x80\x04\x8e' + struct.pack('<Q', HUGE) + b'.',
        'BINUNICODE8': b'\x80\x04\x8d' + struct.pack('<Q', HUGE) + b'.',
        'LONG4': b'\x80\x02\x8b' + struct.pack('<i', 0x7FFFFFFF) + b'.',
        'FRAME': b'\x80\x04\x95' + struct.pack('<Q', HUGE) + b'}.',
        'nested lists': b'\x80\x02' + b']' * 100000 + b'a' * 99999 + b'.',
        'nested tuples': b'\x80\x02)' + b'\x85' * 200000 + b'.',
        'billion laughs': b'\x80\x02]q\x00' + b''.join(b'](h\x00h\x00e2\x86q\x00' for _ in range(60)) + b'.',
        'no stop': b'\x80\x02}' * 1000,
        'marks': b'(' * 100000,
    }
    for name, pickled in raw.items():
        yield f'pickle, {name}.pth', pack(pickled)
        yield f'pickle, {name}, bare.pth', pickled


def _legacy(content):
    """As torch.save did before the zip format, with nothing behind the object."""
    parts = (0x1950A86A20F9469CFC6C, 1001, dict(protocol_version=1001, little_endian=True, type_sizes={}))
    object_part = zipfile.ZipFile(io.BytesIO(zip_bytes(content))).read('archive/data.pkl')
    return b''.join(pickle.dumps(part, 2) for part in parts) + object_part + pickle.dumps([], 2)


def _with_declared_size(content, size):
    """The first record of the zip file's table grows."""
    place = content.index(b'PK\x01\x02')
    return content[: place + 20] + struct.pack('<II', size, size) + content[place + 28 :]


def _overlapping(content):
    """Every record of the zip file's table lies where the largest one does."""
    records = zipfile.ZipFile(io.BytesIO(content)).infolist()
    largest = max(records, key=lambda record: record.file_size)
    out, place = bytearray(content), 0
    for _ in records:
        place = content.index(b'PK\x01\x02', place) + 4
        out[place + 16 : place + 24] = struct.pack('<II', largest.file_size, largest.file_size)
        out[place + 38 : place + 42] = struct.pack('<I', largest.header_offset)
    return bytes(out)


def _safetensors(state, good):
    length = struct.unpack('<Q', good[:8])[0]
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]

    def written(header, size=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack('<Q', len(text) if size is None else size) + text + data

    def changed(**entry):
        return {**header, LAYER: {**header[LAYER], **entry}}

    start, end = header[LAYER]['data_offsets']
    headers = {
        'longer than the file': written(header, size=1 << 40),
        'of 2^64 bytes': written(header, size=(1 << 64) - 1),
        'of 99 MB': written(header, size=99_000_000),
        'of no bytes': written(b''),
        'that is no JSON': written(b'{"a": '),
        'that is no text': written(b'\xff\xfe' * 100),
        'that is a list': written(b'[1, 2]'),
        'that nests': written(b'[' * 100000),
        'without tensors': written({}),
        'with metadata alone': written({'__metadata__': {'format': 'pt'}}),
        'with metadata of numbers': written({**header, '__metadata__': {'format': 5}}),
        'with an unknown type': written(changed(dtype='F31')),
        'with another type': written(changed(dtype='F64')),
        'with a huge shape': written(changed(shape=[1 << 40, 1 << 40])),
        'with a negative shape': written(changed(shape=[-4, 16])),
        'with a shape of texts': written(changed(shape=['a'])),
        'with offsets behind the end': written(changed(data_offsets=[start, 1 << 50])),
        'with offsets in reverse': written(changed(data_offsets=[end, start])),
        'with offsets of another tensor': written(changed(data_offsets=[0, end - start])),
        'without a tensor': written({k: v for k, v in header.items() if k != LAYER}),
        'with a name twice': written(json.dumps(header).encode()[:-1] + b',"x":1,"x":2}'),
    }
    for name, content in headers.items():
        yield f'header {name}.safetensors', content
    yield 'integers.safetensors', safetensors_bytes({k: v.long() for k, v in state.items()})
    yield 'a resnet.safetensors', safetensors_bytes({'layer1.0.conv1.weight': torch.zeros(4, 4)})


def _no_checkpoints(good):
    page = b'<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>'
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode='w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
            archive.addfile(link)
    contents = {
        'empty': b'',
        'one byte': b'\x80',
        'zeros': bytes(100000),
        'random': np.random.default_rng(1).bytes(100000),
        'web page': page,
        'web page with spaces': b'\n\n  ' + page,
        'json': b'{"message": "Not Found"}',
        'pointer of git': b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 86591363\n',
        'text': 'Zugriff verweigert\n'.encode('utf-16'),
        'gzip': gzip.compress(good['zip.pth']),
        'zlib': zlib.compress(good['zip.pth']),
        'tar with links': tar.getvalue(),
        'zip without content': zipfile_of({}),
        'zip of a folder': zipfile_of({'weights/model.pth': good['zip.pth']}),
        'zip with a way out': zipfile_of({'../../data.pkl': pickle.dumps({}, 2)}),
        'two files': good['legacy.pth'] + good['zip.pth'],
        'picture': b'\x89PNG\r\n\x1a\n' + bytes(50),
    }
    for name, content in contents.items():
        for suffix in ('pth', 'safetensors'):
            yield f'{name}.{suffix}', content
    yield 'pth named as.safetensors', good['zip.pth']
    yield 'safetensors named as.pth', good['plain.safetensors']


def zipfile_of(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()
