"""The pages of the families of configs: every config is on one, as the config itself says."""

import ast
import re

import pytest
from processes import ROOT

from xcit_mm.model_zoo.families import FAMILIES, FOLDER, family_pages, published_results


def test_every_config_is_on_the_page_of_one_family_with_what_it_says_of_itself():
    pages = {family.page: (ROOT / f'{FOLDER}/{family.page}.md').read_text() for family in FAMILIES}
    overview = (ROOT / FOLDER / 'README.md').read_text()
    assert all(f'({page}.md)' in overview for page in pages)
    for path in ROOT.glob('configs/*.py'):
        rows = [row for text in pages.values() for row in re.findall(rf'^\| \[`{path.stem}`\].*$', text, re.M)]
        assert len(rows) == 1, f'{path.name}: run tools/model_zoo.py --update-docs'
        assert ast.get_docstring(ast.parse(path.read_text())).split('\n')[0] in rows[0], path.name


def test_every_published_number_is_in_the_row_of_its_config_and_its_docstring():
    pages = '\n'.join((ROOT / f'{FOLDER}/{family.page}.md').read_text() for family in FAMILIES)
    results = published_results()
    names = {path.stem for path in ROOT.glob('configs/*.py')}
    says = {name: ast.get_docstring(ast.parse((ROOT / f'configs/{name}.py').read_text())) for name in names}
    assert set(results) == {name for name, text in says.items() if re.search(r'Published.*\d', text)}
    for name, result in results.items():
        cells = re.search(rf'^\| \[`{name}`\](.*) \|$', pages, re.M)[1].split(' | ')
        for column, text in result.items():
            assert text in cells, (name, column)
            assert column == 'weights' or text in says[name], (name, column)
    assert results['mask_rcnn_xcit_s12_8_3x_coco']['box AP'] == '47.0'
    assert results['ablation_xcit_s12_16_no_l2_norm_in1k'] == {'top-1': 'failed'}


def test_a_config_of_no_family_is_named(tmp_path):
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/resnet.py').write_text('"""None of ours."""')
    with pytest.raises(ValueError, match=r'resnet\.py belongs to no family'):
        family_pages(tmp_path)


@pytest.mark.slow
def test_the_pages_are_the_tools():
    for path, text in family_pages(ROOT).items():
        assert (ROOT / path).read_text() == text, f'run tools/model_zoo.py --update-docs ({path})'
