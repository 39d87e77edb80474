"""The pages of the families of configs: every config is on one, as the config itself says."""

import ast
import re

import pytest
from processes import ROOT

from xcit_mm.model_zoo.families import FAMILIES, FOLDER, family_pages


def test_every_config_is_on_the_page_of_one_family_with_what_it_says_of_itself():
    pages = {family.page: (ROOT / f'{FOLDER}/{family.page}.md').read_text() for family in FAMILIES}
    overview = (ROOT / FOLDER / 'README.md').read_text()
    assert all(f'({page}.md)' in overview for page in pages)
    for path in ROOT.glob('configs/*.py'):
        rows = [row for text in pages.values() for row in re.findall(rf'^\| \[`{path.stem}`\].*$', text, re.M)]
        assert len(rows) == 1, f'{path.name}: run tools/model_zoo.py --update-docs'
        assert ast.get_docstring(ast.parse(path.read_text())).split('\n')[0] in rows[0], path.name


def test_a_config_of_no_family_is_named(tmp_path):
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/resnet.py').write_text('"""None of ours."""')
    with pytest.raises(ValueError, match=r'resnet\.py belongs to no family'):
        family_pages(tmp_path)


@pytest.mark.slow
def test_the_pages_are_the_tools():
    for path, text in family_pages(ROOT).items():
        assert (ROOT / path).read_text() == text, f'run tools/model_zoo.py --update-docs ({path})'
