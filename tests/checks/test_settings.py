"""Settings that nothing reads, that clash, or that are of the wrong kind: one message names the key that counts."""

import copy
from functools import lru_cache

import pytest
from mmengine.config import Config
from processes import ROOT

from xcit_mm.checks.classes import classes_of
from xcit_mm.checks.config import apply_options, check_config
from xcit_mm.checks.settings import check_loops
from xcit_mm.checks.variables import check_files
from xcit_mm.errors import UsageError

DETECTOR, SEGMENTOR, CLASSIFIER = 'mask_rcnn_xcit_n12_8_digits', 'sem_fpn_xcit_n6_8_digits', 'xcit_n12_8_digits'
COCO, ADE = 'mask_rcnn_xcit_s12_8_3x_coco', 'sem_fpn_xcit_s12_8_80k_ade20k'


@lru_cache
def read(name):
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def changed(name, **options):
    cfg = copy.deepcopy(read(name))
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return cfg


def refused(function, *arguments):
    with pytest.raises(UsageError) as error:
        function(*arguments)
    return str(error.value)


# Variables


@pytest.mark.parametrize(
    'config, key, value, right',
    [
        (COCO, 'train_pipeline.2.prob', 0.0, 'train_dataloader.dataset.pipeline.2.prob'),
        (COCO, 'data_root', '/data/', 'train_dataloader.dataset.data_root, val_dataloader.dataset.data_root'),
        (COCO, 'data_root', '/data/', '--data-root FOLDER'),
        (COCO, 'test_pipeline.1.scale', (640, 640), 'test_dataloader.dataset.pipeline.1.scale'),
        (COCO, 'backend_args', dict(backend='s3'), 'nothing that is built reads it'),
        (DETECTOR, 'max_epochs', 12, 'what counts is train_cfg.max_epochs'),
        (DETECTOR, 'epochs', 12, 'what counts is train_cfg.max_epochs'),
        (DETECTOR, 'metainfo.classes', ['cat', 'dog'], 'train_dataloader.dataset.metainfo.classes'),
        (DETECTOR, 'size', (64, 64), 'train_dataloader.dataset.pipeline.2.scale'),
        (DETECTOR, 'num_classes', 3, 'model.roi_head.bbox_head.num_classes'),
        (ADE, 'crop_size', (256, 256), 'model.data_preprocessor.size, train_dataloader.dataset.pipeline.3.crop_size'),
        (ADE, 'max_iters', 4000, 'what counts is train_cfg.max_iters'),
        (ADE, 'dataset_type', 'BaseSegDataset', 'train_dataloader.dataset.type'),
        (ADE, 'data_preprocessor.size', (64, 64), 'what counts is model.data_preprocessor.size'),
        (COCO, 'vis_backends.0.type', 'TensorboardVisBackend', 'what counts is visualizer.vis_backends.0.type'),
        (CLASSIFIER, 'data.data_root', 'x', 'train_dataloader.data_root'),
        ('xcit_s12_8_in1k', 'data_root', '/data/', 'train_dataloader.dataset.data_root'),
        ('xcit_s12_8_in1k', 'lr', 1e-4, 'what counts is optim_wrapper.optimizer.lr'),
        ('dino_xcit_s12_8_300e_in1k', 'epochs', 100, 'what counts is train_cfg.max_epochs'),
        ('linear_xcit_s12_8_in1k', 'epochs', 10, 'what counts is train_cfg.max_epochs'),
    ],
)
def test_options_for_variables_are_refused_with_the_key_that_counts(config, key, value, right):
    message = refused(apply_options, copy.deepcopy(read(config)), {key: value})
    assert message.startswith(f'--cfg-options {key} ') and right in message


def test_options_that_are_read_pass():
    cfg = copy.deepcopy(read(COCO))
    apply_options(
        cfg,
        {
            'train_cfg.max_epochs': 12,
            'train_dataloader.dataset.data_root': '/data/',
            'train_dataloader.dataset.pipeline.2.prob': 0.0,
            'find_unused_parameters': True,
            'randomness.seed': 3,
        },
    )
    apply_options(copy.deepcopy(read(DETECTOR)), {'max_epochs': 12, 'train_cfg.max_epochs': 12})
    apply_options(copy.deepcopy(read('knn_xcit_digits')), {'knn.ks': (3,)})
    apply_options(copy.deepcopy(read(ADE)), {'tta_pipeline.0.type': 'xcit_mm.LoadImageFromFile'})


