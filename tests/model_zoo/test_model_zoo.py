"""Published numbers against computed ones, and the files that the model zoo writes."""

import csv
import importlib.util
import io
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from mmengine.analysis.complexity_analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from processes import ROOT, call, call_preloaded
from scenes import make_scenes

from xcit_mm.errors import UsageError
from xcit_mm.model_zoo import all_models, all_weights, complexity, evaluate, page, read_table, tables
from xcit_mm.model_zoo.metafile import metafiles
from xcit_mm.models import XCiT
from xcit_mm.models.xcit import ARCHS


@pytest.fixture(scope='session')
def rows():
    """All models with what is computed for them."""
    return tables.compute(all_models(), ROOT)


def of_task(rows, task):
    return [row for row in rows if row.model.task == task]


# --- the published numbers


def test_there_are_66_models_with_configs_and_addresses():
    models = all_models()
    assert [sum(m.task == task for m in models) for task in tables.TASKS] == [42, 8, 16]
    assert len({m.name for m in models}) == len({m.weights for m in models}) == 66
    for model in models:
        assert (ROOT / model.config).is_file(), model.config
        assert model.weights.startswith('https://dl.fbaipublicfiles.com/xcit/')
        # The config's own test command names the same file.
        assert model.weights in (ROOT / model.config).read_text()


def test_tables_have_numbers_and_nothing_where_nothing_was_published():
    table6 = {row['backbone']: row for row in read_table('paper_table6_ade20k')}
    assert table6['PVT-Tiny']['miou_sem_fpn'] == 35.7 and table6['PVT-Tiny']['miou_upernet'] is None
    assert table6['XCiT-T12/8']['params_m_upernet'] == 33.7
    assert {row['top1'] for row in read_table('paper_table4_ablations') if row['outcome'] == 'failed'} == {None}


def test_the_papers_table_2_and_the_model_zoo_agree():
    published = {(m.title.split()[0], m.input_size[0]): m for m in all_models() if m.variant}
    rows = [row for row in read_table('paper_table2_imagenet') if row['model'].startswith('XCiT')]
    assert len(rows) == 12
    for row in rows:
        model = published[row['model'], row['resolution']]
        assert model.metrics['top-1 full crop'] == row['top1_imagenet'], model.name
        assert model.metrics['top-1 ImageNet-V2'] == row['top1_v2']
        assert round(model.params_m) == row['params_m']


def test_reading_the_tables_needs_no_torch_and_the_package_does_not_read_them():
    code = (
        'import sys, xcit_mm; assert "xcit_mm.model_zoo" not in sys.modules; '
        'import xcit_mm.model_zoo; assert "torch" not in sys.modules'
    )
    assert call([sys.executable, '-c', code]).returncode == 0


# --- the computed numbers


def test_all_classifiers_have_the_published_parameters(rows):
    assert {r.model.name: r.parameters.total for r in rows if r.model.params} == {
        m.name: m.params for m in all_models() if m.params
    }


def test_the_published_multiply_adds_are_those_of_the_backbone_of_mmpretrain(rows):
    pytest.importorskip('mmpretrain')
    classifiers = of_task(rows, 'classification')
    assert {r.model.name: r.multiply_adds_mmpretrain for r in classifiers} == {
        r.model.name: r.model.flops for r in classifiers
    }


