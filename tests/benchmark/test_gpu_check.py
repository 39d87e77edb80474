"""The check of a GPU, tried on the CPU in sizes that mean nothing: what it compares, what it writes, when it stops."""

import json
import sys

import pytest
import torch
from mmengine.config import Config
from processes import ROOT
from torch import nn

from xcit_mm.benchmark.contenders import OURS, multiply_adds
from xcit_mm.benchmark.gpu_check import Check, Plan, checks, run, running, update_docs
from xcit_mm.benchmark.gpu_check.correctness import sync_bn
from xcit_mm.benchmark.gpu_check.detector import DIGITS, digits_records, iterations
from xcit_mm.benchmark.gpu_check.kernels import differences
from xcit_mm.benchmark.gpu_check.plan import record as as_record
from xcit_mm.benchmark.gpu_check.profiling import floor, kernel_times
from xcit_mm.benchmark.gpu_check.report import SECTIONS, markdown
from xcit_mm.benchmark.gpu_check.speed import ratios
from xcit_mm.benchmark.kernels import PARTS, Case, predicted
from xcit_mm.benchmark.settings import Setting
from xcit_mm.benchmark.whole_model import PeerPyramid
from xcit_mm.errors import UsageError
from xcit_mm.models import XCiT

pytestmark = pytest.mark.usefixtures('one_thread')
PLAN = Plan('cpu', 'n12', (32, 32), (64, 96), 1, ('bf16',), (), 1, ['timm'])


def of_sections(*sections):
    return [check for check in checks(PLAN) if check.section in sections]


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """Everything but the compiler and the detector."""
    folder = tmp_path_factory.mktemp('gpu_check')
    with pytest.MonkeyPatch.context() as patch:
        planned = [check for check in of_sections('Correctness', 'Speed', 'Profile') if 'compile' not in check.name]
        patch.setattr(running, 'checks', lambda plan: planned)
        run(PLAN, 600, folder, lambda text: None)
    return folder, json.loads((folder / 'gpu_check.json').read_text())


def test_everything_that_needs_no_gpu_is_right(found):
    _, content = found
    assert content['failed'] == 0 and not content['left_out']
    compared = {record['check'] for record in content['records'] if 'value' in record}
    assert compared == {
        'outputs and gradients, fp32',
        'outputs and gradients, bf16',
        'training step under autocast with GradScaler',
        'SyncBN alone',
        'pyramid into RoIAlign',
    }


def test_files_have_machine_ratios_and_kernels(found):
    folder, content = found
    text = (folder / 'gpu_check.md').read_text()
    assert torch.__version__ in text and content['machine']['timm']
    assert 'x |' in text and '| timm |' in text
    table = ratios([record for record in content['records'] if record['section'] == 'Speed'])
    assert {row['peer'] for row in table} == {'timm'} and all(row['times_as_fast'] > 0 for row in table)
    assert '| kernel | calls | ms | share |' in text
    profiles = [record for record in content['records'] if record['section'] == 'Profile' and 'work' in record]
    assert len(profiles) == 2 and all(record['over_floor'] > 1 for record in profiles)


def test_kernels_need_a_gpu_and_have_a_table_beside_their_prediction(found):
    _, content = found
    if not torch.cuda.is_available():
        assert [r['name'] for r in differences(PLAN)] == ['Triton and a GPU of compute capability 8.0']
    case = Case('mlp', 1, 100, 152, 384, torch.bfloat16, torch.bfloat16)
    moved, seconds = predicted(case, backward=False)
    row = dict(section='Kernels', part='mlp', mode='inference', tokens='1 x 100 x 152', bytes=moved, predicted=seconds)
    text = markdown(dict(content, records=[dict(row, seconds=2 * seconds, plain=1e-3, compiled=1e-3)]))
    assert '| mlp | inference | 1 x 100 x 152 |' in text


