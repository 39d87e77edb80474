"""What the original release does in training and testing, in numbers; docs/recipes.md has the list."""

import json
import math

import numpy as np
import pytest
import torch
from backbones import randomise
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope
from mmengine.runner import Runner
from PIL import Image
from processes import ROOT
from small_runs import small_cfg, train

from xcit_mm.checkpoint import CheckpointError
from xcit_mm.checks.config import apply_options, check_config
from xcit_mm.checks.data import check_data
from xcit_mm.engine.averaging import EMAHook
from xcit_mm.engine.classification import is_imagenet, read_as_released, use_protocol
from xcit_mm.engine.optim import LayerDecayOptimWrapperConstructor
from xcit_mm.engine.setup import use_average
from xcit_mm.errors import UsageError
from xcit_mm.resilience.bad_images import guard_loading

CONFIGS = ROOT / 'configs'
CLASSIFIERS = [p.stem for p in sorted(CONFIGS.glob('*in1k.py')) if p.stem.startswith(('xcit_', 'ablation_'))]
TRANSFER = ['cifar10', 'cifar100', 'cars', 'flowers', 'inat18', 'inat19']


def load(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


# The learning rate.


def rates(cfg, base=None, resumed_after=None):
    """Learning rates of all epochs, as MMEngine's hook steps the schedulers: once after each epoch."""

    def build():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base or cfg.optim_wrapper.optimizer.lr)
        return optimizer, [PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in cfg.param_scheduler]

    optimizer, schedulers = build()
    found = []
    for epoch in range(cfg.train_cfg.max_epochs):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        if epoch == resumed_after:
            states = [optimizer.state_dict(), *(scheduler.state_dict() for scheduler in schedulers)]
            optimizer, schedulers = build()
            for part, state in zip((optimizer, *schedulers), states):
                part.load_state_dict(state)
    return found


def timm_rates(base, epochs, warmup=5):
    """Those of timm's scheduler, which the release steps with the number of the epoch that is over."""
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = CosineLRScheduler(optimizer, epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6)
    found = []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]['lr'])
        scheduler.step(epoch)
    return found


@pytest.mark.parametrize('base', [1e-3, 2.5e-4])  # as published, and with a quarter of the batch
@pytest.mark.parametrize('resumed_after', [None, 3, 200])
def test_learning_rate_of_every_epoch_is_timms(base, resumed_after):
    assert rates(load('xcit_s12_16_in1k'), base, resumed_after) == pytest.approx(timm_rates(base, 400), rel=1e-12)


def test_learning_rate_has_the_stated_values():
    found = rates(load('xcit_s12_16_in1k'))
    assert found[:2] == [1e-6, 1e-6]
    assert max(found) == found[6] == pytest.approx(1e-5 + 0.99e-3 * (1 + math.cos(math.pi * 5 / 400)) / 2)
    assert found[6] == pytest.approx(1e-3, rel=4e-4)
    # Per iteration: linear over 5 epochs, then the cosine over 395. The sum is 1.26 % below it with 10 iterations an
    # epoch, and 1.23 % with ImageNet's 1251.
    for iterations, below in ((10, 0.0126), (1251, 0.0123)):
        step = np.arange(400 * iterations)
        cosine = 1e-5 + 0.99e-3 * (1 + np.cos(np.pi * (step / iterations - 5) / 395)) / 2
        linear = 1e-6 + 0.999e-3 * step / (5 * iterations - 1)
        per_iteration = np.where(step < 5 * iterations, linear, cosine).sum() / iterations
        assert sum(found) / per_iteration == pytest.approx(1 - below, abs=5e-5)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_all_of_imagenet_trains_with_it(name):
    cfg = load(name)
    if '384' in name:  # DeiT's constant rate
        assert set(rates(cfg)) == {5e-6}
    else:
        assert cfg.param_scheduler == load('xcit_s12_16_in1k').param_scheduler and cfg.train_cfg.max_epochs == 400
    assert cfg.model.backbone.bn_norm_cfg == dict(type='xcit_mm.SyncBN')


