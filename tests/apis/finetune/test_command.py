"""``xcit-mm finetune`` from a folder to a report, with the smallest models; and what it says where it cannot."""

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from labelled_images import coco, folders, maps, save, scene, voc
from mmengine.config import Config
from processes import ROOT

from xcit_mm.apis.finetune import command

# Appended to the config that was written, as its owner would.
SMALL = {
    'classification': "model['backbone']['arch'] = dict(_delete_=True, embed_dims=32, depth=2, num_heads=2)\n"
    "model['head']['in_channels'] = 32\n",
    'detection': """
model['backbone'].update(arch=dict(_delete_=True, embed_dims=32, depth=4, num_heads=2), out_indices=(0, 1, 2, 3))
model['neck'] = dict(in_channels=[32] * 4, out_channels=32)
model['rpn_head'] = dict(in_channels=32, feat_channels=32)
model['roi_head'].update(bbox_roi_extractor=dict(out_channels=32))
model['roi_head']['bbox_head'].update(in_channels=32, fc_out_channels=64)
model['train_cfg'] = dict(rpn_proposal=dict(nms_pre=50, max_per_img=20))
model['test_cfg'] = dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0))
""",
    'semantic-segmentation': """
model['backbone'].update(arch=dict(_delete_=True, embed_dims=32, depth=4, num_heads=2), out_indices=(0, 1, 2, 3))
model['neck'] = dict(in_channels=[32] * 4, out_channels=32)
model['decode_head'].update(in_channels=[32] * 4, channels=32)
""",
}
OPTIONS = ('--model', 'xcit_n12_16', '--weights', 'none', '--epochs', 1, '--size', 48)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*words) -> None:
    command.main([str(word) for word in words])


def fails(*words, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    'task, make',
    [('classification', folders), ('detection', voc), ('semantic-segmentation', maps)],
)
def test_from_a_folder_to_a_report(task, make, capsys, one_thread):
    make(Path('data'))
    run('data', *OPTIONS, '--dry-run')
    shown = capsys.readouterr().out
    assert task in shown
    assert 'Nothing is trained' in shown
    out = Path('runs/data')
    assert {path.name for path in out.iterdir()} == {'config.py', 'data', 'found.jpg'}
    with open(out / 'config.py', 'a') as file:
        file.write(SMALL[task])
        file.write("for loader in (train_dataloader, val_dataloader):\n    loader['num_workers'] = 0\n")
        file.write("    loader['persistent_workers'] = False\n")
    run('data', '--out-dir', out, '--resume')
    shown = capsys.readouterr().out
    page = (out / 'report.html').read_text()
    classes = {'classification': ('disk', 'square'), 'detection': ('disk', 'square')}.get(task, ('0', '1', '2'))
    assert all(f'<td>{name}</td>' for name in classes)
    for name in ('best.pth', 'last.pth', 'train/curve.png', 'report/confusion.png', 'report/worst_00.jpg'):
        assert (out / name).is_file(), name
    assert (out / 'report' / 'precision_recall.png').is_file() == (task != 'semantic-segmentation')
    for line in shown.split('next\n')[1].strip().splitlines():
        assert line.strip() in page.replace('&quot;', '"')
    curve = json.loads((out / 'train' / 'curve.json').read_text())
    assert curve['train']
    assert curve['val'][0][1][curve['monitor']] >= 0
    # What validation said is what the report's test says, of the same checkpoint.
    headline = {'classification': 'accuracy/top1', 'detection': 'coco/bbox_mAP', 'semantic-segmentation': 'mIoU'}[task]
    assert f'{headline} <b>{curve["val"][-1][1][headline]:.4g}</b>' in page


def test_a_resumed_run_knows_what_was_said_of_the_data(monkeypatch):
    """Another division would validate on what was trained on."""
    folders(Path('data'), count=20)
    run('data', *OPTIONS, '--dry-run', '--seed', 3, '--val-share', 0.4, '--classes', 'square,disk')
    seen = []
    monkeypatch.setattr(command, '_run_training', lambda *args: None)
    monkeypatch.setattr(command, 'report', lambda data, *args: seen.append(data))
    run('data', '--out-dir', 'runs/data', '--resume')
    (data,) = seen
    assert data.classes == ['square', 'disk']
    listed = {line.rsplit(' ', 1)[0] for line in Path('runs/data/data/val.txt').read_text().splitlines()}
    assert {data.relative(picture.path) for picture in data.of('val')} == listed
    assert len(listed) == 16


