"""The plugin in the three libraries, as a stranger's script sees it: nothing of it is imported by hand."""

import sys

import pytest
from processes import ROOT, call

BACKBONE = "dict(type='xcit_mm.XCiT', arch='n12', patch_size=16, out_type='{}')"
MODELS = {
    'mmdet': f"""
path = '/.mim/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
cfg = Config.fromfile(get_installed_path('mmdet') + path)
cfg.merge_from_dict(dict(model=dict(
    backbone=dict(_delete_=True, **{BACKBONE.format('pyramid')}), neck=dict(in_channels=[128] * 4))))
maps = MODELS.build(cfg.model).eval().extract_feat(torch.randn(1, 3, 64, 96))
""",
    'mmseg': f"""
model = dict(type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor'),
    backbone={BACKBONE.format('pyramid')},
    neck=dict(type='FPN', in_channels=[128] * 4, out_channels=64, num_outs=4), test_cfg=dict(mode='whole'),
    decode_head=dict(type='FPNHead', in_channels=[64] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32],
                     channels=32, num_classes=5, loss_decode=dict(type='CrossEntropyLoss')))
maps = [MODELS.build(model).eval()(torch.randn(1, 3, 64, 96), mode='tensor')]
""",
    'mmpretrain': f"""
model = dict(type='ImageClassifier', backbone={BACKBONE.format('cls_token')},
    head=dict(type='LinearClsHead', num_classes=7, in_channels=128))
maps = [MODELS.build(model).eval()(torch.randn(1, 3, 64, 96), mode='tensor')]
""",
}
SHAPES = {
    'mmdet': '[(1, 256, 16, 24), (1, 256, 8, 12), (1, 256, 4, 6), (1, 256, 2, 3), (1, 256, 1, 2)]',
    'mmseg': '[(1, 5, 16, 24)]',
    'mmpretrain': '[(1, 7)]',
}


def run_python(code, cwd):
    done = call([sys.executable, '-c', code], cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize('library', MODELS)
def test_the_type_name_is_the_whole_installation(library, tmp_path):
    code = f"""
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import get_installed_path
init_default_scope('{library}')
{MODELS[library]}
maps = [m[0] if isinstance(m, tuple) else m for m in maps]
print([tuple(m.shape) for m in maps])
"""
    assert run_python(code, tmp_path) == SHAPES[library]


def test_importing_the_package_imports_none_of_the_libraries(tmp_path):
    code = 'import sys, xcit_mm; print(sorted({"mmdet", "mmseg", "mmpretrain", "mmcv", "torch"} & set(sys.modules)))'
    assert run_python(code, tmp_path) == '[]'
    code = 'import sys, xcit_mm.models; print(sorted({"mmdet", "mmseg", "mmpretrain", "timm"} & set(sys.modules)))'
    assert run_python(code, tmp_path) == '[]'


def test_the_code_is_linted_and_formatted():
    for command in (['check'], ['format', '--check']):
        done = call([sys.executable, '-m', 'ruff', *command, ROOT])
        assert done.returncode == 0, done.stdout[-3000:]


def test_classifiers_beside_transformers_5(tmp_path):
    """Whose names MMPretrain's multimodal models take, and which it has not any more."""
    about = tmp_path / 'transformers-5.0.0.dist-info'
    about.mkdir()
    (about / 'METADATA').write_text('Metadata-Version: 2.1\nName: transformers\nVersion: 5.0.0\n')
    (tmp_path / 'transformers').mkdir()
    (tmp_path / 'transformers/__init__.py').write_text("__version__ = '5.0.0'\n")
    program = f"import sys; sys.path.insert(0, '{tmp_path}')\n"
    program += 'import xcit_mm.registry, mmpretrain.models; print(mmpretrain.models.ImageClassifier.__name__)'
    done = call([sys.executable, '-c', program])
    assert done.stdout.split()[-1:] == ['ImageClassifier'], done.stderr
