"""Settings follow the data, and the config that is written from them is one that the libraries and the checks take."""

import pytest
import torch
from labelled_images import coco, folders, maps, voc
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from xcit_mm.apis.finetune import config, formats, recipe
from xcit_mm.apis.finetune.data import Data, Options, Picture, Problems
from xcit_mm.apis.finetune.split import divide
from xcit_mm.apis.finetune.write import write
from xcit_mm.checks.config import check_config
from xcit_mm.checks.data import check_data
from xcit_mm.errors import UsageError

MAKERS = {
    'classification': folders,
    'detection': voc,
    'instance-segmentation': lambda folder: coco(folder, masks=True),
    'semantic-segmentation': maps,
}


def prepared(task, folder, run, **options):
    data = formats.read(MAKERS[task](folder), Options(classes=['ground', 'disk', 'square'] if task[0] == 's' else None))
    divide(data, Options())
    chosen = recipe.choose(data, **{'model': 'xcit_n12_16', 'weights': 'none', **options})
    annotations = write(data, run / 'data')
    (run / 'config.py').write_text(config.config_text(data, chosen, annotations, run))
    return data, chosen, Config.fromfile(run / 'config.py')


@pytest.mark.parametrize('task', MAKERS)
def test_the_config_passes_all_checks_and_reads_the_data(task, tmp_path):
    data, chosen, cfg = prepared(task, tmp_path / "it's data", tmp_path)
    cfg.launcher, cfg.work_dir = 'none', str(tmp_path / 'train')
    check_config(cfg)
    check_data(cfg, ('train', 'val', 'test'))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for split, loader in (('train', cfg.train_dataloader), ('val', cfg.val_dataloader)):
            dataset = DATASETS.build(loader.dataset)
            assert len(dataset) == len(data.of(split))
            assert list(dataset.metainfo['classes']) == data.classes
            sample = dataset[0]['data_samples']
            truth = sample.get('gt_instances', sample.get('gt_label', sample.get('gt_sem_seg')))
            assert truth is not None
        with torch.device('meta'):
            MODELS.build(cfg.model)


def test_labels_are_those_of_the_folders(tmp_path):
    data, _, cfg = prepared('classification', tmp_path / 'data', tmp_path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for number in range(len(dataset)):
        info = dataset.get_data_info(number)
        assert f'/{data.classes[int(info["gt_label"])]}/' in info['img_path']


@pytest.mark.parametrize('model', ['xcit_t12_8', 'xcit_s24_16'])
@pytest.mark.parametrize('task', MAKERS)
def test_every_arch_fits_its_heads(task, model, tmp_path):
    _, chosen, cfg = prepared(task, tmp_path / 'data', tmp_path, model=model)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        built = MODELS.build(cfg.model)
    assert built.backbone.embed_dims == chosen.channels
    if hasattr(built, 'neck') and built.neck is not None and task != 'classification':
        assert list(built.neck.in_channels) == [chosen.channels] * 4


def test_upernet_by_name(tmp_path):
    _, chosen, cfg = prepared('semantic-segmentation', tmp_path / 'data', tmp_path, model='upernet_xcit_s12_16')
    assert cfg.model.decode_head.type == 'UPerHead'
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 3


def made_up(task, images, side, object_side=None):
    """Data of so many images, of which a fifth is for validation."""
    pictures = []
    for number in range(images):
        one = Picture(f'/{number}.jpg', 'val' if number % 5 == 0 else 'train', None, side, side)
        if object_side:
            one.objects = [dict(label=0, bbox=[0, 0, object_side, object_side])]
        pictures.append(one)
    return Data('/', 'coco', task, ['a', 'b'], pictures, Problems())


def test_longer_for_fewer_images_and_smaller_batches_for_larger_images():
    few, many = (recipe.choose(made_up('classification', count, 500), weights='none') for count in (60, 6000))
    assert few.epochs > 4 * many.epochs
    assert few.iterations >= 8
    assert few.lr < many.lr  # of smaller batches
    small, large = (recipe.choose(made_up('detection', 500, side, 40), weights='none') for side in (320, 1600))
    assert small.batch > large.batch
    assert (small.size, large.size) == (320, 800)


def test_small_objects_are_enlarged():
    plain, enlarged = (recipe.choose(made_up('detection', 50, 300, side), weights='none').size for side in (60, 16))
    assert enlarged == pytest.approx(1.5 * plain, abs=32)


def test_the_average_reaches_back_a_twentieth_of_the_run():
    chosen = recipe.choose(made_up('classification', 3000, 224), weights='none')
    assert 1 / chosen.ema_momentum == pytest.approx(chosen.total / 20, rel=0.05)


def test_a_pretrained_start_has_rates_by_depth_and_frozen_norms(tmp_path):
    """From a classifier's file and, whole, from a detector's."""
    from xcit_mm.models import XCiT

    classifier = tmp_path / 'classifier.pth'
    state = XCiT(arch='n12', patch_size=16, out_type='cls_token').state_dict()
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in state.items()}}, classifier)
    _, chosen, cfg = prepared('detection', tmp_path / 'data', tmp_path, weights=str(classifier))
    assert cfg.optim_wrapper.paramwise_cfg.layer_decay_rate < 1
    assert cfg.model.backbone.norm_eval is True
    assert cfg.load_from == str(classifier) or cfg.model.backbone.init_cfg.checkpoint == str(classifier)
    assert 'norm_cfg' not in cfg.model.neck or cfg.model.neck.norm_cfg is None


def test_weights_that_cannot_be_had_are_said_and_random_ones_taken(monkeypatch):
    from xcit_mm.checkpoint import CheckpointError

    def fail(address):
        raise CheckpointError(f'{address} could not be downloaded: no network. More')

    monkeypatch.setattr(recipe, '_fetch', fail)
    data = made_up('classification', 50, 224)
    chosen = recipe.choose(data, 'xcit_n12_16')
    assert chosen.weights is None
    assert chosen.layer_decay == 1
    assert 'no network): training starts from random weights' in data.notes[-1]


def test_weights_that_can_be_had_are_started_from(monkeypatch):
    monkeypatch.setattr(recipe, '_fetch', lambda address: '/cache/file.pth')
    for task, name, whole in (
        ('classification', 'xcit_s12_16_dist_in1k', False),
        ('detection', 'mask_rcnn_xcit_s12_16_3x_coco', True),
        ('instance-segmentation', 'mask_rcnn_xcit_s12_16_3x_coco', True),
        ('semantic-segmentation', 'sem_fpn_xcit_s12_16_80k_ade20k', True),
    ):
        chosen = recipe.choose(made_up(task, 50, 224))
        assert (chosen.weights, chosen.whole) == (f'xcit_mm://{name}', whole)


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(model='resnet50'), 'expected xcit_ARCH_PATCH'),
        (dict(model='mask_rcnn_xcit_s12_16'), 'the task is classification'),
        (dict(size=0), '--size must be above 0'),
        (dict(size=16), 'two patches'),
        (dict(batch=1000), 'there are 40 images'),
        (dict(gpus=64), 'GPUs'),
        (dict(weights='/not/there.pth'), 'no such file'),
    ],
)
def test_what_cannot_be(options, words):
    with pytest.raises(UsageError, match=words):
        recipe.choose(made_up('classification', 50, 224), **{'weights': 'none', **options})
