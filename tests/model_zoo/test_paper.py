"""The paper's tables come out as they were published, with the other systems, and their pictures show every row."""

import csv
import io

import pytest

from xcit_mm.model_zoo.paper import TABLES, as_csv, as_markdown, draw, family, points

BY_NUMBER = {table.number: table for table in TABLES}


@pytest.mark.parametrize('table', TABLES, ids=lambda t: f'table {t.number}')
def test_every_published_row_and_column_is_there(table):
    rows = table.rows()
    assert set(table.columns) | {'finetuned_at_resolution'} >= set(rows[0])
    written = list(csv.reader(io.StringIO(as_csv(table))))
    assert len(written) == len(rows) + 1 and written[0] == list(table.columns.values())
    assert as_markdown(table).count('\n') == len(rows) + 4


def test_a_row_is_as_published():
    assert '| Swin-T | 47.8 | 46.0 | 68.1 | 50.3 | 41.6 | 65.1 | 44.9 |' in as_markdown(BY_NUMBER[5])
    assert '| **XCiT-S12/8** | **43.1** | **47.0** | **68.9** |' in as_markdown(BY_NUMBER[5])
    assert '| Swin-T | – | – | 59.9 | 44.5 |' in as_markdown(BY_NUMBER[6])


def test_families():
    names = ['XCiT-S12/8', 'DeiT-B', 'ResNet50', 'ResNeXt101-32', 'Fix-EfficientNet-B8', 'CaiT-XS24', 'RegNetY-4GF']
    assert [family(n) for n in names] == ['XCiT /8', 'DeiT', 'ResNet', 'ResNeXt', 'EfficientNet', 'CaiT', 'RegNetY']


def test_points_are_all_rows_that_have_both_numbers():
    found = points(BY_NUMBER[6], 'params_m_upernet', 'miou_upernet')
    assert set(found) == {'XCiT /16', 'XCiT /8', 'ResNet', 'Swin'}
    assert found['Swin'] == [(59.9, 44.5, 'Swin-T'), (81.0, 47.6, 'Swin-S'), (121.0, 48.1, 'Swin-B')]
    assert sum(map(len, points(BY_NUMBER[2], 'flops_g', 'top1_imagenet').values())) == len(BY_NUMBER[2].rows())


def test_pictures_are_written(tmp_path):
    paths = draw([BY_NUMBER[2]], tmp_path / 'new')
    assert [p.name for p in paths] == ['imagenet_flops.png', 'imagenet_parameters.png']
    assert all(p.stat().st_size > 20000 for p in paths)