def test_there_are_42_models_and_6_ablations():
    assert len(CLASSIFIERS) == 42 + 6


def test_the_base_rate_alone_depends_on_depth_and_batch():
    model = MODELS.build(dict(load('xcit_n12_16_in1k').model))
    cfg = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
    wrapper = LayerDecayOptimWrapperConstructor(cfg, dict(layer_decay_rate=0.5))(model)
    schedule = dict(load('xcit_n12_16_in1k').param_scheduler[0], optimizer=wrapper)
    PARAM_SCHEDULERS.build(schedule)
    assert {group['lr'] for group in wrapper.optimizer.param_groups} == {1e-6}


def test_a_schedule_by_iterations_is_refused():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(ValueError, match='by_epoch=True alone'):
        PARAM_SCHEDULERS.build(dict(type='xcit_mm.EpochCosineLR', T_max=4, by_epoch=False, optimizer=optimizer))


# The average of the weights.


@pytest.fixture(scope='module')
def runs(small_models, small_digits, tmp_path_factory):
    """Configs of a classifier of 12 images, 2 epochs, and what they have written."""

    def run(name, hook='xcit_mm.EMAHook', **options):
        cfg = small_cfg(
            small_models,
            'classifier',
            small_digits,
            tmp_path_factory.mktemp(name),
            **{'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 1, 'default_hooks.checkpoint.interval': 1},
        )
        assert [h.type for h in cfg.custom_hooks].count('xcit_mm.EMAHook') == 1
        for one in cfg.custom_hooks:
            if one.type == 'xcit_mm.EMAHook':
                one.type = hook
        cfg.merge_from_dict(options)
        return cfg

    return run


def tensors(path):
    checkpoint = torch.load(path, weights_only=False)
    average = {k[7:]: v for k, v in checkpoint['ema_state_dict'].items() if k.startswith('module.')}
    return checkpoint['state_dict'], average


def same(ours, theirs):
    return all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in theirs)


def test_the_weights_themselves_are_tested_and_saved(runs, monkeypatch):
    """And their average is that of MMEngine's hook, which saves the two the other way round."""
    tested = []
    monkeypatch.setattr(
        EMAHook,
        'after_val_epoch',
        lambda self, runner, metrics=None: tested.append({k: v.clone() for k, v in runner.model.state_dict().items()}),
    )
    raw = runs('raw')
    train(raw)
    monkeypatch.undo()
    weights, average = tensors(f'{raw.work_dir}/epoch_2.pth')
    assert not same(weights, average) and same(tested[-1], weights)
    best = next(p for p in (ROOT / raw.work_dir).glob('best_*.pth'))
    epoch = torch.load(best, weights_only=False)['meta']['epoch']
    assert same(torch.load(best, weights_only=False)['state_dict'], tensors(f'{raw.work_dir}/epoch_{epoch}.pth')[0])

    for cfg in (runs('mmengine', 'EMAHook'), runs('asked')):
        use_average(cfg) if 'asked' in cfg.work_dir else None
        train(cfg)
        swapped = tensors(f'{cfg.work_dir}/epoch_2.pth')
        assert same(swapped[0], average) and same(swapped[1], weights)


@pytest.mark.parametrize('evaluate', [False, True])
@pytest.mark.parametrize('hook', ['xcit_mm.EMAHook', 'EMAHook'])
def test_a_run_goes_on_from_checkpoints_of_both_kinds(hook, evaluate, runs):
    whole = runs('whole')
    train(whole)
    begun = runs('begun', hook)
    train(begun)
    going_on = runs('going_on')
    going_on.update(load_from=f'{begun.work_dir}/epoch_1.pth', resume=True)
    if evaluate:
        use_average(going_on)
    train(going_on)
    expected = tensors(f'{whole.work_dir}/epoch_2.pth')
    assert all(map(same, tensors(f'{going_on.work_dir}/epoch_2.pth'), expected[::-1] if evaluate else expected))


