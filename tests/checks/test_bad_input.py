"""Bad input: checkpoints of other models, incomplete data sets, images that cannot be read."""

import logging
import shutil

import cv2
import numpy as np
import pytest
import torch
from backbones import build, official_names
from mmengine.config import Config
from mmengine.dataset import RepeatDataset
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image
from processes import ROOT, run
from scenes import make_scenes
from torch import nn

from xcit_mm.checkpoint import CheckpointError
from xcit_mm.checkpoint.fit import fit_state_dict
from xcit_mm.checks.data import check_data
from xcit_mm.datasets.digits import FOLDERS
from xcit_mm.datasets.loading import BadImage, BadImageReport, LoadImageFromFile, read_image
from xcit_mm.engine.setup import build_runner, check_model
from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.resilience.bad_images import check_images, guard_built

CONFIGS = ROOT / 'configs'
TINY = dict(embed_dims=32, depth=6, num_heads=2)  # as deep as the small segmentors
DETECTOR = 'mask_rcnn_xcit_n12_8_digits'
SEGMENTOR = 'sem_fpn_xcit_n6_8_digits'
HEADS = ('model.roi_head.bbox_head.num_classes', 'model.roi_head.mask_head.num_classes')
PER_CLASS = {'model.roi_head.bbox_head.reg_class_agnostic': False, 'model.roi_head.mask_head.class_agnostic': False}


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """Six training and two validation scenes as COCO and as ADE20K."""
    return make_scenes(tmp_path_factory.mktemp('digits'), train=6, val=2, size=64)


@pytest.fixture
def log():
    """What the run writes into its log."""
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record)

    handler = Keep()
    original = MMLogger.callHandlers

    def call_handlers(self, record):
        handler.emit(record)
        original(self, record)

    MMLogger.callHandlers = call_handlers
    yield lambda: [r.getMessage() for r in records if r.levelno >= logging.WARNING]
    MMLogger.callHandlers = original


def one_line(error):
    return '\n' not in str(error.value)


# Heads.


def make_tiny(cfg):
    cfg.model.backbone.arch = TINY
    cfg.model.neck.in_channels = [32] * 4


def model_of(config, **options):
    cfg = Config.fromfile(CONFIGS / f'{config}.py')
    make_tiny(cfg)
    cfg.merge_from_dict(options)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def detector(num_classes):
    return model_of(DETECTOR, **PER_CLASS, **dict.fromkeys(HEADS, num_classes))


def segmentor(num_classes):
    head = dict(type='FCNHead', in_channels=32, in_index=2, channels=8, num_convs=1, num_classes=num_classes)
    return model_of(
        SEGMENTOR,
        **{'model.decode_head.num_classes': num_classes, 'model.auxiliary_head': dict(head, in_channels=96)},
    )


def classifier_cfg(num_classes=10):
    head = dict(type='LinearClsHead', num_classes=num_classes, in_channels=32)
    backbone = dict(type='xcit_mm.XCiT', arch=TINY, patch_size=16, out_type='cls_token')
    return dict(type='ImageClassifier', backbone=backbone, head=head, data_preprocessor=dict(num_classes=num_classes))


def classifier(num_classes):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(classifier_cfg(num_classes))


HEAD_LAYERS = [
    (detector, ['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg', 'roi_head.mask_head.conv_logits']),
    (segmentor, ['decode_head.conv_seg', 'auxiliary_head.conv_seg']),
    (classifier, ['head.fc']),
]
NAMES = ['detector', 'segmentor', 'classifier']