@pytest.mark.parametrize('part', PARTS)
def test_predicted_times_grow_with_the_tokens_and_with_a_backward_pass(part):
    case = Case(part, 1, 100, 152, 384, torch.bfloat16, torch.bfloat16)
    larger = Case(part, 8, 100, 152, 384, torch.bfloat16, torch.bfloat16)
    values = 100 * 152 * 384
    assert predicted(case, False)[0] >= 2 * 2 * values
    assert predicted(larger, False)[1] == pytest.approx(8 * predicted(case, False)[1])
    assert predicted(case, True)[1] > 1.5 * predicted(case, False)[1]


def test_what_is_wrong_counts_and_stops_nothing(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    planned = [
        Check('Correctness', 'far away', 1, lambda: iter([as_record('output', 0.5, 1e-5)])),
        Check('Correctness', 'a NaN', 1, lambda: iter([as_record('output', float('nan'), 1e-5)])),
        Check('Correctness', 'broken', 1, broken),
        Check('Correctness', 'good', 1, lambda: iter([as_record('output', 1e-7, 1e-5)])),
    ]
    monkeypatch.setattr(running, 'checks', lambda plan: planned)
    told = []
    content = run(PLAN, 60, tmp_path, told.append)
    assert content['failed'] == 3
    text = (tmp_path / 'gpu_check.md').read_text()
    assert text.count('**wrong**') == 2 and text.count('| right |') == 1
    assert '- broken: RuntimeError: CUDA error: an illegal memory access' in text


def test_budget_names_what_it_is_too_small_for(tmp_path):
    content = run(PLAN, 1e-9, tmp_path, lambda text: None)
    assert not content['records'] and len(content['left_out']) == len(checks(PLAN))
    assert 'Not measured for lack of time: Correctness: outputs' in (tmp_path / 'gpu_check.md').read_text()


def test_a_gpu_gets_every_mode_and_the_most_telling_first():
    planned = checks(Plan('cuda', peers=['timm', 'mmpretrain']))
    sections = [check.section for check in planned]
    assert set(sections) == set(SECTIONS)
    assert sections[:3] == ['Correctness'] * 3
    total = 0
    for check in planned:
        total += check.seconds
        if check.section == 'Profile':
            break
    assert total < 120, 'two minutes tell whether it is right, how fast, and where the time goes'


def test_best_mode_of_each_side_is_compared():
    def record(contender, seconds, mode, memory=None):
        setting = dict(vars(Setting('s12', 8, 224, 224, 256, 'bf16')), compiled=mode != 'eager')
        return dict(work='w', contender=contender, seconds=seconds, setting=setting, mode=mode, peak_memory=memory)

    records = [
        record(OURS, 2.0, 'eager', 10),
        record('timm', 6.0, 'eager', 30),
        record(OURS, 3.0, 'compiled'),
        record('timm', 4.0, 'compiled'),
        record('mmpretrain', 5.0, 'eager', 40),
    ]
    (row,) = ratios(records)
    assert (row['mode'], row['peer'], row['peer_mode'], row['times_as_fast']) == ('eager', 'timm', 'compiled', 2.0)
    assert row['memory_of_peer'] == pytest.approx(1 / 3)


def test_floor_is_below_what_is_computed():
    """XCA by half of the Gram matrix, instead of by queries, keys and values, is the difference."""
    setting = Setting('s12', 8, 800, 1216, dtype='bf16')
    least = floor(setting)
    assert 0.7 < least['flops'] / (2 * multiply_adds(OURS, setting)) < 1
    assert 1.0e9 < least['bytes'] < 1.6e9


@pytest.mark.parametrize('name', ['timm', 'mmpretrain'])
def test_a_peer_with_the_pyramid_gives_the_same_maps(name):
    cfg = dict(type='xcit_mm.XCiT', arch='n12', patch_size=8, out_type='pyramid')
    peer = PeerPyramid(name, cfg).eval()
    ours = XCiT('n12', 8, 'pyramid').eval()
    from xcit_mm.checkpoint.layouts import find_layout

    layout, tensors = find_layout({'state_dict': peer.model.state_dict()})
    native = {k[len('backbone.') :]: v for k, v in layout.to_native(tensors).items()}
    state = ours.state_dict()
    ours.load_state_dict({k: native.get(k, state[k]) for k in state})
    ours.pyramid.load_state_dict(peer.pyramid.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours(image), peer(image)):
            assert torch.allclose(a, b, atol=1e-4 * b.abs().max().item())


def test_detector_iterations_beside_a_peer():
    plan = Plan('cpu', 'n12', (32, 32), (64, 64), 1, ('bf16',), (), 1, ['mmpretrain'])
    records = list(iterations(plan))
    assert [record['contender'] for record in records] == [OURS, 'mmpretrain']
    assert records[0]['ratio'] == 1 and records[1]['ratio'] > 0


def test_kernels_of_a_profile_are_the_slowest_first():
    from torch.profiler import ProfilerActivity, profile

    layer = nn.Linear(512, 512)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            layer(torch.randn(256, 512))
    kernels = kernel_times(profiler.key_averages(), 'cpu')
    assert kernels[0]['seconds'] == max(kernel['seconds'] for kernel in kernels)
    assert {'aten::addmm', 'aten::randn'} & {kernel['kernel'] for kernel in kernels}


def test_scores_of_the_digits():
    lines = [dict(time=0.2, loss=1.0, step=50), dict(time=0.1, loss=0.9, step=100), dict(time=9.0, loss=1.0, step=900)]
    lines.append({'coco/bbox_mAP': 0.64, 'coco/segm_mAP': 0.1, 'step': 3})
    seconds, box, mask = digits_records(lines)
    assert seconds['value'] == pytest.approx(0.15)
    assert box['passed'] and not mask['passed']
    assert not digits_records(lines[:2])[1]['passed'], 'a run without a score is no success'
    assert Config.fromfile(ROOT / DIGITS).train_cfg.max_epochs == 3


@pytest.fixture
def page(tmp_path):
    path = tmp_path / 'performance.md'
    path.write_text('before\n<!-- gpu_check -->\nNot measured yet.\n<!-- /gpu_check -->\nafter\n')
    return path


def test_tables_go_into_the_docs(found, page):
    folder, content = found
    source = page.with_name('gpu.json')
    source.write_text(json.dumps(dict(content, plan=dict(content['plan'], device='cuda'))))
    for _ in range(2):  # a second time replaces the first
        update_docs(source, page)
        text = page.read_text()
        assert text.startswith('before\n<!-- gpu_check -->\n') and text.endswith('<!-- /gpu_check -->\nafter\n')
        assert 'Not measured yet' not in text and text.count('| times as fast |') == 1


@pytest.mark.parametrize('content, says', [('{}', 'not written'), ('nonsense', 'not written'), (None, 'of a CPU')])
def test_other_files_stay_out_of_the_docs(found, page, content, says):
    source = page.with_name('other.json')
    source.write_text(json.dumps(found[1]) if content is None else content)
    before = page.read_text()
    with pytest.raises(UsageError, match=says):
        update_docs(source, page)
    assert page.read_text() == before


def test_the_tool(run_tool, monkeypatch, tmp_path, capsys):
    few = [Check('Correctness', 'SyncBN alone', 1, lambda: sync_bn(PLAN))]
    monkeypatch.setattr(running, 'checks', lambda plan: few)
    out = run_tool(ROOT / 'tools/gpu_check.py', '--device', 'cpu', '--budget', '60', '--out-dir', tmp_path / 'out')
    assert 'SyncBN alone: right' in out and (tmp_path / 'out/gpu_check.json').exists()
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            run_tool(ROOT / 'tools/gpu_check.py')
        assert 'no CUDA device' in capsys.readouterr().err
    assert sys.exc_info()[0] is None
