"""tools/train.py and tools/test.py as a user runs them: real models, real data, one process and two."""

import json
import os
import pickle
import sys

import pytest
import torch
from backbones import build, official_names
from processes import ROOT, call, free_port, run
from scenes import make_scenes

from xcit_mm.datasets.digits import CLASSES

DIGITS = ROOT / 'configs' / 'mask_rcnn_xcit_n12_8_digits.py'


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """A small set of digits in COCO format: 8 training and 4 validation images."""
    return make_scenes(tmp_path_factory.mktemp('data'), train=8, val=4, size=96) / 'coco'


def small_options(data, **more):
    """The digits config cut down to a few iterations."""
    options = {
        'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'train_cfg.max_epochs': 2,
        'train_cfg.val_interval': 10,
        **more,
    }
    return ['--data-root', data, '--cfg-options', *(f'{k}={v}' for k, v in options.items())]


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']


@pytest.fixture(scope='session')
def trained(data, tmp_path_factory):
    """Two epochs without interruption; also the checkpoint that the tests of testing use."""
    folder = tmp_path_factory.mktemp('trained')
    output = run('train.py', DIGITS, '--work-dir', folder / 'run', '--tensorboard', *small_options(data), cwd=folder)
    return folder / 'run', output


def test_training_reports_progress_and_leaves_checkpoint_and_scalars(trained):
    folder, output = trained
    assert (folder / 'epoch_2.pth').is_file()
    assert 'eta' in ''.join(p.read_text() for p in folder.rglob('*.log')) or 'Epoch(train)' in output
    assert list(folder.rglob('events.out.tfevents*'))


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(trained, data, tmp_path):
    folder, _ = trained
    options = small_options(data)
    run('train.py', DIGITS, '--work-dir', tmp_path / 'run', *options, 'train_cfg.max_epochs=1', cwd=tmp_path)
    assert not (tmp_path / 'run' / 'epoch_2.pth').exists()
    output = run('train.py', DIGITS, '--work-dir', tmp_path / 'run', '--resume', *options, cwd=tmp_path)
    assert 'resumed epoch: 1' in output
    uninterrupted, resumed = weights(folder / 'epoch_2.pth'), weights(tmp_path / 'run' / 'epoch_2.pth')
    assert uninterrupted.keys() == resumed.keys()
    for key, value in uninterrupted.items():
        assert torch.equal(value, resumed[key]), key


def test_testing_gives_coco_metrics_predictions_and_pictures(trained, data, tmp_path):
    folder, _ = trained
    arguments = [DIGITS, folder / 'epoch_2.pth', '--work-dir', tmp_path / 'w', *small_options(data)]
    output = run('test.py', *arguments, '--out', tmp_path / 'out.pkl', '--show-dir', 'pictures', cwd=tmp_path)
    assert f'4 pictures are in {tmp_path / "pictures"}' in output
    assert 'coco/bbox_mAP' in output and 'coco/segm_mAP' in output
    (scores,) = [p for p in (tmp_path / 'w').glob('*/*.json') if 'coco/bbox_mAP' in p.read_text()]
    assert 0 <= json.loads(scores.read_text().splitlines()[-1])['coco/bbox_mAP'] <= 1
    with open(tmp_path / 'out.pkl', 'rb') as file:
        predictions = pickle.load(file)
    assert len(predictions) == 4 and {'bboxes', 'masks', 'labels'} <= predictions[0]['pred_instances'].keys()
    pictures = list((tmp_path / 'pictures').glob('*'))
    assert len(pictures) == 4
    from PIL import Image

    width, height = Image.open(pictures[0]).size
    assert width == 2 * height  # ground truth and prediction, side by side


def test_a_detector_in_the_published_layout_gives_the_same_predictions(trained, data, tmp_path):
    """As the original release's COCO files: its own names in the backbone, MMDetection's elsewhere."""
    folder, _ = trained
    state = weights(folder / 'epoch_2.pth')
    backbone = {k[len('backbone.') :]: v for k, v in state.items() if k.startswith('backbone.')}
    others = {k: v for k, v in state.items() if not k.startswith('backbone.')}
    published = {**{f'backbone.{k}': v for k, v in official_names(backbone).items()}, **others}
    assert 'backbone.fpn1.0.weight' in published and 'backbone.pos_embeder.token_projection.weight' in published
    torch.save({'meta': {'epoch': 36}, 'state_dict': published}, tmp_path / 'published.pth')
    predictions = []
    for path in (folder / 'epoch_2.pth', tmp_path / 'published.pth'):
        out = tmp_path / f'{path.stem}.pkl'
        run('test.py', DIGITS, path, '--out', out, '--work-dir', tmp_path / 'w', *small_options(data), cwd=tmp_path)
        with open(out, 'rb') as file:
            predictions.append([image['pred_instances'] for image in pickle.load(file)])
    for ours, theirs in zip(*predictions):
        assert torch.equal(ours['scores'], theirs['scores']) and torch.equal(ours['bboxes'], theirs['bboxes'])


