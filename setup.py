"""What ``pyproject.toml`` cannot say: the folder ``xcit_mm/.mim``, the configs as modules, and the README for an index.

As in the OpenMMLab libraries, configs, tools and the model index are installed with the code, in ``xcit_mm/.mim``,
where mim and MMEngine look for them; in an editable installation as links into the checkout. ``xcit_mm/configs`` has
the same configs for pure-Python configs to inherit from.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml', 'README.md')
CHECKOUT_ONLY = ('quickstart.py', '__pycache__')
REPOSITORY = re.search(r'^Homepage = "(.*)"', (ROOT / 'pyproject.toml').read_text(encoding='utf-8'), re.M)[1]


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


def long_description():
    """The README, its links as addresses: an index shows it without the files beside it."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    text = re.sub(r'(!\[[^]]*\]\()(?!https?:)', rf'\1{REPOSITORY}/raw/main/', text)
    return re.sub(r'\]\((?!https?:|#)', f']({REPOSITORY}/blob/main/', text)


setup(
    long_description=long_description(),
    long_description_content_type='text/markdown',
    cmdclass={'build_py': BuildWithMim},
)
