"""Typing mistakes in configs and command lines: one message that names the key and the nearest right one."""

import copy
from functools import lru_cache

import pytest
from mmengine.config import Config
from processes import ROOT

from xcit_mm.checks.config import check_config, check_options
from xcit_mm.errors import UsageError

DETECTOR, SEGMENTOR, CLASSIFIER = 'mask_rcnn_xcit_n12_8_digits', 'sem_fpn_xcit_n6_8_digits', 'xcit_n12_8_digits'


@lru_cache
def read(name):
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def refused(function, *arguments):
    with pytest.raises(UsageError) as error:
        function(*arguments)
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('config', sorted(path.stem for path in (ROOT / 'configs').glob('*_digits.py')))
def test_configs_without_mistakes_pass(config):
    check_config(read(config))


@pytest.mark.slow
def test_all_configs_pass():
    for path in (ROOT / 'configs').glob('*.py'):
        check_config(Config.fromfile(path))


OPTIONS = {
    'modell.backbone.with_cp': (True, "a config has no 'modell'; did you mean model?"),
    'model.backbone.with_pc': (True, 'did you mean model.backbone.with_cp?'),
    'model.backbone.patchsize': (8, 'did you mean model.backbone.patch_size?'),
    'model.nekc.out_channels': (8, 'did you mean model.neck?'),
    'model.test_cfg.rcnn.score_thrs': (0.5, 'did you mean model.test_cfg.rcnn.score_thr?'),
    'train_cfg.max_epoch': (3, 'did you mean train_cfg.max_epochs?'),
    'train_cfg.max_epochs': ('1OO', 'expected a number such as 3'),
    'train_dataloader.batchsize': (2, 'did you mean train_dataloader.batch_size?'),
    'train_dataloader.dataset.data_rot': ('x', 'did you mean train_dataloader.dataset.data_root?'),
    'optim_wrapper.optimizer.learning_rate': (0.1, "has no 'learning_rate'; it takes"),
    'optim_wrapper.optimiser.lr': (0.1, 'did you mean optim_wrapper.optimizer?'),
    'default_hooks.checkpoint.intervall': (1, 'did you mean default_hooks.checkpoint.interval?'),
    'model.neck.in_channels': ('abc', 'expected a list, such as "[128,128,128,128]"'),
    'model.backbone': ('s12', 'expected settings inside of it, such as model.backbone.'),
    'model.backbone.arch.depth': (3, "model.backbone.arch is 'n12' and holds nothing"),
    'custom_hooks.99.type': ('EMAHook', 'is a list of'),
    'model.roi_head.bbox_head.reg_class_agnostic': ('nope', 'expected True or False'),
}


@pytest.mark.parametrize('key', OPTIONS)
def test_options_with_mistakes_are_refused(key):
    value, words = OPTIONS[key]
    message = refused(check_options, read(DETECTOR), {key: value})
    assert key in message and words in message


def test_options_that_change_or_add_what_there_can_be_pass():
    options = {
        'model.backbone.with_cp': True,
        'model.backbone.arch': 's12',
        'model.backbone.out_indices': (0, 1, 2, 3),
        'model.backbone.init_cfg.type': 'Pretrained',
        'model.test_cfg.rcnn.score_thr': 0.1,
        'train_cfg.val_interval': 2,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'default_hooks.checkpoint.max_keep_ckpts': 2,
        'optim_wrapper.optimizer.lr': 1,
        'optim_wrapper.accumulative_counts': 2,
        'randomness.seed': 3,
        'env_cfg.cudnn_benchmark': True,
        'load_from': 'file.pth',
        'resume': True,
    }
    check_options(read(DETECTOR), options)


CONFIGS = {
    'a type': ('model.neck.type', 'FPNN', "model.neck.type: there is no 'FPNN'; did you mean 'FPN'?"),
    'a type of ours': ('model.backbone.type', 'xcit_mm.XCIT', "did you mean 'xcit_mm.XCiT'?"),
    'an argument': ('model.backbone.drop_path_rat', 0.1, "did you mean 'drop_path_rate'?"),
    'an argument of a head': ('model.rpn_head.feat_chanels', 9, "did you mean 'feat_channels'?"),
    'an argument of a data set': ('train_dataloader.dataset.ann_fille', 'x', "did you mean 'ann_file'?"),
    'a key at the top': ('default_hook', dict(), "did you mean 'default_hooks'?"),
    'a hook': ('default_hooks.logger.type', 'LogerHook', "did you mean 'LoggerHook'?"),
    'a transform': ('train_dataloader.dataset.pipeline.2.type', 'Resise', "did you mean 'Resize'?"),
    'an argument of a transform': ('train_dataloader.dataset.pipeline.2.keep_ration', 1, "did you mean 'keep_ratio'?"),
    'a metric': ('val_evaluator.type', 'CoccoMetric', "did you mean 'CocoMetric'?"),
    'classes of a box head': ('model.roi_head.bbox_head.num_classes', 80, 'is 80, and the data (CocoDataset) has 10'),
    'classes of a mask head': ('model.roi_head.mask_head.num_classes', 9, 'is 9, and the data (CocoDataset) has 10'),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_with_mistakes_are_refused(name):
    key, value, words = CONFIGS[name]
    cfg = copy.deepcopy(read(DETECTOR))
    cfg.merge_from_dict({key: value})
    message = refused(check_config, cfg)
    assert words in message and (key.rpartition('.')[0] in message)


def test_a_data_set_in_a_data_set_is_refused():
    cfg = copy.deepcopy(read(DETECTOR))
    cfg.merge_from_dict({'val_dataloader.dataset.dataset.indices': 9})
    message = refused(check_config, cfg)
    assert "val_dataloader.dataset (of type 'CocoDataset') has a data set without a type, with indices" in message


def test_the_classes_of_a_segmentor_are_those_of_its_data():
    cfg = copy.deepcopy(read(SEGMENTOR))
    cfg.model.decode_head.num_classes = 150
    assert 'model.decode_head.num_classes is 150, and the data' in refused(check_config, cfg)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--cfg-options', 'model.backbone.patch_siz=8'], 'did you mean model.backbone.patch_size?'),
        (['--cfg-options', 'train_cfg.max_epochs=many'], 'expected a number'),
        (['--cfg-options', 'model.backbone.arch=s13'], "unknown arch 's13'; choose one of n12, t12"),
        (['--cfg-options', 'model.backbone.patch_size=12'], 'patch_size must be 4, 8 or 16, got 12'),
        (['--cfg-options', 'model.head.num_classes=7'], 'model.head.num_classes is 7, and the data (ImageNet) has 10'),
    ],
)
@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_the_tools_say_it_in_one_message(tool, arguments, words, tmp_path, run_tool, capsys):
    from xcit_mm.datasets.digits import FOLDERS

    for split in ('train', 'val'):
        for name in FOLDERS:
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            (tmp_path / 'data' / split / name / 'x.png').touch()
    (tmp_path / 'weights.pth').touch()
    checkpoint = [tmp_path / 'weights.pth'] if tool == 'test.py' else []
    config = ROOT / 'configs' / f'{CLASSIFIER}.py'
    with pytest.raises(SystemExit) as end:
        run_tool(ROOT / 'tools' / tool, config, *checkpoint, '--data-root', tmp_path / 'data', *arguments)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 1 and message.startswith('error: ') and words in message
