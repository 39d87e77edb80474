"""Package metadata.

The OpenMMLab libraries are not among the requirements: mmengine, mmcv, mmdet, mmsegmentation and mmpretrain exist in
two families of distributions with the same import names, and naming either would install it on top of the other. The
extras ``onedl`` and ``openmmlab`` name them for those who have none yet.

As in the OpenMMLab libraries, configs, tools and the model index are installed with the code, in ``xcit_mm/.mim``,
where mim and MMEngine look for them; in an editable installation as links into the checkout. ``xcit_mm/configs`` has
the same configs for pure-Python configs to inherit from.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml', 'README.md')
CHECKOUT_ONLY = ('quickstart.py', '__pycache__')
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'xcit_mm/__init__.py').read_text())[1]


def pins(name):
    """The requirements of one family, as the set-up installs them."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


class BuildWithMim(build_py):
    """Build the package with ``.mim``, which lies outside of it in the checkout."""

    editable_mode = False

    def run(self):
        super().run()
        if self.editable_mode:
            self.link()
            write_modules(ROOT / 'xcit_mm/configs')
        else:
            self.copy()
            write_modules(Path(self.build_lib) / 'xcit_mm/configs')

    def link(self):
        target = ROOT / 'xcit_mm/.mim'
        target.mkdir(exist_ok=True)
        for name in MIM:
            link = target / name
            if link.is_symlink() or link.is_file():
                link.unlink()
            elif link.exists():
                shutil.rmtree(link)
            try:
                link.symlink_to(os.path.join('..', '..', name))
            except OSError:  # Windows without the right to make links
                copy(ROOT / name, link)

    def copy(self):
        target = Path(self.build_lib) / 'xcit_mm/.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM:
            copy(ROOT / name, target / name)


def write_modules(target):
    """The configs as modules, for ``with read_base(): from xcit_mm.configs.NAME.config import *``.

    Each in a folder of its own, since mim looks for configs by the names of files and takes none that it finds twice.
    """
    shutil.rmtree(target, ignore_errors=True)
    for config in sorted((ROOT / 'configs').glob('*.py')):
        text = f"globals().update(__import__('xcit_mm').load_config('{config.stem}'))\n"
        module = target / config.stem / 'config.py'
        module.parent.mkdir(parents=True)
        module.write_text(text)


def copy(source, target):
    """A file, or a folder without what serves the checkout alone."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*CHECKOUT_ONLY))
    else:
        shutil.copy2(source, target)


setup(
    name='xcit_mm',
    version=VERSION,
    description='XCiT for OpenMMLab: classification, detection and segmentation with cross-covariance transformers',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.8',
    packages=find_packages(include=['xcit_mm', 'xcit_mm.*']),
    package_data={'xcit_mm.published': ['data/*']},
    include_package_data=False,
    cmdclass={'build_py': BuildWithMim},
    install_requires=['torch>=2.0', 'numpy', 'safetensors'],
    extras_require={
        'onedl': pins('onedl'),
        'openmmlab': pins('openmmlab'),
        'digits': ['scikit-learn', 'scikit-image', 'pycocotools'],
        'benchmark': ['timm'],
        'hub': ['huggingface_hub'],
        'export': ['onnx', 'onnxruntime'],
        'tensorboard': ['tensorboard'],
        'page': ['gradio'],
        'fuzz': ['atheris'],
        'dev': [
            'pytest',
            'pytest-xdist',
            'ruff',
            'timm',
            'tensorboard',
            'scikit-learn',
            'scikit-image',
            'pycocotools',
            'onnx',
            'onnxruntime',
            'grad-cam<1.5',
            'hypothesis',
        ],
    },
    classifiers=['Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
)
