"""What carries the project on: workflows, forms, hooks and pins agree with schemas and with each other."""

import re
import sys

import pytest
from processes import ROOT, call

SCHEMAS = {
    'github-workflows': '.github/workflows/*.yml',
    'github-issue-forms': '.github/ISSUE_TEMPLATE/[!c]*.yml',
    'github-issue-config': '.github/ISSUE_TEMPLATE/config.yml',
    'citation-file-format': 'CITATION.cff',
}


@pytest.mark.parametrize('schema', SCHEMAS)
def test_files_that_a_host_reads_are_valid(schema):
    pytest.importorskip('check_jsonschema', reason='pip install check-jsonschema')
    files = sorted(ROOT.glob(SCHEMAS[schema]))
    assert files
    done = call([sys.executable, '-m', 'check_jsonschema', '--builtin-schema', f'vendor.{schema}', *files])
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_has_one_version():
    pins = {
        name: set(re.findall(r'ruff==([\d.]+)', (ROOT / name).read_text()))
        for name in ('pyproject.toml', '.pre-commit-config.yaml', '.github/workflows/ci.yml')
    }
    assert len(set.union(*pins.values())) == 1 and all(pins.values()), pins


def test_the_repository_has_one_address():
    """Whoever publishes it elsewhere changes it everywhere."""
    found = set()
    for name in ('pyproject.toml', 'setup.py', 'mkdocs.yml', 'README.md', '.github/ISSUE_TEMPLATE/config.yml'):
        found |= set(re.findall(r'github\.com/([\w-]+/xcit_mm)\b', (ROOT / name).read_text()))
    assert len(found) == 1, found


def test_the_changelog_is_dated_and_has_a_place_for_what_comes():
    titles = re.findall(r'^## (.*)$', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    assert titles[0] == 'Unreleased'
    assert all(re.fullmatch(r'\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)', title) for title in titles[1:]) and titles[1:]


def test_what_contributors_copy_from_exists():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    table = [line for line in text.splitlines() if line.startswith('| a')]
    assert len(table) >= 6
    for name, module in re.findall(r'`([A-Z_]+)` in \[`([\w/.]+)`\]', text):
        assert re.search(rf'^{name}\b.*=', (ROOT / module).read_text(), re.M), (name, module)