@pytest.mark.parametrize('kind, layers', HEAD_LAYERS, ids=NAMES)
def test_fine_tuning_keeps_the_start_values_of_heads_for_other_classes_and_loads_the_rest(kind, layers):
    source, model = kind(80), kind(10)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    state = source.state_dict()
    found = fit_state_dict(model, state, 'train')
    assert '80 classes' in found and 'the config has 10' in found and all(layer in found for layer in layers)
    model.load_state_dict(state)  # strict: nothing is left over or lacking
    for name, value in model.state_dict().items():
        expected = start[name] if name.startswith(tuple(layers)) else source.state_dict()[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize('purpose, advice', [('test', 'num_classes=80'), ('resume', 'load_from')])
@pytest.mark.parametrize('kind, layers', HEAD_LAYERS, ids=NAMES)
def test_testing_and_resuming_refuse_heads_for_other_classes(kind, layers, purpose, advice):
    model = kind(10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        fit_state_dict(model, kind(80).state_dict(), purpose)
    for words in ('trained for 80 classes', 'the config has 10', advice, layers[0]):
        assert words in str(error.value)
    assert one_line(error)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_class_more_for_the_background_is_counted_right():
    with pytest.raises(CheckpointError, match='trained for 7 classes, and the config has 1 '):
        fit_state_dict(detector(1), detector(7).state_dict(), 'test')


def test_a_backbone_alone_starts_a_detector_and_is_not_tested():
    model, state = detector(10), classifier(1000).state_dict()
    model.backbone.patch_embed = classifier(10).backbone.patch_embed  # of patch 16, as the file
    with pytest.raises(CheckpointError, match='not in the file .*neck, rpn_head, roi_head.*random weights'):
        fit_state_dict(model, dict(state), 'test')
    found = fit_state_dict(model, state, 'train')
    assert 'neck, rpn_head, roi_head' in found and 'not in the model (2 tensors): head' in found


def test_a_segmentor_is_tested_without_its_auxiliary_head():
    state = {k: v for k, v in segmentor(10).state_dict().items() if not k.startswith('auxiliary_head')}
    assert 'auxiliary_head' in fit_state_dict(segmentor(10), dict(state), 'test')
    with pytest.raises(CheckpointError, match='auxiliary_head'):
        fit_state_dict(segmentor(10), state, 'resume')


def test_wrapped_models_and_their_checkpoints_are_compared_too():
    from mmpretrain.models import AverageClsScoreTTA

    augmented = nn.DataParallel(AverageClsScoreTTA(module=classifier(10)))
    state = {f'module.{name}': value for name, value in classifier(10).state_dict().items()}
    assert fit_state_dict(augmented, state, 'test') is None
    with pytest.raises(CheckpointError, match='trained for 80 classes'):
        fit_state_dict(augmented, classifier(80).state_dict(), 'test')


def test_a_file_of_which_nothing_fits_starts_nothing():
    resnet = {'layer1.0.conv1.weight': torch.zeros(4, 4, 1, 1), 'fc.weight': torch.zeros(1000, 4)}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='ImageClassifier', backbone=dict(type='LeNet5'), head=dict(type='ClsHead')))
    with pytest.raises(CheckpointError, match='none of its tensors fits'):
        fit_state_dict(model, resnet, 'train')


# Heads, in a runner.


def about_loading(lines):
    """Ours, and what MMEngine says of tensors that do not fit."""
    words = ('classes', 'not in the', 'everything else', 'size mismatch', 'missing keys', 'unexpected key')
    return [line for line in lines if any(word in line for word in words)]


def write_images(folder, number=4, size=32):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(number):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f'{i}.jpg')


def classification_cfg(tmp_path, num_classes=2, workers=0, **more):
    """Training of a tiny classifier on folders of random images, made here unless they are there."""
    for name in map(str, range(num_classes)):
        if not (tmp_path / 'images' / name).exists():
            write_images(tmp_path / 'images' / name)
    dataset = dict(
        type='CustomDataset',
        data_root=str(tmp_path / 'images'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')],
        serialize_data=False,  # it collects garbage, which takes longer than all else here
    )
    loader = dict(batch_size=2, num_workers=workers, sampler=dict(type='DefaultSampler'), dataset=dataset)
    test = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(dataset, test_mode=True))
    evaluator = dict(type='Accuracy')
    settings = dict(
        default_scope='mmpretrain',
        work_dir=str(tmp_path / 'run'),
        model=classifier_cfg(num_classes),
        train_dataloader=loader,
        val_dataloader=test,
        test_dataloader=test,
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        val_cfg=dict(),
        test_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        log_level='WARNING',
        launcher='none',
    )
    return Config({**settings, **more})


@pytest.mark.parametrize('averaged', [False, True])
def test_a_runner_warns_once_and_trains(averaged, tmp_path, log):
    source = classifier(80)
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'source.pth')
    hooks = [dict(type='EMAHook')] if averaged else []
    cfg = classification_cfg(tmp_path, load_from=str(tmp_path / 'source.pth'), custom_hooks=hooks)
    runner = build_runner(cfg)
    runner.train()
    (warning,) = about_loading(log())
    assert 'source.pth' in warning and 'trained for 80 classes, and the config has 2 (head.fc)' in warning
    assert torch.equal(runner.model.backbone.cls_token, source.backbone.cls_token)


