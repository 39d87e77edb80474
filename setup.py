"""Package metadata.

The OpenMMLab libraries are not among the requirements: mmengine, mmcv, mmdet, mmsegmentation and mmpretrain exist in
two families of distributions with the same import names, and naming either would install it on top of the other. The
extras ``onedl`` and ``openmmlab`` name them for those who have none yet.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'xcit_mm/__init__.py').read_text())[1]


def pins(name):
    """The requirements of one family, as the set-up installs them."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


setup(
    name='xcit_mm',
    version=VERSION,
    description='XCiT for OpenMMLab: classification, detection and segmentation with cross-covariance transformers',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.8',
    packages=find_packages(include=['xcit_mm', 'xcit_mm.*']),
    include_package_data=True,
    install_requires=['torch>=2.0', 'numpy', 'safetensors'],
    extras_require={
        'onedl': pins('onedl'),
        'openmmlab': pins('openmmlab'),
        'digits': ['scikit-learn', 'scikit-image', 'pycocotools'],
        'benchmark': ['timm'],
        'tensorboard': ['tensorboard'],
        'dev': ['pytest', 'pytest-xdist', 'ruff', 'timm', 'tensorboard', 'scikit-learn', 'scikit-image', 'pycocotools'],
    },
    classifiers=['Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
)