def test_augmented_testing_of_masks_is_refused_since_mmdet_has_none(trained, data, tmp_path):
    folder, _ = trained
    arguments = [DIGITS, folder / 'epoch_2.pth', '--tta', '--work-dir', tmp_path / 'w', *small_options(data)]
    output = run('test.py', *arguments, cwd=tmp_path, ok=False)
    assert 'Traceback' not in output and 'no test-time augmentation for instance masks' in output


@pytest.mark.slow
def test_two_processes_train_a_sync_bn_config_on_the_cpu(data, tmp_path):
    options = small_options(
        data, **{'train_dataloader.batch_size': 2, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1}
    )
    output = run('train.py', DIGITS, '--work-dir', tmp_path / 'run', *options, cwd=tmp_path, launcher=2)
    assert 'coco/bbox_mAP' in output
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


def test_the_published_s12_8_config_trains_and_tests_an_iteration(data, tmp_path):
    """From a file in the layout of the original release, on a COCO folder; only classes and image size differ."""
    start = official_names(build(arch='s12', patch_size=8).state_dict())
    torch.save(
        {'model': {**start, 'head.weight': torch.zeros(1000, 384), 'head.bias': torch.zeros(1000)}},
        tmp_path / 's12.pth',
    )
    scale = 'scale=(128, 128), keep_ratio=True'
    (tmp_path / 'own.py').write_text(f"""
_base_ = {str(ROOT / 'configs' / 'mask_rcnn_xcit_s12_8_3x_coco.py')!r}
model = dict(
    backbone=dict(init_cfg=dict(checkpoint={str(tmp_path / 's12.pth')!r})),
    roi_head=dict(bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10)))
metainfo = dict(classes={CLASSES!r})
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', {scale})]
meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    metainfo=metainfo, indices=2, pipeline=[*load, dict(type='PackDetInputs')]))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    metainfo=metainfo, indices=1, pipeline=[*load, dict(type='PackDetInputs', meta_keys=meta)]))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_optimizer=False))
""")
    output = run('train.py', 'own.py', '--data-root', data, cwd=tmp_path)
    assert 'training on the CPU in fp32' in output
    assert 'Epoch(train)' in output and 'loss_mask' in output and 'nan' not in output.split('loss_mask')[1][:40]
    checkpoint = tmp_path / 'work_dirs' / 'own' / 'epoch_1.pth'
    assert 'coco/segm_mAP' in run('test.py', 'own.py', checkpoint, '--data-root', data, cwd=tmp_path)
    checkpoint.unlink()


def segmentor_options(data, batch_size=4):
    """A digits config for segmentation cut down to two iterations."""
    loaders = {
        f'{split}_dataloader.{key}': value
        for split in ('train', 'val', 'test')
        for key, value in (('num_workers', 0), ('persistent_workers', False), ('batch_size', batch_size))
    }
    options = {**loaders, 'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'default_hooks.checkpoint.interval': 2}
    return ['--data-root', data.parent / 'ade', '--cfg-options', *(f'{k}={v}' for k, v in options.items())]


@pytest.mark.parametrize('method', [pytest.param('sem_fpn', marks=pytest.mark.slow), 'upernet'])
def test_a_segmentor_trains_and_tests(method, data, tmp_path):
    """MMSegmentation through the same tools, on the maps of the same pictures."""
    config = ROOT / 'configs' / f'{method}_xcit_n6_8_digits.py'
    arguments = segmentor_options(data)
    assert 'mIoU' in run('train.py', config, '--work-dir', tmp_path / 'run', *arguments, cwd=tmp_path)
    test = [config, tmp_path / 'run' / 'iter_2.pth', '--work-dir', tmp_path / 'test']
    assert 'mIoU' in run('test.py', *test, '--show-dir', tmp_path / 'pictures', *arguments, cwd=tmp_path)
    assert len(list((tmp_path / 'pictures').iterdir())) == 4
    single = ['test_dataloader.dataset.indices=1', 'test_dataloader.batch_size=1']
    assert 'mIoU' in run('test.py', *test, *arguments, *single, '--tta', cwd=tmp_path)


@pytest.mark.slow
def test_a_segmentor_in_two_processes(data, tmp_path):
    config = ROOT / 'configs' / 'sem_fpn_xcit_n6_8_digits.py'
    arguments = segmentor_options(data, batch_size=2)
    assert 'mIoU' in run('train.py', config, '--work-dir', tmp_path / 'run', *arguments, cwd=tmp_path, launcher=2)
    test = [config, tmp_path / 'run' / 'iter_2.pth', '--work-dir', tmp_path / 'test', *arguments]
    assert 'mIoU' in run('test.py', *test, cwd=tmp_path, launcher=2)


def test_a_config_name_with_a_typo(tmp_path):
    output = run('train.py', 'configs/mask_rcnn_xcit_s12_8_3x_cocoo.py', cwd=ROOT, ok=False)
    assert 'Traceback' not in output
    assert 'did you mean configs/mask_rcnn_xcit_s12_8_3x_coco.py' in output


def test_missing_data_is_explained_before_any_work(tmp_path):
    config = ROOT / 'configs' / 'mask_rcnn_xcit_s12_8_3x_coco.py'
    for arguments in (['train.py', config], ['test.py', config, DIGITS]):
        output = run(*arguments, cwd=tmp_path, ok=False)
        assert 'Traceback' not in output
        for words in ('data/coco/annotations/instances_', 'cocodataset.org', '--data-root', 'ln -s'):
            assert words in output
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_arch_is_refused_before_any_work(trained, data, tmp_path):
    folder, _ = trained
    options = [*small_options(data), 'model.backbone.arch=t12', 'model.neck.in_channels=[192,192,192,192]']
    output = run('test.py', DIGITS, folder / 'epoch_2.pth', *options, cwd=tmp_path, ok=False)
    assert 'Traceback' not in output
    assert 'embed_dims=128' in output and 'embed_dims=192' in output and 'epoch_2.pth' in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'option, words',
    [
        ('model.backbone.patch_size=12', 'patch_size must be 4, 8 or 16'),
        ('model.backbone.arch=n13', "unknown arch 'n13'"),
        ('model.backbone.init_cfg.checkpoint=gone.pth', 'no checkpoint file gone.pth'),
    ],
)
def test_wrong_backbone_options_are_explained_before_any_work(option, words, data, tmp_path):
    config = ROOT / 'configs' / 'mask_rcnn_xcit_t12_8_3x_coco.py'
    output = run('train.py', config, '--data-root', data, '--cfg-options', option, cwd=tmp_path, ok=False)
    assert 'Traceback' not in output and words in output
    assert not list(tmp_path.iterdir())