def test_a_variable_that_the_code_of_a_user_may_read_passes():
    cfg = changed(DETECTOR, my_switch=False)
    cfg.custom_imports = dict(imports=['my_hooks'])
    apply_options(cfg, {'my_switch': True})
    assert cfg.my_switch is True


PIPELINE = "[dict(type='xcit_mm.LoadImageFromFile'), dict(type='PackDetInputs')]"
CHILDREN = {
    'a pipeline': (COCO, f'train_pipeline = {PIPELINE}', 'sets train_pipeline', 'train_dataloader.dataset.pipeline'),
    'a changed pipeline': (
        COCO,
        'test_pipeline = _base_.test_pipeline\ntest_pipeline[1].scale = (640, 640)',
        'sets test_pipeline',
        'test_dataloader.dataset.pipeline',
    ),
    'a root': (COCO, "data_root = 'mine/'", 'sets data_root', '--data-root FOLDER'),
    'classes': (COCO, "classes = ('cat', 'dog')", 'sets classes', 'train_dataloader.dataset.metainfo.classes'),
    'classes of a base': (DETECTOR, "metainfo = dict(classes=('a',))", 'sets metainfo', 'dataset.metainfo'),
    'epochs': (DETECTOR, 'max_epochs = 24', 'sets max_epochs', 'train_cfg.max_epochs'),
    'epochs of another name': (COCO, 'epochs = 12', 'sets epochs', 'train_cfg.max_epochs'),
    'a runner of MMCV 1': (COCO, 'runner = dict(max_epochs=12)', 'sets runner', 'train_cfg'),
    'iterations': (ADE, 'max_iters = 4000', 'sets max_iters', 'train_cfg.max_iters'),
    'a crop': (ADE, 'crop_size = (256, 256)', 'sets crop_size', 'model.data_preprocessor.size'),
    'a data preprocessor': (ADE, 'data_preprocessor = dict(size=(64, 64))', 'data_preprocessor', 'model.data_pre'),
    'logs': (
        COCO,
        "vis_backends = [dict(type='TensorboardVisBackend')]",
        'sets vis_backends',
        'visualizer.vis_backends',
    ),
    'a learning rate': (ADE, 'lr = 1e-3', 'sets lr', 'optim_wrapper.optimizer.lr'),
}


@pytest.mark.parametrize('name', CHILDREN)
def test_a_file_that_changes_a_variable_alone_is_refused(name, tmp_path):
    base, code, what, right = CHILDREN[name]
    file = tmp_path / 'child.py'
    file.write_text(f"_base_ = '{ROOT}/configs/{base}.py'\n{code}\n")
    message = refused(check_files, str(file))
    assert str(file) in message and what in message and right in message
    # Also when another file inherits it.
    (tmp_path / 'grandchild.py').write_text("_base_ = './child.py'\nrandomness = dict(seed=1)\n")
    assert str(file) in refused(check_files, str(tmp_path / 'grandchild.py'))


def test_a_variable_whose_first_value_was_replaced_everywhere(tmp_path):
    data = "dict(dataset=dict(data_root='mine/'))"
    loaders = ''.join(f'{split}_dataloader = {data}\n' for split in ('train', 'val', 'test'))
    (tmp_path / 'own.py').write_text(f"_base_ = '{ROOT}/configs/{ADE}.py'\n{loaders}")
    (tmp_path / 'child.py').write_text("_base_ = './own.py'\ndata_root = 'elsewhere/'\n")
    check_files(str(tmp_path / 'own.py'))
    message = refused(check_files, str(tmp_path / 'child.py'))
    assert 'sets data_root, which nothing reads; what count are train_dataloader.dataset.data_root' in message


