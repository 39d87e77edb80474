"""A look through a ``.pth`` file before PyTorch reads it: nothing is built, and little memory is used.

PyTorch's reader refuses code, but it takes a file at its word otherwise. It does not compare the checksums of a zip
file, so that a flipped bit becomes a wrong weight; it unpacks compressed records whatever their size; and some harmless
names, such as ``bytearray``, fill the memory when they are called with a large number. What is found here is refused
with a reason.
"""

import io
import mmap
import os
import pickle
import zipfile
from math import prod
from typing import BinaryIO, Container, Dict, Optional, cast

import torch

ZIP_START = b'PK\x03\x04'
# By how much all tensors together may be larger than the file: views of one storage count each.
MOST_VIEWS = 8
SLACK = 1 << 24

_REBUILD = 'torch._utils._rebuild_'
_TENSORS = {f'{_REBUILD}{name}' for name in ('tensor', 'tensor_v2', 'tensor_v3', 'qtensor')}
_PLAIN = {
    f'{_REBUILD}parameter',
    f'{_REBUILD}parameter_with_state',
    f'{_REBUILD}sparse_tensor',
    f'{_REBUILD}meta_tensor_no_storage',
    'torch.nn.parameter.Parameter',
    'torch.serialization._get_layout',
    'torch.device',
    '_codecs.encode',
    'builtins.complex',
    'builtins.slice',
}
_CONTAINERS = {
    'builtins.set',
    'builtins.frozenset',
    'collections.OrderedDict',
    'collections.Counter',
    'torch.Size',
}
_ITEM_SIZES = {
    'Double': 8,
    'Float': 4,
    'Half': 2,
    'BFloat16': 2,
    'Long': 8,
    'Int': 4,
    'Short': 2,
    'Char': 1,
    'Byte': 1,
    'Bool': 1,
    'ComplexDouble': 16,
    'ComplexFloat': 8,
    'QUInt8': 1,
    'QInt8': 1,
    'QInt32': 4,
    'QUInt4x2': 1,
    'QUInt2x4': 1,
    'Untyped': 1,
}
_STORAGES = {
    f'{module}.{name}Storage': size for name, size in _ITEM_SIZES.items() for module in ('torch', 'torch.storage')
}
_STORAGES['torch.storage.TypedStorage'] = 1
_DTYPES = {f'torch.{name}' for name, item in vars(torch).items() if isinstance(item, torch.dtype)}
_WITH_ATTRIBUTES = 'torch._tensor._rebuild_from_type_v2'
# Named as arguments of others, never called.
_ONLY_NAMED = {'numpy.ndarray', 'torch.Tensor', *_DTYPES, *_STORAGES}
_KNOWN = _TENSORS | _PLAIN | _CONTAINERS | _ONLY_NAMED | {_WITH_ATTRIBUTES}
_KNOWN.remove('numpy.ndarray')


class Unreadable(Exception):
    """A file that should not be read; the message says why."""


class NotAllowed(Unreadable):
    """A file that asks to run something while it is read; the message is its full name."""