@pytest.mark.parametrize('action', ['test', 'val', 'train'])
def test_a_runner_refuses_to_test_and_to_resume(action, tmp_path):
    torch.save({'state_dict': classifier(80).state_dict(), 'meta': {}}, tmp_path / 'source.pth')
    cfg = classification_cfg(tmp_path, load_from=str(tmp_path / 'source.pth'), resume=action == 'train')
    with pytest.raises(CheckpointError, match=r'source\.pth.*trained for 80 classes'):
        getattr(build_runner(cfg), action)()


def test_a_checkpoint_of_the_same_model_passes_without_a_word(tmp_path, log):
    cfg = classification_cfg(tmp_path, custom_hooks=[dict(type='EMAHook')])
    build_runner(cfg).train()
    build_runner(Config({**cfg, 'resume': True, 'train_cfg': dict(by_epoch=True, max_epochs=2)})).train()
    build_runner(Config({**cfg, 'load_from': str(tmp_path / 'run' / 'epoch_2.pth')})).test()
    assert not about_loading(log())


# A checkpoint for patch 8 given to a patch-16 model.


@pytest.fixture
def patch_8(tmp_path):
    state = official_names(build(arch=TINY, patch_size=8).state_dict())
    torch.save({'model': {**state, 'head.weight': torch.zeros(2, 32)}}, tmp_path / 'p8.pth')
    return str(tmp_path / 'p8.pth')


def test_patch_8_for_patch_16_is_refused_as_start_of_a_backbone(patch_8):
    model = build(arch=TINY, patch_size=16, init_cfg=dict(type='Pretrained', checkpoint=patch_8))
    with pytest.raises(CheckpointError, match=r'p8\.pth.*holds .*patch_size=8; the model has .*patch_size=16'):
        model.init_weights()


@pytest.mark.parametrize('purpose', ['train', 'resume', 'test'])
def test_patch_8_for_patch_16_is_refused_before_any_work(purpose, patch_8, tmp_path):
    with pytest.raises(CheckpointError, match=r'p8\.pth.*holds .*patch_size=8; the model has .*patch_size=16'):
        check_model(classification_cfg(tmp_path), patch_8, purpose)


def test_patch_8_for_patch_16_is_refused_by_a_runner(patch_8, tmp_path):
    with pytest.raises(CheckpointError, match=r'p8\.pth.*holds .*patch_size=8; the model has .*patch_size=16'):
        Runner.from_cfg(classification_cfg(tmp_path, load_from=patch_8)).train()


def test_a_head_for_other_classes_is_refused_before_any_work(tmp_path):
    torch.save({'state_dict': classifier(80).state_dict()}, tmp_path / 'source.pth')
    cfg = classification_cfg(tmp_path)
    for purpose in ('test', 'resume'):
        with pytest.raises(CheckpointError, match='trained for 80 classes, and the config has 2'):
            check_model(cfg, str(tmp_path / 'source.pth'), purpose)
    check_model(cfg, str(tmp_path / 'source.pth'), 'train')


# Folders.


def refused(cfg, *splits):
    with pytest.raises(UsageError) as error:
        check_data(cfg, splits)
    assert one_line(error)
    return str(error.value)


def published(name, root):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(root)
    return cfg


@pytest.fixture
def ade(tmp_path):
    for split in ('training', 'validation'):
        for kind, suffix in (('images', '.jpg'), ('annotations', '.png')):
            folder = tmp_path / kind / split
            folder.mkdir(parents=True)
            for i in range(3):
                (folder / f'ADE_{i}{suffix}').touch()
    return published('sem_fpn_xcit_s12_8_80k_ade20k', tmp_path), tmp_path


def test_a_part_of_ade20k_with_all_its_maps_is_noted(ade, capsys):
    cfg, root = ade
    check_data(cfg, ('train', 'val'))
    assert f'{root}/images/training has 3 images; in the whole ADE20K it has 20210' in capsys.readouterr().out