def test_a_second_run_has_a_folder_of_its_own_and_an_old_one_is_never_overwritten(capsys):
    folders(Path('data'))
    run('data', *OPTIONS, '--dry-run')
    run('data', *OPTIONS, '--dry-run')
    assert sorted(path.name for path in Path('runs').iterdir()) == ['data', 'data_2']
    assert 'is not empty' in fails('data', *OPTIONS, '--out-dir', 'runs/data', capsys=capsys)
    assert 'no run to continue in runs/other' in fails('data', '--out-dir', 'runs/other', '--resume', capsys=capsys)


def test_boxes_alone_make_a_faster_rcnn_and_masks_a_mask_rcnn(capsys):
    coco(Path('boxes'))
    run('boxes', *OPTIONS, '--dry-run')
    assert 'faster_rcnn with XCiT-N12/16' in capsys.readouterr().out
    assert Config.fromfile('runs/boxes/config.py').model.type == 'FasterRCNN'
    coco(Path('masks'), masks=True)
    run('masks', *OPTIONS, '--dry-run')
    assert Config.fromfile('runs/masks/config.py').model.type == 'MaskRCNN'


def test_what_was_found_is_shown_with_its_problems(capsys):
    folders(Path('data'))
    (Path('data') / 'disk' / 'broken.png').write_bytes(b'no image')
    shutil.copy('data/disk/disk_0.png', 'data/square/copy.png')
    run('data', *OPTIONS, '--dry-run')
    shown = capsys.readouterr().out.replace('\n', ' ')
    assert 'image that cannot be read: 1 (disk/broken.png)' in shown
    assert 'image that exists twice: 1' in shown
    assert 'were drawn for validation' in shown


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda data: data.mkdir(), 'there is no image in'),
        (lambda data: save(data / 'a.jpg', scene(0)[0]), 'nothing that labels them'),
        (lambda data: save(data / 'a' / 'a.jpg', scene(0)[0]), 'at least two classes'),
        (lambda data: [path.write_bytes(b'x') for path in folders(data).rglob('*.png')], 'no image of'),
        (lambda data: (voc(data / 'x'), coco(data / 'y')), '--format'),
    ],
)
def test_data_that_cannot_be_trained_on_leave_nothing_behind(make, words, capsys):
    make(Path('data'))
    assert words in fails('data', *OPTIONS, capsys=capsys)
    assert not Path('runs').exists()


def test_images_that_are_all_cut_off(capsys):
    """Their headers are whole, so it is known when they are decoded."""
    for path in folders(Path('data')).rglob('*.png'):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 3])
    assert 'can be decoded' in fails('data', *OPTIONS, capsys=capsys)
    assert not Path('runs/data').exists()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere; run as another user')
def test_a_folder_that_cannot_be_written_to(capsys):
    folders(Path('data'))
    Path('locked').mkdir(mode=0o500)
    assert 'cannot be written to' in fails('data', *OPTIONS, '--out-dir', 'locked/run', capsys=capsys)


@pytest.mark.skipif(not Path('/proc/self').is_dir(), reason='needs the proc file system of Linux')
def test_a_file_system_that_takes_no_folders(capsys):
    """Permissions do not tell for root."""
    folders(Path('data'))
    assert 'choose another --out-dir' in fails('data', *OPTIONS, '--out-dir', '/proc/run', capsys=capsys)


def test_a_file_where_the_folder_should_be(capsys):
    folders(Path('data'))
    Path('taken').write_text('')
    assert 'choose another --out-dir' in fails('data', *OPTIONS, '--out-dir', 'taken/run', capsys=capsys)


def test_a_disk_without_room_for_the_checkpoints(capsys, monkeypatch):
    folders(Path('data'))
    usage = shutil.disk_usage('.')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=10_000_000))
    assert 'GB free, and the checkpoints of this run need' in fails('data', *OPTIONS, capsys=capsys)
    assert not Path('runs/data').exists()


def test_a_disk_that_is_full_while_the_labels_are_written(capsys, monkeypatch):
    folders(Path('data'))
    write = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == 'val.txt':
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, 'write_text', full)
    assert 'No space left on device' in fails('data', *OPTIONS, capsys=capsys)
    assert not Path('runs/data').exists()


def test_the_commands_of_the_documentation():
    page = (ROOT / 'docs' / 'finetune.md').read_text()
    commands = re.findall(r'^xcit-mm finetune ([^#\n]+)', page, re.M)
    assert len(commands) >= 4
    for words in commands:
        assert command.parse_args(shlex.split(words)).data == 'my_images'
