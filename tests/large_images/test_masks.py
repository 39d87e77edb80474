"""Instance masks as RLE."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from xcit_mm.large_images.masks import crop_of, encode_crop

CASES = {
    'blob': (slice(3, 9), slice(2, 7)),
    'whole columns': (slice(0, 12), slice(4, 8)),  # whose runs touch
    'whole': (slice(0, 12), slice(0, 10)),
    'first pixel': (slice(0, 1), slice(0, 1)),
    'last pixel': (slice(11, 12), slice(9, 10)),
    'nothing': (slice(5, 5), slice(5, 5)),
}


@pytest.mark.parametrize('case', CASES)
def test_a_crop_is_encoded_as_the_whole_mask(case):
    rows, columns = CASES[case]
    whole = np.zeros((12, 10), bool)
    whole[rows, columns] = True
    if case == 'blob':
        whole[5, 4] = False
    expected = coco_mask.encode(np.asfortranarray(whole, np.uint8))
    assert encode_crop(whole[rows, columns], columns.start, rows.start, 12, 10) == expected
    assert encode_crop(whole, 0, 0, 12, 10) == expected
    for given in (whole, expected):
        inside, x, y = crop_of(given)
        again = np.zeros_like(whole)
        again[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        assert (again == whole).all() and inside.size <= whole[rows, columns].size