def test_the_average_is_tested_on_request(runs):
    cfg = runs('tested')
    train(cfg)
    path = f'{cfg.work_dir}/epoch_2.pth'
    weights, average = tensors(path)

    def tested(checkpoint, evaluate):
        asked = Config(dict(cfg.to_dict(), load_from=checkpoint))
        asked.experiment_name += f'_{evaluate}_{checkpoint[-8:-4]}'
        if evaluate:
            use_average(asked)
        runner = Runner.from_cfg(asked)
        seen = {}
        runner.register_hook(
            type(
                'Look',
                (type(runner.hooks[0]).__mro__[-2],),
                {
                    'priority': 'LOWEST',
                    'before_test_epoch': lambda self, r: seen.update(
                        {k: v.clone() for k, v in r.model.state_dict().items()}
                    ),
                },
            )()
        )
        runner.test()
        return seen

    assert same(tested(path, False), weights) and same(tested(path, True), average)
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint['ema_state_dict']
    torch.save(checkpoint, path[:-4] + '_only.pth')
    with pytest.raises(UsageError, match='the checkpoint has none'):
        tested(path[:-4] + '_only.pth', True)
    with pytest.raises(UsageError, match='keeps no average'):
        use_average(load('mask_rcnn_xcit_t12_16_3x_coco'))


# Augmentation.


def picture(seed=0, size=(224, 224)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    return np.array(Image.fromarray(noise).resize(size, Image.BICUBIC))


@pytest.mark.parametrize(
    ('kind', 'more', 'reference', 'argument'),
    [
        ('Rotate', {}, 'rotate', 27.5),
        ('Shear', dict(direction='horizontal'), 'shear_x', 0.27),
        ('Shear', dict(direction='vertical'), 'shear_y', 0.27),
        ('Translate', dict(direction='horizontal'), 'translate_x_rel', 0.405),
        ('Translate', dict(direction='vertical'), 'translate_y_rel', 0.405),
    ],
)
def test_geometric_augmentations_are_timms(kind, more, reference, argument):
    from timm.data import auto_augment

    colour = (104, 116, 124)
    op = TRANSFORMS.build(
        dict(
            type=f'xcit_mm.{kind}',
            magnitude_range=(0, argument),
            magnitude_level=10,
            prob=1.0,
            random_negative_prob=0.0,
            pad_val=colour,
            **more,
        )
    )
    ours = op(dict(img=picture(size=(200, 160))))['img']
    theirs = getattr(auto_augment, reference)(
        Image.fromarray(picture(size=(200, 160))), argument, fillcolor=colour, resample=Image.BICUBIC
    )
    assert np.array_equal(ours, np.asarray(theirs)) and not np.array_equal(ours, picture(size=(200, 160)))


def test_randaugment_has_timms_operations_ranges_and_probability():
    augment = TRANSFORMS.build(load('xcit_s12_16_in1k').train_pipeline[3])
    assert (augment.num_policies, len(augment.transforms)) == (2, 15)
    assert {t.prob for t in augment.transforms} == {0.5}
    ours = [t for t in augment.transforms if type(t).__module__ == 'xcit_mm.datasets.augmentation']
    assert [type(t).__name__ for t in ours] == ['Rotate', 'Shear', 'Shear', 'Translate', 'Translate']
    assert {(t.magnitude_level, t.magnitude_std, t.pad_val, t.resample) for t in ours} == {
        (9, 0.5, (104, 116, 124), Image.BICUBIC)
    }
    assert [t.magnitude_range[1] for t in ours] == [30, 0.3, 0.3, 0.45, 0.45]
    np.random.seed(0)
    assert any(not np.array_equal(augment(dict(img=picture()))['img'], picture()) for _ in range(10))


def test_erased_pixels_are_standard_normal_noise_for_the_network():
    cfg = load('xcit_s12_16_in1k')
    erase = TRANSFORMS.build(dict(cfg.train_pipeline[4], erase_prob=1.0))
    pack = TRANSFORMS.build(cfg.train_pipeline[5])
    preprocess = MODELS.build(dict(cfg.model.data_preprocessor, type='ClsDataPreprocessor'))
    np.random.seed(0)
    noise, areas = [], []
    for _ in range(100):
        inputs = pack(erase(dict(img=np.full((224, 224, 3), 255, np.uint8))))['inputs']
        assert inputs.dtype == torch.float32
        seen = preprocess(dict(inputs=inputs[None]))['inputs'][0]
        erased = (inputs != 255).all(0)
        areas.append(erased.float().mean().item())
        noise.append(seen[:, erased])
        rows, columns = erased.any(1), erased.any(0)
        assert rows.sum() * columns.sum() == erased.sum()  # one rectangle
    noise = torch.cat(noise, 1)
    assert noise.mean(1).abs().max() < 0.01 and (noise.std(1) - 1).abs().max() < 0.01
    assert noise.abs().max() > 4  # black is -2.1 and white 2.6
    assert 0.019 < min(areas) < 0.04 and 0.3 < max(areas) < 0.34
    assert sum(areas) / 100 == pytest.approx((0.02 + 1 / 3) / 2, abs=0.025)


@pytest.mark.parametrize('kind', ['Mixup', 'CutMix'])
def test_an_image_is_mixed_with_its_mirror_image_in_the_batch(kind):
    model = MODELS.build(load('xcit_n12_16_in1k').model)
    mix = next(a for a in model.data_preprocessor.batch_augments.augments if type(a).__name__ == kind)
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 32, 32).clone()
    np.random.seed(1)
    mixed, targets = mix(images.clone(), torch.eye(6))
    share = targets[0, 0]
    assert 0 < share < 1
    assert torch.allclose(targets, share * torch.eye(6) + (1 - share) * torch.eye(6).flip(0))
    # The mean is that of the targets; mixup alone changes all pixels.
    assert torch.allclose(mixed.mean((1, 2, 3)), targets @ torch.arange(6.0), atol=1e-5)
    assert len(mixed[1].unique()) == (1 if kind == 'Mixup' else 2)