@pytest.mark.parametrize(
    'base, code',
    [
        (COCO, f'train_pipeline = {PIPELINE}\ntrain_dataloader = dict(dataset=dict(pipeline=train_pipeline))'),
        (COCO, f'my_pipeline = {PIPELINE}\ntrain_dataloader = dict(dataset=dict(pipeline=my_pipeline))'),
        (COCO, f'train_dataloader = dict(dataset=dict(pipeline={PIPELINE}))'),
        (COCO, 'max_epochs = 12\ntrain_cfg = dict(max_epochs=12)'),
        (DETECTOR, "data_root = _base_.data_root\nval_evaluator = dict(ann_file=data_root + 'x.json')"),
        (ADE, 'crop_size = (512, 512)'),
        (ADE, "work = 'mine'\nnotes = 'of my own'"),
        (ADE, "tta_pipeline = [dict(type='LoadImageFromFile')]"),
    ],
)
def test_files_whose_variables_are_used_or_agree_pass(base, code, tmp_path):
    (tmp_path / 'child.py').write_text(f"_base_ = '{ROOT}/configs/{base}.py'\n{code}\n")
    check_files(str(tmp_path / 'child.py'))


def test_parts_for_files_that_inherit_and_dumped_configs_pass(tmp_path):
    (tmp_path / 'parts.py').write_text(f"_base_ = '{ROOT}/configs/{DETECTOR}.py'\nmax_epochs = 24\n")
    (tmp_path / 'child.py').write_text("_base_ = './parts.py'\ntrain_cfg = dict(max_epochs=_base_.max_epochs)\n")
    check_files(str(tmp_path / 'child.py'))
    read(SEGMENTOR).dump(tmp_path / 'dumped.py')  # with ADE20K's pipeline as a variable
    check_files(str(tmp_path / 'dumped.py'))


def test_pure_python_configs(tmp_path):
    (tmp_path / 'base.py').write_text(
        'from mmengine.dataset import DefaultSampler\n\n'
        "max_epochs = 12\ntrain_pipeline = [dict(type='Resize', scale=(10, 10))]\n"
        'train_dataloader = dict(sampler=dict(type=DefaultSampler), dataset=dict(pipeline=train_pipeline))\n'
        'train_cfg = dict(max_epochs=max_epochs)\n'
    )
    head = 'from mmengine.config import read_base\n\nwith read_base():\n    from .base import *\n\n'
    pipeline = "train_pipeline = [dict(type='Flip')]\n"
    (tmp_path / 'wrong.py').write_text(head + pipeline)
    (tmp_path / 'right.py').write_text(head + pipeline + 'train_dataloader.dataset.pipeline = train_pipeline\n')
    assert 'what counts is train_dataloader.dataset.pipeline' in refused(check_files, str(tmp_path / 'wrong.py'))
    check_files(str(tmp_path / 'right.py'))


def test_all_configs_use_their_variables():
    for path in [*(ROOT / 'configs').glob('*.py'), *(ROOT / 'examples/downstream/configs').glob('*.py')]:
        check_files(str(path))


# Classes

KEY = 'train_dataloader.dataset.metainfo'


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR, CLASSIFIER])
def test_a_text_for_classes_is_refused(config, split):
    cfg = copy.deepcopy(read(config))
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.metainfo = dict(classes='red')
    key = f'{split}_dataloader.dataset.metainfo.classes'
    right = f"{key} is the text 'red'; a tuple of one name needs a comma: ('red',)"
    assert refused(check_config, cfg) == right
    dataset.metainfo = dict(classes='bg,red, green')
    assert "write the names apart: ('bg', 'red', 'green')" in refused(check_config, cfg)
    dataset.metainfo = dict(classes='no/such/file.txt')
    assert 'there is no such file' in refused(check_config, cfg)
    dataset.metainfo = dict(classes=7)
    assert 'expected a list of names' in refused(check_config, cfg)


def test_a_file_of_names_is_read(tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join(f'class {i}' for i in range(10)))
    cfg = copy.deepcopy(read(CLASSIFIER))
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.pop('metainfo')
        dataset.classes = str(names)
    check_config(cfg)
    assert classes_of(dataset, 'mmpretrain')[9] == 'class 9'
    cfg.model.head.num_classes = 9
    assert 'model.head.num_classes is 9, and the data (ImageNet) has 10' in refused(check_config, cfg)