def test_an_unwritable_work_dir_is_explained(data, tmp_path):
    (tmp_path / 'file').write_text('a file where a folder is asked for')
    output = run(
        'train.py', DIGITS, '--work-dir', tmp_path / 'file' / 'run', *small_options(data), cwd=tmp_path, ok=False
    )
    assert 'Traceback' not in output and '--work-dir' in output and 'cannot be written' in output


def test_resuming_from_nothing_is_explained(data, tmp_path):
    output = run('train.py', DIGITS, '--resume', 'gone.pth', *small_options(data), cwd=tmp_path, ok=False)
    assert 'Traceback' not in output and 'gone.pth' in output


def test_scripts_explain_their_arguments():
    for name in ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'):
        done = call(['bash', ROOT / 'tools' / name])
        assert done.returncode == 2 and name in done.stderr


def test_dist_train_starts_torchrun(tmp_path):
    """With a stand-in for Python that writes down its arguments."""
    (tmp_path / 'python').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    env = dict(os.environ, PYTHON=str(tmp_path / 'python'), PORT='1234')
    done = call(['bash', ROOT / 'tools' / 'dist_train.sh', 'cfg.py', '3', '--work-dir', 'a folder'], env=env)
    words = done.stdout.splitlines()
    assert words[:2] == ['-m', 'torch.distributed.run']
    for option, value in (('--nproc_per_node', '3'), ('--nnodes', '1'), ('--master_port', '1234')):
        assert words[words.index(option) + 1] == value
    config = words.index('cfg.py')
    assert words[config - 1].endswith('tools/train.py')
    assert words[config + 1 :] == ['--work-dir', 'a folder', '--launcher', 'pytorch']


@pytest.mark.slow
def test_dist_train_trains(data, tmp_path):
    """The shell script, as a user calls it."""
    options = small_options(data, **{'train_cfg.max_epochs': 1})
    env = dict(os.environ, PYTHON=sys.executable, PORT=free_port())
    command = ['bash', ROOT / 'tools' / 'dist_train.sh', DIGITS, '1', '--work-dir', tmp_path / 'run', *options]
    done = call(command, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


def test_slurm_train_asks_srun_for_what_the_environment_says(tmp_path):
    """With a stand-in for srun that writes down its arguments: there is no SLURM here."""
    (tmp_path / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    env = dict(
        os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='4', CPUS_PER_TASK='3', SRUN_ARGS='--time 5 --qos x'
    )
    command = ['bash', ROOT / 'tools' / 'slurm_train.sh', 'part', 'job', 'cfg.py', 'work', '--resume']
    words = call(command, env=env).stdout.split('\n')
    for option, value in (
        ('--partition', 'part'),
        ('--ntasks', '4'),
        ('--gres', 'gpu:4'),
        ('--qos', 'x'),
        ('--launcher', 'slurm'),
    ):
        assert words[words.index(option) + 1] == value
    assert words[words.index('cfg.py') - 1].endswith('tools/train.py') and '--resume' in words