def inspect_pth(path: str, also_allowed: Container[str]) -> None:
    """Look through a file of ``torch.save``, of either format.

    Args:
        path (str): The file.
        also_allowed (Container[str]): Full names that it may call besides those of tensors and containers.

    Raises:
        NotAllowed: If it asks to run anything else.
        Unreadable: If it is damaged, compressed, or declares more than it holds.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        if file.read(len(ZIP_START)) == ZIP_START:
            with zipfile.ZipFile(file) as archive:
                _inspect_zip(archive, size, also_allowed)
            return
        file.seek(0)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # A magic number, the version of the format, the machine, and then the object.
            for number in range(4):
                found = _Inspector(cast(BinaryIO, content), also_allowed, size, None).load()
                if number == 0 and found != torch.serialization.MAGIC_NUMBER:
                    raise Unreadable('it does not begin as a file of torch.save does')


def _inspect_zip(archive: zipfile.ZipFile, size: int, also_allowed: Container[str]) -> None:
    records = archive.infolist()
    names = {record.filename.partition('/')[2]: record for record in records}
    if 'data.pkl' not in names:
        raise Unreadable('it is a zip file, and none of torch.save: there is no data.pkl in it')
    if 'constants.pkl' in names:
        raise NotAllowed('TorchScript')
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED:
            raise Unreadable(f'its record {record.filename!r} is compressed, which torch.save never does')
    if sum(record.file_size for record in records) > size:
        raise Unreadable('its records are larger than the file')
    if any(record.CRC for record in records):  # else written without checksums, which is a setting of PyTorch
        for record in records:
            with archive.open(record) as content:
                while content.read(1 << 20):  # compares the checksum at the end
                    pass
    else:
        del names['data.pkl'].CRC  # or it would be compared below
    sizes = {name[len('data/') :]: record.file_size for name, record in names.items() if name.startswith('data/')}
    _Inspector(io.BytesIO(archive.read(names['data.pkl'])), also_allowed, size, sizes).load()


class _Inert:
    """What takes the place of every object that a file asks for. It does nothing."""

    full_name = ''

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass

    def __setitem__(self, *_):
        pass

    def append(self, _):
        pass

    def extend(self, _):
        pass

    add = append
    update = extend


class _Storage(_Inert):
    def __init__(self, num_bytes: int, item_size: int):
        self.num_bytes, self.item_size = num_bytes, item_size


# Python's own unpickler in Python: the one in C makes a table as long as the largest number that a file puts there.
class _Inspector(pickle._Unpickler):
    """Reads a pickle without building what it describes, and checks every call that it would make.

    Args:
        file (BinaryIO): The pickle.
        also_allowed (Container[str]): As for :func:`inspect_pth`.
        size (int): Of the whole file, in bytes.
        records (dict, optional): Sizes of the storages by key, for the zip format.
    """

    # Its one instruction that takes memory before it reads anything.
    dispatch = {key: read for key, read in pickle._Unpickler.dispatch.items() if key != pickle.BYTEARRAY8[0]}

    def __init__(self, file: BinaryIO, also_allowed: Container[str], size: int, records: Optional[Dict[str, int]]):
        super().__init__(file, encoding='latin1')  # which reads any bytes
        self._also_allowed, self._size, self._records = also_allowed, size, records
        self._declared = 0
        self._classes: Dict[str, type] = {}

    def find_class(self, module, name):
        module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
        full_name = f'{module}.{name}'
        if full_name not in _KNOWN and full_name not in self._also_allowed:
            raise NotAllowed(full_name)

        def make(cls, *args, **_):
            self._check_call(full_name, args)
            return object.__new__(cls)

        if full_name not in self._classes:
            self._classes[full_name] = type('Inert', (_Inert,), dict(full_name=full_name, __new__=make))
        return self._classes[full_name]

    def persistent_load(self, pid):
        try:
            kind, storage, key, _, count, *_ = pid
            item_size = _STORAGES[storage.full_name]
        except (TypeError, ValueError, AttributeError, KeyError):
            raise Unreadable('it refers to something that is no storage of a tensor') from None
        available = self._size if self._records is None else self._records.get(str(key), 0)
        if kind != 'storage' or not isinstance(count, int) or not 0 <= count * item_size <= available:
            raise Unreadable(f'it declares a storage of {count} values, and has {available} bytes for it')
        return _Storage(count * item_size, item_size)

    def _check_call(self, name: str, args: tuple) -> None:
        """Let nothing through that would need more memory than the file is large."""
        if name in _TENSORS:
            self._check_tensor(*args[:4])
        elif name == _WITH_ATTRIBUTES:
            args[0](*args[2])
        elif name == '_codecs.encode':
            if args[1] != 'latin1':
                raise NotAllowed(name)
        elif name in _CONTAINERS:
            if not all(isinstance(arg, (list, tuple, dict, set, str, bool, int, float)) for arg in args):
                raise NotAllowed(name)
        elif name == 'numpy.dtype':
            if not isinstance(args[0], str) or len(args[0]) > 8:
                raise NotAllowed(name)
        elif name.endswith('multiarray._reconstruct'):
            if getattr(args[0], 'full_name', '') != 'numpy.ndarray' or tuple(args[1]) != (0,):
                raise NotAllowed(name)
        elif name == 'builtins.getattr':
            owner = getattr(args[0], 'full_name', '')
            if not owner.endswith('.HistoryBuffer') or args[1] not in ('min', 'max', 'mean', 'current'):
                raise NotAllowed(name)
        elif name in _ONLY_NAMED:
            raise NotAllowed(name)

    def _check_tensor(self, storage, offset, shape, strides) -> None:
        numbers = [offset, *shape, *strides]
        if not isinstance(storage, _Storage) or any(not isinstance(n, int) or n < 0 for n in numbers):
            raise Unreadable('it describes a tensor that is none')
        declared = prod(shape) * storage.item_size
        self._declared += declared
        too_large = declared > storage.num_bytes + SLACK or self._declared > MOST_VIEWS * self._size + SLACK
        if len(shape) != len(strides) or too_large:
            raise Unreadable(
                f'it declares a tensor of shape {tuple(shape)[:6]}, and has {storage.num_bytes} bytes for it'
            )