# Reading.


@pytest.fixture
def folder(tmp_path):
    """A picture that is to be turned, and a strip 20 times as long as wide, under ``val``."""
    (tmp_path / 'val' / 'class').mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(size=(320, 240))).save(tmp_path / 'val' / 'class' / 'turned.jpg', exif=exif, quality=95)
    Image.fromarray(picture(1, (800, 40))).save(tmp_path / 'val' / 'class' / 'strip.png')
    return tmp_path


def pixels_of(cfg, root):
    """(3, h, w) BGR by file name, through what a runner makes of the config."""
    cfg.test_dataloader.dataset.update(data_root=str(root), metainfo=dict(classes=['class']))
    runner = type('Runner', (), dict(cfg=cfg, _test_dataloader=cfg.test_dataloader))()
    guard_loading(runner)
    dataset = DATASETS.build(runner._test_dataloader['dataset'])
    return {item['data_samples'].img_path[-8:-4]: item['inputs'].numpy() for item in dataset}


def full_crop(path):
    """As torchvision reads and the release crops."""
    with Image.open(path) as image:
        image = image.convert('RGB')
    short = min(image.size)
    image = image.resize([int(224 * side / short) for side in image.size], Image.BICUBIC)
    left, top = (round((side - 224) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))[..., ::-1].transpose(2, 0, 1)


