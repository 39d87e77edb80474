"""What the site does beyond mkdocs: the project's addresses, pages that the navigation lacks, links out of docs/."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
# Files at the top of the repository that are pages too.
PAGES = {name: name.lower() for name in ('CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CODE_OF_CONDUCT.md')}


def on_config(config):
    """The addresses of pyproject.toml; pages of docs/ that the navigation lacks, and those of the configs."""
    urls = dict(re.findall(r'^(Homepage|Documentation) = "(.*)"', (ROOT / 'pyproject.toml').read_text(), re.M))
    config.site_url, config.repo_url = urls['Documentation'], urls['Homepage']
    config.repo_name = config.repo_url.split('/', 3)[3]
    sections = {title: pages for entry in config.nav for title, pages in entry.items()}
    named = set(re.findall(r'[\w/]+\.md', str(config.nav)))
    docs = Path(config.docs_dir)
    for name in sorted(path.name for path in docs.glob('*.md') if path.name not in named):
        sections['How to'].append(name)
    families = sorted(p.relative_to(docs).as_posix() for p in docs.glob('configs/*.md') if p.name != 'README.md')
    sections['Models'] += [{'Configs by family': ['configs/README.md', *families]}]
    sections['Project'] += sorted(PAGES.values())


def on_files(files, config):
    """The pages at the top of the repository."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding='utf-8')))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to files outside of docs/ lead to the repository, or to their page of the site."""
    if page.file.src_uri == 'README.md':
        page.meta['hide'] = ['navigation']
    at = posixpath.dirname(page.file.src_uri)
    is_top = page.file.src_uri in PAGES.values()

    def moved(match):
        target, _, anchor = match[1].partition('#')
        if not target or re.match(r'[a-z]+:', target):
            return match[0]
        path = posixpath.normpath(posixpath.join('.' if is_top else posixpath.join('docs', at), target))
        anchor = f'#{anchor}' if anchor else ''
        if path in PAGES:
            return f']({posixpath.relpath(PAGES[path], at or ".")}{anchor})'
        if path.startswith('docs/'):
            return f']({path[len("docs/") :]}{anchor})' if is_top else match[0]
        return f']({config.repo_url}/{"tree" if (ROOT / path).is_dir() else "blob"}/main/{path}{anchor})'

    parts = re.split(r'(^```.*?^```)', markdown, flags=re.M | re.S)  # code stays as it is
    return ''.join(part if part.startswith('```') else re.sub(r'\]\(([^)\s]+)\)', moved, part) for part in parts)


def on_page_content(html, page, config, files):
    """Sphinx's roles in docstrings (``:class:`XCiT```), without their names."""
    return re.sub(r':(?:func|class|meth|mod|attr):(?=<code|<a)', '', html)
