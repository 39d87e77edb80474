"""``xcit-mm VERB …``: one command for the scripts of ``tools/`` and the verbs that have no script.

Nothing heavy is imported before a verb is known, so that ``xcit-mm --help`` answers at once.
"""

import ast
import importlib
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Dict, List, NamedTuple, Optional

from ..package import PACKAGE, mim_dir


class Verb(NamedTuple):
    """One verb of the command.

    Attributes:
        summary (str): A line for the list of verbs.
        tool (str, optional): The script of ``tools/`` that it runs, without suffix.
        module (str, optional): The module of this package that it runs, with a function ``main``.
    """

    summary: str
    tool: Optional[str] = None
    module: Optional[str] = None

    @property
    def is_there(self) -> bool:
        if self.module is None:
            return True
        path = PACKAGE.joinpath(*self.module.split('.'))
        return path.with_suffix('.py').is_file() or (path / '__init__.py').is_file()


VERBS: Dict[str, Verb] = {
    'finetune': Verb('train on a folder of your own images, with a report', module='apis.finetune.command'),
    'train': Verb('train a model from its config', tool='train'),
    'test': Verb('test a checkpoint, and draw its results', tool='test'),
    'infer': Verb('predict on images, folders, videos, a camera or URLs', tool='infer'),
    'export': Verb('write a model as ONNX, OpenVINO or torch.export', tool='export'),
    'serve': Verb('answer HTTP requests with predictions', module='apis.serving'),
    'convert': Verb('rewrite a checkpoint for timm, MMPretrain or the hub', tool='convert_checkpoint'),
    'attention': Verb('draw what the class token attends to', tool='attention_maps'),
    'benchmark': Verb('time and memory against other backbones', tool='benchmark'),
    'models': Verb('list the published weights', module='cli.listing'),
    'doctor': Verb('what is installed, what is missing, and the command that fixes it', module='cli.doctor'),
}
HELP = ('-h', '--help')


def usage() -> str:
    """The list of verbs."""
    lines = [f'  {name:10} {verb.summary}' for name, verb in VERBS.items() if verb.is_there]
    return '\n'.join(
        [
            'usage: xcit-mm VERB ...',
            '',
            'XCiT for MMPretrain, MMDetection and MMSegmentation.',
            '',
            *lines,
            '',
            'example: xcit-mm finetune my_images',
            'xcit-mm VERB --help lists the options of a verb.',
        ]
    )


def load_tool(name: str) -> ModuleType:
    """Import a script of ``tools/``, from the checkout or the installation."""
    path = _tool_path(name)
    loader = SourceFileLoader(f'xcit_mm_tool_{name}', str(path))
    module = ModuleType(loader.name)
    module.__file__ = str(path)
    loader.exec_module(module)
    return module


def _tool_path(name: str) -> Path:
    return mim_dir() / 'tools' / f'{name}.py'


def renamed(text: str) -> str:
    """Replace calls of scripts in ``tools/`` by the verbs of this command."""
    for name, verb in VERBS.items():
        if verb.tool:
            text = re.sub(rf'(python )?tools/{verb.tool}\.py', f'xcit-mm {name}', text)
    return text


def run(name: str, arguments: List[str]) -> None:
    """Run a verb as its script would be run."""
    verb = VERBS[name]
    sys.argv = [f'xcit-mm {name}', *arguments]
    if verb.module:
        importlib.import_module(f'xcit_mm.{verb.module}').main()
        return
    tool = verb.tool or name
    if set(arguments) & set(HELP):
        text = ast.get_docstring(ast.parse(_tool_path(tool).read_text(encoding='utf-8')))
        print(renamed(text or ''), end='\n\n')
    load_tool(tool).main()


def main(arguments: Optional[List[str]] = None) -> None:
    """The console script."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in (*HELP, 'help'):
        print(usage())
        return
    name = arguments[0]
    if name in ('-V', '--version', 'version'):
        print(f'xcit_mm {importlib.import_module("xcit_mm").__version__}')
        return
    there = [verb for verb in VERBS if VERBS[verb].is_there]
    if name not in there:
        import difflib

        close = difflib.get_close_matches(name, there, n=1)
        hint = f'; did you mean {close[0]}?' if close else '.'
        print(f'error: xcit-mm has no verb {name!r}{hint} It has {", ".join(there)}', file=sys.stderr)
        sys.exit(2)
    run(name, arguments[1:])