@pytest.mark.parametrize('protocol', [None, 'full-crop'])
def test_imagenet_is_tested_on_pictures_as_they_are_stored(protocol, folder):
    cfg = load('xcit_n12_16_in1k')
    assert is_imagenet(cfg.test_dataloader)
    use_protocol(cfg, protocol) if protocol else read_as_released(cfg.test_dataloader)
    found = pixels_of(cfg, folder)
    assert np.array_equal(found['rned'], full_crop(folder / 'val/class/turned.jpg'))
    assert np.array_equal(found['trip'], full_crop(folder / 'val/class/strip.png'))


def test_own_data_is_tested_as_it_is_trained(folder):
    """A photograph is turned, in both."""
    cfg = load('xcit_n12_16_in1k')
    cfg.test_dataloader.dataset.metainfo = dict(classes=['class'])
    assert not is_imagenet(cfg.test_dataloader)
    found = pixels_of(cfg, folder)
    with Image.open(folder / 'val/class/turned.jpg') as image:
        image.transpose(Image.ROTATE_270).save(folder / 'val/class/upright.png')
    difference = found['rned'].astype(float) - full_crop(folder / 'val/class/upright.png')
    assert abs(difference).mean() < 3


def test_deep_pictures_keep_their_brightness(tmp_path):
    (tmp_path / 'val' / 'class').mkdir(parents=True)
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / 'val' / 'class' / 'deep.png')
    cfg = load('xcit_n12_16_in1k')
    use_protocol(cfg, 'full-crop')
    assert pixels_of(cfg, tmp_path)['deep'].mean() == pytest.approx(127.5, abs=2)


# Linear evaluation, transfer, surgery.


def test_linear_evaluation():
    for name in ('s12_16', 's12_8', 'm24_16', 'm24_8', 'm24_8_384'):
        cfg = load(f'linear_xcit_{name}_in1k')
        crop = cfg.train_dataloader.dataset.pipeline[1]
        size = 384 if name.endswith('384') else 224
        assert (crop.type, crop.scale, crop.backend) == ('RandomResizedCrop', size, 'pillow')
        assert crop.interpolation == 'bilinear'
        assert cfg.train_dataloader.drop_last is True
        resize, centre = cfg.test_dataloader.dataset.pipeline[1:3]
        assert (resize.scale, centre.crop_size, resize.interpolation) == (int(256 / 224 * size), size, 'bicubic')
        assert cfg.model.backbone.bn_norm_cfg.type == 'xcit_mm.SyncBN'
        if name.endswith('384'):
            assert (cfg.model.backbone.arch, cfg.model.backbone.patch_size) == ('m24', 8)


@pytest.mark.parametrize('name', TRANSFER)
def test_transfer_configs(name):
    classes = dict(cifar10=10, cifar100=100, cars=196, flowers=102, inat18=8142, inat19=1010)[name]
    cfg = load(f'xcit_s12_16_{name}')
    check_config(cfg)
    assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes == classes
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 768
    optimizer, pipeline = cfg.optim_wrapper.optimizer, cfg.train_dataloader.dataset.pipeline
    erase = [step.erase_prob for step in pipeline if step.type == 'xcit_mm.RandomErasing']
    given = (optimizer.type, optimizer.lr, optimizer.weight_decay, cfg.train_cfg.max_epochs, erase)
    drop_path = cfg.model.backbone.get('drop_path_rate', 0.0)
    if 'inat' in name:
        assert (*given, drop_path) == ('AdamW', 7.5e-5, 0.05, 360, [0.1], 0.1)
    else:
        assert (*given, drop_path) == ('SGD', 0.01, 1e-4, 1000, [], 0.0)
        assert (optimizer.momentum, optimizer.nesterov) == (0.9, True)
    assert rates(cfg) == pytest.approx(timm_rates(optimizer.lr, cfg.train_cfg.max_epochs), rel=1e-12)
    assert 'DeiT' in (CONFIGS / f'xcit_s12_16_{name}.py').read_text()