def test_the_layers_have_the_published_multiply_adds_and_unused_queries(rows):
    """As in the original code, class attention computes queries of the patch tokens too."""
    for row in of_task(rows, 'classification'):
        tokens = math.prod(size // row.model.patch_size for size in row.model.input_size)
        queries = 2 * tokens * ARCHS[row.model.arch]['embed_dims'] ** 2
        assert row.multiply_adds - row.model.flops == queries, row.model.name


def test_mask_rcnn_is_table_5_cut_to_one_decimal(rows):
    for row in of_task(rows, 'detection'):
        assert int(row.parameters.total / 1e5) / 10 == row.model.params_m, row.model.name
        assert round(row.parameters.total / 1e6, 2) == row.model.params_original


def test_segmentors_are_table_6_without_the_adapter_cut_to_one_decimal(rows):
    for row in of_task(rows, 'segmentation'):
        assert int((row.parameters.total - row.parameters.adapter) / 1e5) / 10 == row.model.params_m, row.model.name
        assert round(row.parameters.total / 1e6, 2) == row.model.params_original


def counts_here_and_by_mmengine(build, size):
    """By shapes alone, and by MMEngine's counter on a real forward pass."""
    with complexity.without_memory():
        model = build()
    ours = complexity.count_multiply_adds(model, size, size)
    model = build()
    model.eval()  # MMPretrain's returns nothing
    analyzer = FlopAnalyzer(model, torch.rand(1, 3, size, size))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        return ours, analyzer.total()


@pytest.mark.parametrize('out_type', ['raw', 'pyramid'])  # all is used: a trace forgets what nobody uses
def test_the_counter_counts_as_mmengine_does(out_type):
    arch = dict(embed_dims=64, depth=4, num_heads=4)
    here, mmengine = counts_here_and_by_mmengine(lambda: XCiT(arch, 8, out_type), 64)
    assert here == mmengine


def test_the_counter_counts_the_backbone_of_mmpretrain_as_mmengine_does():
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    settings = dict(embed_dims=64, depth=4, num_heads=4, patch_size=8, img_size=64)
    here, mmengine = counts_here_and_by_mmengine(lambda: backbones.XCiT(**settings), 64)
    assert here == mmengine


# --- the files that the tool writes


def test_the_page_of_models_is_the_tools(rows):
    written = (ROOT / page.PATH).read_text()
    assert page.models_page(rows) == written, 'run tools/model_zoo.py --update-docs'
    for row in rows:
        assert f'](../{row.model.config})' in written
    for weights in all_weights():
        assert f'[`{weights.name}`](' in written
    with pytest.raises(UsageError, match='need mmpretrain, mmdet and mmseg'):
        page.models_page([*rows[:-1], tables.Row(rows[-1].model, None, rows[-1].multiply_adds, None)])


def test_the_metafiles_are_the_tools_and_name_every_published_config(rows):
    for path, text in metafiles(rows).items():
        assert (ROOT / path).read_text() == text, f'run tools/model_zoo.py --metafiles ({path})'
    # Ablations, self-supervised training and linear probes have no weights of their own in the index.
    configs = [
        p.name for p in (ROOT / 'configs').glob('*.py') if re.match('(mask_rcnn_|sem_fpn_|upernet_)?xcit', p.stem)
    ]
    configs = [name for name in configs if not re.search('digits|cifar|cars|flowers|inat', name)]
    assert sorted(configs) == sorted(f'{m.name}.py' for m in all_models())


def test_openmmlabs_reader_takes_the_model_index():
    load = pytest.importorskip('modelindex.load_model_index').load
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) == []
    models = {model.name: model for model in index.models}
    model = models['xcit_s12_8_dist_384_in1k']
    assert len(models) == 66 and model.in_collection == 'XCiT'
    assert model.metadata.data['Parameters'] == 26213032 and model.metadata.data['FLOPs'] == 54923537280
    assert model.results[0].metrics['Top 1 Accuracy'] == 85.1
    assert all((ROOT / model.config).is_file() for model in index.models)


def test_mmpretrain_builds_a_model_by_its_name_in_the_index(monkeypatch):
    apis = pytest.importorskip('mmpretrain.apis')
    monkeypatch.setattr(apis.model.ModelHub, '_models_dict', {})  # another test may have registered the models
    apis.model.ModelHub.register_model_index(ROOT / 'model-index.yml', config_prefix=ROOT)
    with torch.device('meta'):
        model = apis.get_model('xcit_n12_16_in1k')
    assert type(model.backbone) is XCiT and model.head.num_classes == 1000


def test_formats_hold_the_same_models(rows):
    some = [of_task(rows, task)[0] for task in tables.TASKS]
    some[1].measured = {'box AP': 42.5}
    try:
        text, markdown = tables.as_text(some), tables.as_markdown(some)
        records = list(csv.DictReader(io.StringIO(tables.as_csv(some))))
    finally:
        some[1].measured = {}
    for row, record in zip(some, records):
        assert row.model.name in text and row.model.config in markdown and record['weights'] == row.model.weights
        assert int(record['parameters']) == row.parameters.total
        assert int(record['multiply_adds']) == row.multiply_adds
    assert '42.50 (-0.20)' in text and '42.50 (-0.20)' in markdown and records[1]['box AP measured'] == '42.5'
    assert 'Summary: parameters as published in 3 of 3 rows' in ' '.join(text.split())


def test_a_difference_is_reported_not_hidden(rows):
    row = of_task(rows, 'classification')[0]
    wrong = tables.Row(row.model, complexity.Parameters(1, 0), row.multiply_adds, row.multiply_adds)
    assert f'0 of 1 rows (–); different without an explanation: {row.model.name}' in tables.summary([wrong])
    assert 'exact in 0 of 1' in tables.summary([wrong])


# --- testing the models