def test_classes_of_wrapped_data_sets_and_lists_of_keys():
    cfg = copy.deepcopy(read(DETECTOR))
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    check_config(cfg)
    cfg.val_dataloader.dataset.pipeline[-1].meta_keys = 'img_id'
    assert "meta_keys is the text 'img_id'; a tuple" in refused(check_config, cfg)
    inner.metainfo = dict(classes='red')
    assert "is the text 'red'" in refused(check_config, cfg)


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR, CLASSIFIER])
def test_the_splits_have_the_same_classes_in_the_same_order(config):
    cfg = copy.deepcopy(read(config))
    metainfo = cfg.val_dataloader.dataset.metainfo
    first, second, *rest = metainfo.classes
    metainfo.classes = [second, first, *rest]
    message = refused(check_config, cfg)
    assert message.startswith('val_dataloader.dataset has other classes than train_dataloader.dataset')
    row = next(line for line in message.splitlines() if line.split()[0] == '0')
    assert row.split() == ['0', first, second]


def test_classes_where_older_versions_had_them():
    cfg = copy.deepcopy(read(DETECTOR))
    dataset = cfg.train_dataloader.dataset
    dataset.metainfo = dict(CLASSES=('a', 'b'))
    assert "metainfo.CLASSES: nothing reads 'CLASSES'; write 'classes'" in refused(check_config, cfg)
    dataset.pop('metainfo')
    dataset.classes = ('a', 'b')
    assert 'CocoDataset takes its classes as metainfo=dict(classes=...)' in refused(check_config, cfg)


def test_weights_of_classes_are_as_many():
    cfg = copy.deepcopy(read(SEGMENTOR))
    assert check_config(cfg) == []
    cfg.model.decode_head.loss_decode[0].class_weight = [1.0] * 3
    message = refused(check_config, cfg)
    assert 'model.decode_head.loss_decode.0.class_weight has 3 numbers, and model.decode_head.num_classes is' in message


def test_colours_and_classes():
    cfg = copy.deepcopy(read(DETECTOR))
    cfg.train_dataloader.dataset.metainfo.palette = [(0, 0, 0)] * 9
    assert 'palette has 9 colours, and' in refused(check_config, cfg)
    cfg.train_dataloader.dataset.metainfo.palette = [(i, 0, 0) for i in range(12)]
    (note,) = check_config(cfg)
    assert '2 colours without a class' in note and len(cfg.train_dataloader.dataset.metainfo.palette) == 10


def test_heads_and_mixed_batches_have_the_classes_of_the_data():
    assert 'model.head.num_classes is 7' in refused(check_config, changed(CLASSIFIER, model__head__num_classes=7))
    cfg = changed(CLASSIFIER, model__data_preprocessor__num_classes=1000)
    (note,) = check_config(cfg)
    assert '10, as model.head.num_classes, in place of 1000' in note and cfg.model.data_preprocessor.num_classes == 10
    cfg = copy.deepcopy(read(DETECTOR))
    head = cfg.model.roi_head.bbox_head
    cfg.model.roi_head.bbox_head = [head, dict(head, num_classes=80)]  # as in Cascade R-CNN
    assert 'model.roi_head.bbox_head.1.num_classes is 80' in refused(check_config, cfg)


# Loaders and loops


def test_without_workers_there_are_no_settings_of_workers():
    for number in (0, None):
        cfg = copy.deepcopy(read(DETECTOR))
        for split in ('train', 'val', 'test'):
            loader = cfg[f'{split}_dataloader']
            loader.update(num_workers=0, persistent_workers=True, prefetch_factor=4, timeout=9)
            if number is None:
                loader.pop('num_workers')
        check_config(cfg)
        for split in ('train', 'val', 'test'):
            assert not {'persistent_workers', 'prefetch_factor', 'timeout'} & set(cfg[f'{split}_dataloader'])
    cfg = changed(DETECTOR, train_dataloader__num_workers=2)
    check_config(cfg)
    assert cfg.train_dataloader.persistent_workers is True