def test_inaturalist_is_read(tmp_path):
    for split in ('train', 'val'):
        names = [f'train_val2018/Plants/{label}/{split}_{label}.jpg' for label in (7, 0, 8141)]
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(number)).save(tmp_path / name)
        content = dict(
            images=[dict(id=50 + i, file_name=name) for i, name in enumerate(names)],
            annotations=[dict(id=i, image_id=50 + i, category_id=c) for i, c in enumerate((7, 0, 8141))][::-1],
        )
        (tmp_path / f'{split}2018.json').write_text(json.dumps(content))
    cfg = load('xcit_s12_16_inat18')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(tmp_path)
        dataset = DATASETS.build(loader.dataset)
        assert [dataset.get_data_info(i)['gt_label'] for i in range(3)] == [7, 0, 8141]
        assert dataset[0]['inputs'].shape == (3, 224, 224)
    check_data(cfg, ('train', 'val'))


def test_cifar_reaches_the_network_in_the_order_of_channels_of_other_images(tmp_path, monkeypatch):
    from mmpretrain.datasets import CIFAR10

    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    monkeypatch.setattr(CIFAR10, 'load_data_list', lambda self: [dict(img=red, gt_label=3)])
    cfg = load('xcit_s12_16_cifar10')
    cfg.val_dataloader.dataset.data_root = str(tmp_path)
    inputs = DATASETS.build(cfg.val_dataloader.dataset)[0]['inputs']
    assert inputs.shape == (3, 224, 224) and inputs.flatten(1).float().mean(1).tolist() == [0, 0, 255]
    check_data(cfg, ('train', 'val'))  # it downloads itself


def surgeon(path, **kwargs):
    return MODELS.build(
        dict(type='xcit_mm.SurgeryXCiT', arch='n12', patch_size=16, patch_checkpoint=str(path), **kwargs)
    )


def test_surgery_takes_the_patch_embedding_and_leaves_it_as_it_is(tmp_path):
    donor = randomise(MODELS.build(dict(type='xcit_mm.XCiT', arch='n12', patch_size=16)))
    torch.save({'model': donor.state_dict()}, tmp_path / 'donor.pth')
    model = surgeon(tmp_path / 'donor.pth')
    model.init_weights()
    start = randomise(MODELS.build(dict(type='xcit_mm.XCiT', arch='n12', patch_size=16)), seed=1).state_dict()
    model.load_state_dict(dict(start))  # the model that the run starts from
    given = {name: value.clone() for name, value in donor.patch_embed.state_dict().items()}
    assert same(model.patch_embed.state_dict(), given)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, start['blocks.0.mlp.fc1.weight'])

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(torch.randn(2, 3, 64, 64))[0].sum().backward()
    optimizer.step()
    assert same(model.patch_embed.state_dict(), given)
    assert not torch.equal(model.pos_embed.token_projection.weight, start['pos_embed.token_projection.weight'])

    tested = surgeon('no such file')  # a trained model has its own
    tested.load_state_dict(model.state_dict())
    assert same(tested.patch_embed.state_dict(), given)


@pytest.mark.parametrize(
    'options',
    [
        {'type': 'xcit_mm.SurgeryXCiT', 'patch_checkpoint': 'donor.pth'},
        {'type': 'xcit_mm.AblatedXCiT', 'lpi': False},
    ],
)
def test_another_backbone_and_its_argument_can_be_given_together(options):
    cfg = load('xcit_l24_8_dist_384_in1k')
    apply_options(cfg, {f'model.backbone.{key}': value for key, value in options.items()})
    check_config(cfg)
    assert {key: cfg.model.backbone[key] for key in options} == options


def test_surgery_with_another_model_is_refused(tmp_path):
    donor = MODELS.build(dict(type='xcit_mm.XCiT', arch='n12', patch_size=8))
    torch.save({'model': donor.state_dict()}, tmp_path / 'donor.pth')
    with pytest.raises(CheckpointError, match='patch_checkpoint'):
        surgeon(tmp_path / 'donor.pth').init_weights()
