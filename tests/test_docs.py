"""The documentation: its links, commands and code are tried out."""

import argparse
import os
import re
import runpy
import shlex
import shutil
import sys

import pytest
import torch
from mmengine.config import Config
from processes import ROOT, call

import xcit_mm
from xcit_mm.model_zoo import all_models

PAGES = sorted(
    [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), *ROOT.glob('.github/**/*.md'), *ROOT.glob('examples/**/*.md')]
)
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}


def blocks(language):
    """Fenced blocks of all pages, with an id."""
    for page, text in TEXTS.items():
        for number, code in enumerate(re.findall(rf'```{language}\n(.*?)```', text, re.S), 1):
            yield pytest.param(page, code, id=f'{page}-{number}')


def commands():
    """Calls of this project's Python tools in the pages, without comments, options of shells and continuations."""
    found = {}
    for page, text in TEXTS.items():
        for code in re.findall(r'```bash\n(.*?)```', text, re.S):
            for line in code.replace('\\\n', ' ').splitlines():
                call = re.search(r'(?:^|[\s/])(tools/\w+\.py\b[^#\n|]*)', line)
                if call and not re.match(r'\s*(python )?\$(MIM|MMDET)|.*\$\(', line):
                    found[call[1].strip()] = page
    return sorted(found)


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'```.*?```', '', TEXTS[page], flags=re.S), re.M)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', TEXTS)
def test_links_lead_somewhere(page):
    """To files, and to headings of pages."""
    for target in re.findall(r'\]\(([^)\s]+)', TEXTS[page]):
        if '://' in target:
            continue
        path, _, anchor = target.partition('#')
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), target
        if anchor and file.suffix == '.md':
            assert anchor in anchors(str(file.relative_to(ROOT))), target


class Parsed(Exception):
    pass


@pytest.mark.parametrize('command', commands())
def test_commands_are_understood(command, monkeypatch):
    """Each tool's own parser takes the arguments, and configs that are named exist."""
    tool, *arguments = shlex.split(re.sub(r'\$(\w+)', r'\1', command))
    assert os.access(ROOT / tool, os.X_OK) and (ROOT / tool).read_text().startswith('#!/usr/bin/env python')
    for argument in arguments:
        if re.fullmatch(r'configs/\w+\.py', argument):
            assert (ROOT / argument).is_file() or (ROOT / 'examples/downstream' / argument).is_file(), argument
    parse = argparse.ArgumentParser.parse_args
    known = argparse.ArgumentParser.parse_known_args
    depth = []

    def stop(method):
        def parse_and_stop(self, *args, **kwargs):
            depth.append(self)
            result = method(self, *args, **kwargs)
            depth.pop()
            if depth:  # a parser of sub-commands, or the method that the other calls
                return result
            raise Parsed

        return parse_and_stop

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop(parse))
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_known_args', stop(known))
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / tool), run_name='__main__')


@pytest.mark.parametrize('page, code', blocks('python'))
def test_configs_and_code(page, code, tmp_path, monkeypatch):
    """Code compiles; what begins with a base is a config, and is read."""
    compile(code, page, 'exec')
    if not code.startswith('_base_') or "'mmdet::" in code:
        return
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    (tmp_path / 'configs/_base_/my_data.py').write_text('classes = ()')
    (tmp_path / 'configs/mine.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'configs/mine.py')
    assert cfg.model.type


def test_the_features_that_are_shown():
    code = next(c for c in re.findall(r'```python\n(.*?)```', TEXTS['docs/inference.md'], re.S) if 'import torch' in c)
    names = {}
    with torch.no_grad():
        exec(code, names)
    assert names['cls_token'].shape == (2, 128)
    assert [tuple(m.shape) for m in names['maps']] == [(2, 128, 14, 20)] * 2
    assert [tuple(m.shape[2:]) for m in names['pyramid']] == [(56, 80), (28, 40), (14, 20), (7, 10)]


def test_the_two_forms_that_are_shown_agree(capsys):
    code = re.search(r'```python\n(.*?)```', TEXTS['docs/covariance.md'], re.S)[1]
    exec(code, {})
    assert float(capsys.readouterr().out) < 1e-14


def test_the_readme_is_short_and_says_where_its_numbers_are_from():
    """Published ones are those of the tables; measured ones name the device."""
    text = TEXTS['README.md']
    assert len(text.encode()) <= 10_000
    models = {model.config: model for model in all_models()}
    rows = re.findall(r'^\| .*\[config\]\((configs/\w+\.py)\).*$', text, re.M)
    lines = [line for line in text.splitlines() if '[config](' in line]
    assert len(rows) == len(lines) >= 6
    for config, line in zip(rows, lines):
        *_, result, origin, _ = (cell.strip() for cell in line.strip('|').split('|'))
        numbers = [float(number) for number in re.findall(r'[\d.]+', re.sub(r'top-\d+', '', result))]
        assert numbers
        if origin == 'published':
            docstring = (ROOT / config).read_text().split('"""')[1]
            known = [*(models[config].metrics.values() if config in models else ()), docstring]
            assert all(number in known or str(number) in docstring for number in numbers), line
        else:
            assert re.match(r'measured here, .*\d+ cores?', origin), line


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip('mkdocstrings_handlers.python', reason='pip install "xcit_mm[docs]"')
    pytest.importorskip('material', reason='pip install "xcit_mm[docs]"')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', tmp_path / 'site']
    done = call(command, cwd=ROOT, env=dict(os.environ, NO_MKDOCS_2_WARNING='1'))
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ('', 'models/', 'configs/mask_rcnn/', 'reference/', 'changelog/', 'security/'):
        assert (tmp_path / 'site' / page / 'index.html').is_file(), page
    pages = {path.stem.lower() for path in ROOT.glob('docs/*.md')} - {'readme'}
    assert all((tmp_path / 'site' / page / 'index.html').is_file() for page in pages)


def test_pages_code_and_configs_are_spelled_right():
    pytest.importorskip('codespell_lib', reason='pip install codespell')
    places = (*ROOT.glob('*.md'), 'docs', 'xcit_mm', 'tools', 'tests', 'configs', 'examples')
    done = call([sys.executable, '-m', 'codespell_lib', *places], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_error_messages_of_the_ecosystem_are_the_real_ones(tmp_path):
    """Those that can be had without breaking an environment."""
    install = TEXTS['docs/install.md']
    (tmp_path / 'config.py').write_text("_base_ = 'xcit_mm::a/b.py'")
    with pytest.raises(AssertionError) as error:
        Config.fromfile(tmp_path / 'config.py')
    assert f'`AssertionError: {error.value}`' in install
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmdet')
    with pytest.raises(KeyError) as error:
        MODELS.build(dict(type='mmdet.NotThere'))
    assert 'is not in the mmdet::model registry' in str(error.value)
    assert 'is not in the mmdet::model registry' in install


def test_the_package_and_its_papers_have_one_version():
    assert f'## {xcit_mm.__version__}' in (ROOT / 'CHANGELOG.md').read_text()
    assert f'version: {xcit_mm.__version__}\n' in (ROOT / 'CITATION.cff').read_text()
