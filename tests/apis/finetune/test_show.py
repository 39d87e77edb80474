"""The contact sheet of labelled images."""

import numpy as np
from labelled_images import save
from PIL import Image

from xcit_mm.apis.finetune import formats, show
from xcit_mm.apis.finetune.data import Options
from xcit_mm.apis.finetune.split import divide


def test_the_sheet_shows_images_of_all_videos(tmp_path):
    """The first frames alone, all of one scene, would tell little."""
    labels = np.zeros((320, 320), np.uint8)
    labels[:, 160:] = 1
    for number in range(40):
        image = np.full((320, 320, 3), 255 * (number >= 20), np.uint8)
        image[:8, :8] = 6 * number  # no copies of one file, which would stay in one split
        save(tmp_path / 'images' / f'{number:02d}.jpg', image)
        save(tmp_path / 'masks' / f'{number:02d}.png', labels)
    data = formats.read(tmp_path, Options())
    divide(data, Options())
    show.draw_sheet(data, tmp_path / 'found.jpg')
    sheet = np.asarray(Image.open(tmp_path / 'found.jpg').convert('L'), float)
    tiles = sheet.reshape(4, 320, 4, 320).mean((1, 3))
    bright = (tiles > tiles.mean()).sum()
    assert 3 <= bright <= 13
    assert tiles.max() - tiles.min() > 40