@pytest.fixture(scope='module')
def tool():
    """The command line, in this process: only the tests that it starts need their own."""
    spec = importlib.util.spec_from_file_location('model_zoo_tool', ROOT / 'tools' / 'model_zoo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, 'argv', ['model_zoo.py', *(str(a) for a in arguments)])
            try:
                module.main()
            except SystemExit as end:
                return end.code
        return 0

    return run


def test_models_are_tested_one_failure_stops_none_and_a_repeated_call_goes_on(tool, tmp_path, capsys, monkeypatch):
    """Semantic FPN that calls everything background, on the embedded digits; its second model's weights are missing."""
    make_scenes(tmp_path / 'digits', train=1, val=4, size=96)
    cfg = Config.fromfile(ROOT / 'configs' / 'sem_fpn_xcit_t12_16_80k_ade20k.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    model.decode_head.conv_seg.bias.data[0] = 1000
    (tmp_path / 'weights').mkdir()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights' / 'sem_fpn_xcit_tiny_12_p16.pth')
    options = ['num_workers=0', 'persistent_workers=False', 'dataset.pipeline.1.scale=(96,96)']
    arguments = ['--model', 'sem_fpn_xcit_t12_*', '--evaluate', tmp_path / 'digits' / 'ade']
    arguments += ['--weights-dir', tmp_path / 'weights', '--work-dir', tmp_path / 'work', '--format', 'csv']
    arguments += ['--cfg-options', *(f'test_dataloader.{option}' for option in options)]

    monkeypatch.setattr(evaluate.subprocess, 'run', call_preloaded)  # the same command, without seconds of imports
    capsys.readouterr()
    assert tool(*arguments) == 1
    out, err = capsys.readouterr()
    first, second = csv.DictReader(io.StringIO(out))
    assert 1 < float(first['mIoU measured']) < 50 and second['mIoU measured'] == ''
    assert '[2/2]' in err and f'no file {tmp_path / "weights" / "sem_fpn_xcit_tiny_12_p8.pth"}' in err
    assert 'failed tests: 1' in err and '--retry-failed' in err

    monkeypatch.setattr(evaluate.subprocess, 'run', lambda *_, **__: pytest.fail('a finished test was run again'))
    assert tool(*arguments) == 1
    repeated, err = capsys.readouterr()
    assert repeated == out and err.count('from an earlier call') == 2

    # What decides the result decides whether it is known.
    with pytest.raises(pytest.fail.Exception):
        tool(*arguments, 'test_dataloader.batch_size=2')


def test_a_result_cut_off_by_a_crash_is_forgotten_and_harms_no_other(tmp_path):
    runs = [evaluate.Run(all_models()[0], None, [], {}, None, identity) for identity in 'abc']
    results = evaluate.Results(tmp_path)
    results.add(runs[0], {'mIoU': 1}, None, 1.0)
    with open(results.path, 'a') as file:
        file.write('{"identity": "b", "met')
    evaluate.Results(tmp_path).add(runs[2], None, 'broke', 1.0)
    again = evaluate.Results(tmp_path)
    assert again.get(runs[0])['metrics'] == {'mIoU': 1}
    assert again.get(runs[1]) is None and again.get(runs[2])['error'] == 'broke'


def test_a_failed_test_says_why(tmp_path):
    for text, code, reason in (
        ('loading\n\nerror: the checkpoint x.pth is\nof another arch\n', 1, 'the checkpoint x.pth is of another arch'),
        ('Traceback (most recent call last):\n  ...\nRuntimeError: boom\n', 1, 'RuntimeError: boom'),
        ('half', -9, 'ended by signal 9, as when memory runs out'),
    ):
        (tmp_path / 'test.log').write_text(text)
        assert evaluate._reason(tmp_path / 'test.log', code) == reason


def thousand_classes(folder, name):
    for i in range(1000):
        (folder / name.format(i)).mkdir(parents=True)
        (folder / name.format(i) / '0.JPEG').touch()


def test_both_protocols_of_a_classifier_are_planned_and_imagenet_v2_is_known_by_its_folders(tmp_path):
    model = [m for m in all_models() if m.name == 'xcit_s12_8_dist_384_in1k']
    thousand_classes(tmp_path / 'imagenet' / 'val', 'n{:08}')
    runs = evaluate.plan(model, ROOT, tmp_path)
    assert [run.protocol for run in runs] == ['full-crop', 'mmpretrain']
    assert [list(run.metrics) for run in runs] == [['top-1 full crop'], ['top-1 MMPretrain', 'top-5 MMPretrain']]
    assert str(tmp_path / 'imagenet') in runs[0].arguments and runs[0].identity != runs[1].identity
    thousand_classes(tmp_path / 'v2', '{}')
    (run,) = evaluate.plan(model, ROOT, tmp_path / 'v2')
    assert list(run.metrics) == ['top-1 ImageNet-V2']


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--model', 'xcit_s13_8_in1k'], 'xcit_s12_8_in1k'),
        (['--task', 'detection', '--evaluate', 'gone'], 'there is no folder gone'),
        (['--task', 'detection', '--evaluate', '.'], 'no test data for detection'),
        (['--task', 'detection', '--evaluate', '.', '--weights-dir', 'gone'], '--weights-dir'),
    ],
)
def test_mistakes_are_explained(tool, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tool(*arguments) == 1
    assert words in capsys.readouterr().err


def test_results_are_read_from_what_mmengine_wrote(tmp_path, monkeypatch):
    """The newest file of metrics, not one of an earlier test in the same folder."""

    def finish(command, **_):
        folder = tmp_path / '20240102_000000'
        folder.mkdir()
        (folder / '20240102_000000.json').write_text(json.dumps({'mIoU': 41.0}))
        return subprocess.CompletedProcess(command, 0)

    (tmp_path / '20240101_000000').mkdir()
    (tmp_path / '20240101_000000' / '20240101_000000.json').write_text('{}')
    monkeypatch.setattr(evaluate.subprocess, 'run', finish)
    run = evaluate.Run(all_models()[-1], None, [], evaluate.METRICS['segmentation'], None, 'x')
    assert evaluate._test(run, ROOT, tmp_path) == ({'mIoU': 41.0}, None)