def test_missing_maps_and_missing_images_are_counted_and_named(ade):
    cfg, root = ade
    (root / 'annotations' / 'training' / 'ADE_1.png').unlink()
    (root / 'images' / 'training' / 'ADE_2.jpg').unlink()
    message = refused(cfg, 'train')
    for words in ('2 images and 2 maps', 'images without a map: 1 (ADE_1)', 'missing images: 1 (ADE_2)', '20,210'):
        assert words in message
    check_data(cfg, ('val',))  # the other split is whole
    # A list says which images are meant, and then only those need their maps.
    (root / 'some.txt').write_text('ADE_0\n')
    cfg.train_dataloader.dataset.ann_file = 'some.txt'
    check_data(cfg, ('train',))


def test_a_folder_without_images(ade):
    cfg, root = ade
    for path in (root / 'images' / 'validation').iterdir():
        path.unlink()
    assert f'no image (*.jpg) in {root}/images/validation' in refused(cfg, 'test')


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet of ten classes with an image each, and its config."""
    for split in ('train', 'val'):
        for name in FOLDERS:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / 'x.JPEG').touch()
    cfg = published('xcit_n12_8_digits', tmp_path)
    check_data(cfg, ('train', 'val'))
    return cfg, tmp_path


def test_missing_folders_of_classes_are_counted_and_named(imagenet):
    cfg, root = imagenet
    shutil.rmtree(root / 'val' / FOLDERS[3])
    message = refused(cfg, 'train', 'val')
    for words in (f'{root}/val has 9 folders', '10 classes', f'present in {root}/train: {FOLDERS[3]}', '--data-root'):
        assert words in message
    (root / 'val' / '3_drei').mkdir()
    assert f'Only in {root}/train: {FOLDERS[3]}; only in {root}/val: 3_drei' in refused(cfg, 'train', 'val')


def test_folders_of_classes_without_images(imagenet):
    cfg, root = imagenet
    (root / 'train' / FOLDERS[0] / 'x.JPEG').unlink()
    assert f'1 of 10 folders of classes in {root}/train have no image ({FOLDERS[0]})' in refused(cfg, 'train')


def test_validation_images_that_are_not_sorted(imagenet):
    cfg, root = imagenet
    shutil.rmtree(root / 'val')
    (root / 'val').mkdir()
    for i in range(5):
        (root / 'val' / f'ILSVRC2012_val_{i}.JPEG').touch()
    message = refused(cfg, 'val')
    for words in ('5 images lie side by side', 'valprep.sh', f'{root}/meta/val.txt'):
        assert words in message
    (root / 'meta').mkdir()
    (root / 'meta' / 'val.txt').write_text('ILSVRC2012_val_0.JPEG 3\n')
    check_data(cfg, ('val',))


def test_archives_that_are_not_unpacked(imagenet):
    cfg, root = imagenet
    shutil.rmtree(root / 'train')
    (root / 'train').mkdir()
    (root / 'train' / 'n01440764.tar').touch()
    message = refused(cfg, 'train')
    assert '1 archives (n01440764.tar)' in message and 'tar xf' in message


def test_folders_of_classes_one_level_too_deep(imagenet):
    cfg, root = imagenet
    (root / 'train').rename(root / 'all')
    (root / 'train').mkdir()
    (root / 'all').rename(root / 'train' / 'train')
    assert f'10 folders lie one level deeper, in {root}/train/train' in refused(cfg, 'train')


def test_a_missing_split(imagenet):
    cfg, root = imagenet
    shutil.rmtree(root / 'val')
    assert f'Missing: {root}/val' in refused(cfg, 'val')


def test_a_head_with_another_number_of_classes_than_the_data(imagenet):
    cfg, _ = imagenet
    cfg.model.head.num_classes = 1000
    assert 'has 10 classes, and model.head.num_classes is 1000' in refused(cfg, 'train')


@pytest.mark.parametrize('content', ['', '<!DOCTYPE html>', '{"images": [{"file_name": "000'])
def test_annotations_that_are_no_whole_file(content, data):
    path = data / 'coco' / 'annotations' / 'instances_train2017.json'
    path.write_text(content)
    message = refused(published(DETECTOR, data / 'coco'), 'train', 'val')
    assert str(path) in message and f'{len(content)} bytes' in message


def test_images_that_are_not_those_of_the_annotations(data):
    for path in (data / 'coco' / 'train2017').iterdir():
        path.unlink()
    message = refused(published(DETECTOR, data / 'coco'), 'train')
    assert 'none of the first 6 images' in message and 'It holds nothing' in message


def test_data_sets_of_other_kinds_are_left_alone(tmp_path):
    cfg = classification_cfg(tmp_path)
    for kind in ('CIFAR10', 'nobody.KnowsThis', 'KnownToNobody'):
        cfg.test_dataloader.dataset.type = kind
        check_data(cfg, ('test',))


# Images.


def jpeg(size=(40, 60)):
    return cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))[1].tobytes()


def png(size=(40, 60)):
    return cv2.imencode('.png', np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'', 'empty'),
        (b'<!DOCTYPE html><html></html>', 'DOCTYPE'),
        (jpeg()[:-2], 'cut off'),
        (jpeg()[:-200], 'cut off'),
        (jpeg()[: len(jpeg()) // 2], 'cut off'),
        (png()[: len(png()) // 2], 'cut off'),
        (png()[:-200], 'cut off'),
    ],
    ids=['empty', 'web page', 'jpeg -2', 'jpeg -200', 'half a jpeg', 'half a png', 'png -200'],
)
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_what_is_no_whole_image_is_noticed(content, reason, backend, tmp_path):
    (tmp_path / 'image').write_bytes(content)
    with pytest.raises(BadImage, match=reason):
        read_image(str(tmp_path / 'image'), backend=backend)


@pytest.mark.parametrize('content', [jpeg(), png(), jpeg() + bytes(10000), png() + bytes(100)])
def test_whole_images_are_read_also_with_more_behind_them(content, tmp_path):
    (tmp_path / 'image').write_bytes(content)
    assert read_image(str(tmp_path / 'image')).shape == (40, 60, 3)


def test_half_a_jpeg_is_noticed_with_a_decoder_that_says_nothing(tmp_path, monkeypatch):
    """As OpenCV did for many versions."""
    monkeypatch.setattr('mmcv.imfrombytes', lambda *_, **__: np.zeros((40, 60, 3), np.uint8))
    (tmp_path / 'image').write_bytes(jpeg()[:-200])
    with pytest.raises(BadImage, match='cut off'):
        read_image(str(tmp_path / 'image'))


@pytest.mark.parametrize('known', ['annotation', 'map', 'header', 'nothing'])
def test_a_grey_image_has_the_size_of_the_one_it_stands_for(known, tmp_path):
    (tmp_path / 'image.jpg').write_bytes(jpeg()[: len(jpeg()) // 2 if known == 'header' else 0])
    (tmp_path / 'map.png').write_bytes(png((50, 70)))
    results = dict(img_path=str(tmp_path / 'image.jpg'))
    if known == 'annotation':
        results.update(height=30, width=20)
    if known == 'map':
        results['seg_map_path'] = str(tmp_path / 'map.png')
    found = LoadImageFromFile(bad_image='blank')(results)
    shape = {'annotation': (30, 20), 'map': (50, 70), 'header': (40, 60), 'nothing': (224, 224)}[known]
    assert found['img'].shape == (*shape, 3) and found['ori_shape'] == found['img_shape'] == shape
    assert (found['img'] == 128).all() and found['img'].dtype == np.uint8


def test_good_images_are_read_as_mmcv_reads_them(tmp_path):
    import mmcv.transforms

    (tmp_path / 'image.jpg').write_bytes(jpeg())
    for options in (dict(), dict(to_float32=True), dict(color_type='grayscale'), dict(imdecode_backend='pillow')):
        ours, theirs = (
            load(**options)(dict(img_path=str(tmp_path / 'image.jpg')))
            for load in (LoadImageFromFile, mmcv.transforms.LoadImageFromFile)
        )
        assert np.array_equal(ours.pop('img'), theirs['img']) and ours['img_shape'] == theirs['img_shape']


def test_an_unknown_treatment_is_named():
    with pytest.raises(ValueError, match="'resample' or 'blank', got 'ignore'"):
        LoadImageFromFile(bad_image='ignore')


def damage(folder, *numbers):
    """Cut off the files of these numbers."""
    paths = sorted(folder.iterdir())
    for number in numbers:
        paths[number].write_bytes(paths[number].read_bytes()[:100])
    return [str(paths[number]) for number in numbers]


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('config, images', [(DETECTOR, 'coco/train2017'), (SEGMENTOR, 'ade/images/training')])
def test_training_draws_another_image(config, images, wrapped, data):
    damage(data / images, 0, 2, 3)
    cfg = published(config, data / images.split('/')[0])
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    dataset = RepeatDataset(dataset, 2) if wrapped else dataset
    guard_built(dataset, str(data / 'bad_images.txt'))  # as the hook of the config does before training
    assert len(dataset) == (12 if wrapped else 6)
    drawn = {dataset[i]['data_samples'].img_path for i in range(len(dataset))}
    assert drawn == {str(path) for i, path in enumerate(sorted((data / images).iterdir())) if i in (1, 4, 5)}


def test_training_draws_another_image_for_a_bad_map(data):
    damage(data / 'ade' / 'annotations' / 'training', 1)
    cfg = published(SEGMENTOR, data / 'ade')
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        assert not dataset[1]['data_samples'].img_path.endswith('2.jpg')
        # A mistake of another kind is not taken for a bad map.
        dataset.pipeline.transforms[1].load.reduce_zero_label = False
        with pytest.raises(AssertionError, match='reduce_zero_label'):
            dataset[0]


@pytest.mark.parametrize('workers', [0, 2])
def test_bad_images_are_named_once_and_counted(workers, tmp_path, log):
    """Trained for two epochs and tested; the config names no transform of ours."""
    cfg = classification_cfg(tmp_path, workers=workers)
    (bad,) = damage(tmp_path / 'images' / '1', 3)
    (tmp_path / 'images' / '0' / '1.jpg').write_bytes(b'')
    cfg.train_cfg.max_epochs = 2
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    runner = build_runner(cfg)
    runner.train()
    named = [line for line in log() if line.startswith('bad image ')]
    assert len(named) == 2 and all('another image is drawn' in line for line in named)
    assert any(bad in line and 'cut off' in line for line in named)
    assert any('0/1.jpg: the file is empty' in line for line in named)
    (count,) = [line for line in log() if line.startswith('bad images so far: 2 (another image is drawn: 2)')]
    (listed,) = (tmp_path / 'run').glob('*/bad_images.txt')
    assert str(listed) in count and len(listed.read_text().splitlines()) == 2

    cfg.work_dir = str(tmp_path / 'test')
    assert build_runner(cfg).test()['accuracy/top1'] >= 0
    assert 'bad images so far: 2 (a grey image takes its place and counts as wrong: 2)' in log()[-1]
    # The configuration that is kept beside the log is the user's own.
    (kept,) = (tmp_path / 'test').glob('*.py')
    assert 'xcit_mm.Load' not in kept.read_text()


def test_a_run_that_never_ends_keeps_no_list_for_others(tmp_path, log):
    """In a notebook, say, where a training was broken off."""
    build_runner(classification_cfg(tmp_path)).call_hook('before_run')
    (bad,) = damage(tmp_path / 'images' / '1', 3)
    assert LoadImageFromFile()(dict(img_path=bad)) is None
    assert any(line.startswith(f'bad image {bad}: ') for line in log())


def test_a_grey_image_gets_no_detections_and_a_bad_map_no_score(data, log, tmp_path):
    (image,) = damage(data / 'ade' / 'images' / 'validation', 0)
    (bad_map,) = damage(data / 'ade' / 'annotations' / 'validation', 1)
    cfg = published(SEGMENTOR, data / 'ade')
    make_tiny(cfg)
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.update(work_dir=str(tmp_path / 'run'), log_level='WARNING', launcher='none')
    metrics = build_runner(cfg).test()
    assert metrics['mIoU'] < 50
    assert [line.split(':')[0] for line in log() if line.startswith('bad image ')] == [
        f'bad image {image}',
        f'bad image {bad_map}',
    ]


def test_processes_write_one_list_together(tmp_path):
    from multiprocessing import get_context

    path = str(tmp_path / 'bad_images.txt')
    with get_context('fork').Pool(4) as pool:
        pool.map(add_some, [(path, start) for start in range(0, 200, 10)])
    lines = (tmp_path / 'bad_images.txt').read_text().splitlines()
    assert sorted(int(line.split('\t')[0]) for line in lines) == list(range(200))
    assert len(BadImageReport(path).update()) == 200


def add_some(job):
    from xcit_mm.datasets.loading import BadFile

    path, start = job
    report = BadImageReport(path)
    for number in range(start, start + 10):
        report.add(BadFile(str(number), 'a reason\nin two lines', 'a\tconsequence'))
        report.add(BadFile(str(number), 'again', 'again'))


@pytest.mark.parametrize('workers', [0, 1])
def test_a_data_set_without_one_good_image_ends_with_one_message(workers, tmp_path, capsys):
    cfg = classification_cfg(tmp_path, workers=workers)
    for folder in (tmp_path / 'images').iterdir():
        damage(folder, *range(4))
    with pytest.raises(SystemExit), clear_errors():
        build_runner(cfg).train()
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith('error: none of the last 200 images could be read, the latest being ')
    assert 'cut off' in message and '--data-root' not in message


def test_all_images_and_maps_are_read_before_anything_begins(data, tmp_path):
    cfg = published(SEGMENTOR, data / 'ade')
    cfg.update(work_dir=str(tmp_path), launcher='none')
    check_images(cfg, ('train', 'val'))
    (image,) = damage(data / 'ade' / 'images' / 'training', 2)
    (bad_map,) = damage(data / 'ade' / 'annotations' / 'validation', 0)
    with pytest.raises(UsageError) as error:
        check_images(cfg, ('train', 'val'))
    for words in ('2 of 16 images cannot be read', f'{image}: it is cut off', f'{bad_map}: it is cut off', 'skip'):
        assert words in str(error.value)
    check_images(cfg, ())


def test_a_long_list_of_bad_images_goes_into_a_file(tmp_path):
    cfg = classification_cfg(tmp_path)
    write_images(tmp_path / 'images' / '0', 30)
    damage(tmp_path / 'images' / '0', *range(30))
    with pytest.raises(UsageError, match='30 of 34 images.*(?s:.*)and 10 more, all of them in .*bad_images.txt'):
        cfg.work_dir = str(tmp_path)
        check_images(cfg, ('train',))
    assert len((tmp_path / 'bad_images.txt').read_text().splitlines()) == 30


# Through the tools.


def arguments(data, config, **options):
    changed = [f'{key}={value}' for key, value in options.items()]
    return [CONFIGS / f'{config}.py', '--data-root', data, *(['--cfg-options', *changed] if changed else [])]


def test_train_refuses_bad_images_if_it_is_asked_to(data, tmp_path):
    bad = damage(data / 'coco' / 'train2017', 1)
    output = run('train.py', *arguments(data / 'coco', DETECTOR), '--bad-images', 'refuse', cwd=tmp_path, ok=False)
    assert 'Traceback' not in output and '1 of 8 images cannot be read' in output and bad[0] in output


def test_test_refuses_another_number_of_classes(data, tmp_path):
    whole_size = {'model.backbone.arch': 'n12', 'model.neck.in_channels': [128] * 4}
    model = model_of(DETECTOR, **whole_size, **PER_CLASS, **dict.fromkeys(HEADS, 80))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'coco.pth')
    config, *rest = arguments(data / 'coco', DETECTOR, **PER_CLASS)
    output = run('test.py', config, tmp_path / 'coco.pth', *rest, cwd=tmp_path, ok=False)
    assert 'Traceback' not in output and 'coco.pth' in output
    assert 'trained for 80 classes, and the config has 10' in output and 'num_classes=80' in output
    assert not (tmp_path / 'work_dirs').exists()


def test_train_passes_over_bad_images_in_loading_processes(data, tmp_path):
    """By iterations, with a process that loads data, and with a validation in which an image is bad."""
    damage(data / 'ade' / 'images' / 'training', 0, 3)
    damage(data / 'ade' / 'annotations' / 'training', 1)
    damage(data / 'ade' / 'images' / 'validation', 0)
    options = {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 4}
    config, *rest = arguments(data / 'ade', SEGMENTOR, **options)
    output = run('train.py', config, *rest, cwd=tmp_path)
    assert 'bad images so far: 4 (another image is drawn: 3, a grey image takes its place' in output
    assert output.count(' bad image ') == 4
