"""Attention maps: the numbers are those of the layers' formulas, and the tool draws them at any size."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import build, official_names, randomise
from mmengine.config import Config
from processes import run

from xcit_mm.checkpoint import CheckpointError
from xcit_mm.datasets.reading import config_in_checkpoint, model_input
from xcit_mm.errors import UsageError
from xcit_mm.visualization import channel_attention, class_attention, keep_mass, load_backbone, load_input
from xcit_mm.visualization.pictures import contact_sheet, draw, heat_map, overlay, to_pixels

HEADS = 8


@pytest.fixture(scope='module')
def backbone():
    return randomise(build(arch=dict(embed_dims=64, depth=3, num_heads=HEADS), patch_size=8))


@pytest.fixture(scope='module')
def checkpoint(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp('checkpoint') / 'dino.pth'
    torch.save({f'{k}': v for k, v in official_names(backbone.state_dict()).items()}, path)
    return path


def tokens_of(backbone, images):
    """Inputs of all blocks, from a plain forward pass."""
    x, grid = backbone.patch_embed(images)
    x = x + backbone.pos_embed(*grid)
    found = []
    for block in backbone.blocks:
        found.append(x)
        x = x + block.gamma1 * block.attn(block.norm1(x))
        x = x + block.gamma3 * block.lpi(block.norm3(x), grid)
        x = x + block.gamma2 * block.mlp(block.norm2(x))
    return found, x, grid


# Few tokens for each channel, and many: XCA takes another way there.
@pytest.mark.parametrize('size', [(57, 83), (160, 96)])
@torch.no_grad()
def test_class_attention_is_the_softmax_of_all_keys(backbone, size):
    images = torch.randn(2, 3, *size)
    _, x, (rows, columns) = tokens_of(backbone, images)
    cls_token = backbone.cls_token.expand(2, -1, -1)
    for i, block in enumerate(backbone.cls_attn_blocks):
        tokens = block.norm1(torch.cat((cls_token, x), dim=1))
        q, k, _ = block.attn.qkv(tokens).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        expected = (q[:, :, :1] @ k.transpose(-2, -1) * (64 / HEADS) ** -0.5).softmax(-1)[:, :, 0, 1:]
        found = class_attention(backbone, images, block=i)
        assert found.shape == (2, HEADS, rows, columns)
        torch.testing.assert_close(found.flatten(2), expected, rtol=1e-3, atol=1e-5)
        cls_token, x = block(cls_token, x)


@pytest.mark.parametrize('size', [(57, 83), (160, 96)])
@torch.no_grad()
def test_channel_attention_is_that_of_normalised_queries_and_keys(backbone, size):
    images = torch.randn(2, 3, *size)
    found = channel_attention(backbone, images)
    assert found.shape == (2, 3, HEADS, 8, 8)
    for i, x in enumerate(tokens_of(backbone, images)[0]):
        attn = backbone.blocks[i].attn
        q, k, _ = attn.qkv(backbone.blocks[i].norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 4, 1)
        expected = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * attn.temperature).softmax(-1)
        torch.testing.assert_close(found[:, i], expected, rtol=1e-3, atol=1e-5)


def test_looking_changes_nothing(backbone):
    images = torch.randn(1, 3, 64, 64)
    before = backbone(images)[0]
    class_attention(backbone, images), channel_attention(backbone, images)
    assert torch.equal(before, backbone(images)[0])
    assert not any(m._forward_pre_hooks for m in backbone.modules())


def test_masks_keep_the_fewest_patches_with_the_mass():
    attention = torch.tensor([[0.4, 0.1], [0.3, 0.2]])
    assert keep_mass(attention, 0.6).tolist() == [[True, False], [True, False]]
    assert keep_mass(attention, 0.7).sum() == 2 and keep_mass(attention, 0.71).sum() == 3
    assert keep_mass(attention, 1.0).all() and keep_mass(attention, 0.01).sum() == 1
    with pytest.raises(ValueError, match='above 0 and at most 1, got 1.5'):
        keep_mass(attention, 1.5)


def test_a_patch_is_drawn_where_it_is():
    patches = torch.zeros(5, 7)
    patches[3, 2] = 1
    pixels = to_pixels(patches, 8, 37, 53, smooth=False)
    assert pixels.shape == (37, 53)
    assert set(zip(*np.nonzero(pixels))) == {(y, x) for y in range(24, 32) for x in range(16, 24)}
    hottest = heat_map(to_pixels(patches, 8, 37, 53)).astype(int).sum(-1)
    assert np.unravel_index(hottest.argmax(), hottest.shape) in {(y, x) for y in range(24, 32) for x in range(16, 24)}


def test_every_head_has_its_pictures(backbone):
    image = np.full((37, 53, 3), 90, np.uint8)
    pictures = draw(image, torch.rand(HEADS, 5, 7), 8)
    assert len(pictures) == 3 * (1 + HEADS) and all(p.shape == (37, 53, 3) for p in pictures.values())
    assert contact_sheet(image, pictures).shape[1] > (1 + HEADS) * 240


def test_the_arch_of_a_checkpoint_is_told_by_its_tensors(backbone, checkpoint):
    loaded = load_backbone(str(checkpoint))
    images = torch.randn(1, 3, 40, 40)
    torch.testing.assert_close(loaded(images), backbone(images), rtol=1e-4, atol=1e-5)


def test_a_detectors_backbone_is_refused(tmp_path):
    dense = build(arch=dict(embed_dims=32, depth=1, num_heads=4), patch_size=8, out_type='pyramid')
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in dense.state_dict().items()}), tmp_path / 'dense.pth')
    with pytest.raises(CheckpointError, match='dense.pth holds an XCiT without a class token'):
        load_backbone(str(tmp_path / 'dense.pth'))


def test_the_tool_draws_images_and_videos(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / 'photo.png'), rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    writer = cv2.VideoWriter(str(tmp_path / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (72, 48))
    for _ in range(3):
        writer.write(rng.integers(0, 256, (48, 72, 3), dtype=np.uint8))
    writer.release()
    arguments = ('photo.png', 'clip.mp4', '--checkpoint', checkpoint, '--channels', '--tensors', '--out', 'maps')
    run('attention_maps.py', *arguments, cwd=tmp_path)
    folder = tmp_path / 'maps/photo'
    assert {p.name for p in folder.iterdir()} >= {'sheet.png', 'channels.png', 'heat_head_8.png', 'mask_mean.png'}
    tensors = np.load(folder / 'attention.npz')
    assert tensors['class_attention'].shape == (HEADS, 7, 9) and tensors['channel_attention'].shape == (3, HEADS, 8, 8)
    video = cv2.VideoCapture(str(tmp_path / 'maps/clip_attention.mp4'))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FRAME_WIDTH)) == (3, 144)
    assert 'nowhere.png is no image, no folder' in run(
        'attention_maps.py', 'nowhere.png', '--checkpoint', checkpoint, cwd=tmp_path, ok=False
    )


def test_every_image_has_a_folder_of_its_own_and_a_bad_one_ends_nothing(checkpoint, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for name in ('a/photo.jpg', 'b/photo.jpg', 'b/photo.png', 'b/more/photo.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture)
    (tmp_path / 'a/broken.jpg').write_text('no image')
    cv2.imwrite(str(tmp_path / 'a/small.png'), picture[:4])
    (tmp_path / 'a/no.mp4').write_text('no video')
    arguments = ('a', 'b', 'nowhere.png', '--checkpoint', checkpoint, '--out-dir', 'maps')
    output = run('attention_maps.py', *arguments, cwd=tmp_path, ok=False)
    found = {str(path.parent.relative_to(tmp_path / 'maps')) for path in (tmp_path / 'maps').rglob('sheet.png')}
    assert found == {'a/photo', 'b/photo.jpg', 'b/photo.png'}
    assert '4 of 7 could not be drawn' in output and '1 sub-folder' in output
    for text in (
        'a/broken.jpg: it is cut off',
        'a/small.png: it is 32x4 pixels',
        'a/no.mp4: it is no video',
        'nowhere',
    ):
        assert text in output


def test_images_are_read_and_normalised_as_the_config_in_the_checkpoint_says(tmp_path):
    grey = randomise(build(arch=dict(embed_dims=32, depth=1, num_heads=4), patch_size=8, in_channels=1))
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            data_preprocessor=dict(mean=[100.0], std=[50.0], to_rgb=False),
            test_dataloader=dict(
                dataset=dict(pipeline=[dict(type='LoadImageFromFile', color_type='grayscale'), dict(type='PackInputs')])
            ),
        )
    )
    state = {f'backbone.{key}': value for key, value in grey.state_dict().items()}
    torch.save({'state_dict': state, 'meta': {'cfg': cfg.pretty_text}}, tmp_path / 'grey.pth')
    torch.save({'state_dict': state}, tmp_path / 'bare.pth')
    picture = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    loaded = load_backbone(str(tmp_path / 'grey.pth'))
    read = load_input(str(tmp_path / 'grey.pth'), loaded)
    inputs = read.tensor(read.reader.read(tmp_path / 'a.png')['img'])
    torch.testing.assert_close(inputs, (torch.from_numpy(picture)[None, None].float() - 100) / 50)
    with pytest.raises(UsageError, match='takes images of 1 channel, expected 3, .* give its config'):
        load_input(str(tmp_path / 'bare.pth'), loaded)
    assert load_input(str(tmp_path / 'bare.pth'), loaded, cfg).mean == (100.0,)
    run('attention_maps.py', 'a.png', '--checkpoint', 'grey.pth', '--out', 'maps', cwd=tmp_path)
    assert (tmp_path / 'maps/a/sheet.png').exists()


@pytest.mark.parametrize('to_rgb', [True, False])
def test_the_order_of_the_colours_is_that_of_the_config(to_rgb, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    preprocessor = dict(mean=[10.0, 20.0, 30.0], std=[1.0, 2.0, 3.0], bgr_to_rgb=to_rgb)
    read = model_input(Config(dict(model=dict(data_preprocessor=preprocessor))))
    assert read.order == ('RGB' if to_rgb else 'BGR')
    seen = picture[..., ::-1] if to_rgb else picture
    expected = (seen.astype(np.float32) - [10, 20, 30]) / [1, 2, 3]
    found = read.tensor(read.reader.read(tmp_path / 'a.png')['img'])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_nothing_of_a_config_in_a_checkpoint_is_run(tmp_path):
    text = f"test_dataloader = dict(dataset=dict(pipeline=[open('{tmp_path}/made', 'w')]))"
    assert config_in_checkpoint({'meta': {'cfg': text}}) is None
    assert not (tmp_path / 'made').exists()


def test_an_overlay_leaves_what_has_no_attention_as_it_is():
    image = np.full((4, 4, 3), 200, np.uint8)
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    drawn = overlay(image, values).astype(int)
    assert (drawn[0, 0] == 200).all()
    brightest = heat_map(values)[3, 3].astype(int)
    assert (abs(drawn[3, 3] - brightest) < abs(200 - brightest)).all()
