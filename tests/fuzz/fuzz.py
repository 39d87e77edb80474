#!/usr/bin/env python
"""Coverage-guided fuzzing of what reads files from outside: checkpoints, and annotations of COCO.

    pip install atheris
    python tests/fuzz/fuzz.py checkpoints -max_total_time=600
    python tests/fuzz/fuzz.py annotations -max_total_time=600

Any other error than the one message, memory beyond 3 GB, a file that takes 20 s, or code that is run, is a find: the
file stays as ``crash-...`` in the current folder. Each find becomes a case of ``tests/helpers/bad_checkpoints.py`` or
``tests/datasets/test_hostile_annotations.py``.
"""

import json
import os
import sys
import tempfile
from contextlib import redirect_stdout, suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'helpers'))
# What is imported in here guides the search.
with atheris.instrument_imports(include=['xcit_mm.checkpoint', 'xcit_mm.datasets.coco', 'pickle', 'zipfile']):
    import zipfile

    import xcit_mm.datasets.coco as coco
    from xcit_mm.checkpoint import CheckpointError, load_checkpoint_file
    from xcit_mm.checkpoint.layouts import tensors_of
    from xcit_mm.conversion.arch import infer_arch

import torch
from bad_checkpoints import bad_checkpoints, pack
from mmengine.logging import MMLogger

from xcit_mm.errors import UsageError
from xcit_mm.models.xcit import XCiT

torch.set_num_threads(1)
MMLogger.get_instance('mmengine').setLevel('CRITICAL')
FOLDER = Path(tempfile.mkdtemp())
CANARY = FOLDER / 'canary'
with torch.device('cpu'):
    MODEL = XCiT(dict(embed_dims=8, depth=1, num_heads=1), patch_size=8)
RECORDS = [bytes(64)] * 4


def checkpoints(data):
    """As a file, and as the pickle of a file whose checksums are right, which changed bytes would not get past."""
    contents = [('file.pth', data), ('packed.pth', pack(data, RECORDS))]
    if data[8:9] == b'{':
        contents = [('file.safetensors', data)]
    for name, content in contents:
        path = FOLDER / name
        path.write_bytes(content)
        before = {key: value.clone() for key, value in MODEL.state_dict().items()}
        try:
            state = load_checkpoint_file(str(path))
            state = state.get('state_dict', state)
            infer_arch({key.replace('backbone.', '', 1): value for key, value in tensors_of(state).items()})
            MODEL.load_state_dict(state)
        except CheckpointError as error:
            assert '\n' not in str(error) and len(str(error)) < 2000
        except RuntimeError as error:  # PyTorch's, about names of an empty file
            assert 'Error(s) in loading state_dict' in str(error), error
        after = MODEL.state_dict()
        if any(not torch.equal(before[key], after[key]) for key in before):
            assert all(value.isfinite().all() for value in after.values()), 'half loaded'
        assert not CANARY.exists(), 'code was run'


def annotations(data):
    path = FOLDER / 'annotations.json'
    path.write_bytes(data)
    for test_mode in (False, True):
        try:
            with redirect_stdout(None):  # pycocotools tells of every step
                found = coco.CheckedAnnotations(str(path), 'file', ['a'], with_masks=True, test_mode=test_mode)
        except UsageError as error:
            assert '\n' not in str(error)
            continue
        for annotation in found.dataset['annotations']:
            image = found.imgs[annotation['image_id']]
            if isinstance(annotation['segmentation'], list):
                assert all(len(polygon) >= 6 for polygon in annotation['segmentation'])
            if image['height'] * image['width'] < 1 << 24 and isinstance(image['height'] + image['width'], int):
                assert found.annToMask(annotation).shape == (image['height'], image['width'])


def seeds(target):
    """Small files of every kind to begin from."""
    folder = FOLDER / 'seeds'
    folder.mkdir()
    if target is annotations:
        image = dict(id=1, file_name='a.jpg', height=8, width=8)
        masks = [[[1, 1, 5, 1, 5, 5]], dict(size=[8, 8], counts=[3, 5, 56]), dict(size=[8, 8], counts='35h1')]
        for number, mask in enumerate(masks):
            one = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0, segmentation=mask)
            content = dict(images=[image], categories=[dict(id=1, name='a')], annotations=[one])
            (folder / str(number)).write_text(json.dumps(content))
        return folder
    state = {f'backbone.{key}': value for key, value in MODEL.state_dict().items()}
    state.update({'head.fc.weight': torch.zeros(2, 8), 'head.fc.bias': torch.zeros(2)})
    for number, (_, content) in enumerate(bad_checkpoints(state, CANARY)):
        if len(content) < 40000:
            (folder / str(number)).write_bytes(content)
            if content[:2] == b'PK':
                with suppress(Exception):  # as broken as they are meant to be
                    archive = zipfile.ZipFile(folder / str(number))
                    name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
                    (folder / f'{number}.pkl').write_bytes(archive.read(name))
    return folder


def main():
    target = {'checkpoints': checkpoints, 'annotations': annotations}[sys.argv[1]]
    folder = seeds(target)
    found = FOLDER / 'found'
    found.mkdir()
    arguments = [sys.argv[0], '-rss_limit_mb=3000', '-timeout=20', '-max_len=40000', *sys.argv[2:]]
    atheris.Setup([*arguments, str(found), str(folder)], target, internal_libfuzzer=True)
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    atheris.Fuzz()


if __name__ == '__main__':
    main()