LOOPS = {
    'no metric': (dict(val_evaluator=None), 'the config has no val_evaluator, and has val_dataloader, val_cfg'),
    'no data': (dict(train_dataloader=None), 'the config has no train_dataloader, and has train_cfg, optim_wrapper'),
    'iterations and epochs': (
        dict(train_cfg__max_iters=9),
        'EpochBasedTrainLoop counts epochs (max_epochs), got max_it',
    ),
    'two kinds of loop': (
        dict(train_cfg__by_epoch=True),
        'train_cfg has a type (EpochBasedTrainLoop) and by_epoch=True',
    ),
    'another argument': (dict(train_cfg__interval=2), "EpochBasedTrainLoop takes no 'interval'; did you mean 'val_in"),
    'shuffle': (dict(train_dataloader__shuffle=True), "sampler=dict(type='DefaultSampler', shuffle=True)"),
    'a pipeline of the loader': (dict(val_dataloader__pipeline=[]), 'did you mean val_dataloader.dataset.pipeline?'),
    'no sampler': (dict(val_dataloader__sampler=None), None),
    'workers below zero': (dict(train_dataloader__num_workers=-1), 'train_dataloader.num_workers must be 0 or more'),
    'no image': (dict(train_dataloader__batch_size=0), 'train_dataloader.batch_size must be 1 or more'),
    'the best of what is not measured': (
        dict(default_hooks__checkpoint__save_best='coco/segm_mAP', val_evaluator__metric='bbox'),
        "save_best is 'coco/segm_mAP', and val_evaluator does not give it; it gives coco/bbox_mAP",
    ),
    'the best': (dict(default_hooks__checkpoint__save_best='coco/bbox_mAP'), None),
}


@pytest.mark.parametrize('name', LOOPS)
def test_loops_have_all_that_they_need(name):
    options, words = LOOPS[name]
    cfg = changed(DETECTOR, **options)
    if words is None:
        check_loops(cfg, 'train')
    else:
        assert words in refused(check_loops, cfg, 'train')


def test_what_a_run_does_not_build_is_not_asked_for():
    check_loops(changed(DETECTOR, train_dataloader__shuffle=True, train_cfg__by_epoch=True), 'test')
    check_loops(changed(DETECTOR, train_dataloader=None, train_cfg=None, optim_wrapper=None), 'test')
    assert 'has no test_dataloader' in refused(
        check_loops, changed(DETECTOR, test_dataloader=None, test_cfg=None, test_evaluator=None), 'test'
    )


def test_metrics_of_all_libraries_give_what_their_best_is_chosen_by():
    for config, name in ((SEGMENTOR, 'mIoU'), (CLASSIFIER, 'accuracy/top1')):
        check_loops(changed(config, default_hooks__checkpoint__save_best=name), 'train')
        wrong = changed(config, default_hooks__checkpoint__save_best='bbox_mAP')
        assert "save_best is 'bbox_mAP'" in refused(check_loops, wrong, 'train')


def test_crops_smaller_than_the_batches_are_named():
    cfg = copy.deepcopy(read(ADE))
    assert check_config(cfg) == []
    cfg.train_dataloader.dataset.pipeline[3].crop_size = (256, 256)
    assert '75% of every batch is padding' in check_config(cfg)[0]


def test_configs_of_the_libraries_have_no_false_alarms():
    """A part of the published configs; the whole 2,490 were tried so."""
    import mmdet
    import mmpretrain
    import mmseg

    names = {
        mmdet: ('cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', 'rtmdet/rtmdet_s_8xb32-300e_coco'),
        mmseg: (
            'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
            'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024',
        ),
        mmpretrain: (
            'resnet/resnet50_8xb32_in1k',
            'swin_transformer/swin-tiny_16xb64_in1k',
            'resnet/resnet18_8xb16_cifar10',
        ),
    }
    for library, files in names.items():
        for name in files:
            path = f'{library.__path__[0]}/.mim/configs/{name}.py'
            check_files(path)
            cfg = Config.fromfile(path)
            assert check_config(cfg) == [], name
            check_loops(cfg, 'train')
