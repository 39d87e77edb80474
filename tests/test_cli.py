"""The command ``xcit-mm``: its verbs, what it does without importing anything, and ``doctor``."""

import os
import subprocess
import sys

import pytest

from xcit_mm import cli
from xcit_mm.cli import doctor

# What takes seconds to import; the list of verbs must not.
HEAVY = ('torch', 'mmengine', 'mmcv', 'numpy', 'matplotlib')


def run(*arguments, capsys):
    cli.main([str(word) for word in arguments])
    return capsys.readouterr()


@pytest.fixture(autouse=True)
def argv(monkeypatch):
    """The command sets it, as a script has it."""
    monkeypatch.setattr(sys, 'argv', ['xcit-mm'])


def test_the_list_of_verbs_imports_nothing_heavy():
    code = (
        'import sys; from xcit_mm.cli import main; main(["--help"]); '
        f'print([name for name in {HEAVY!r} if name in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    *listed, imported = done.stdout.strip().splitlines()
    assert imported == '[]'
    for verb in ('train', 'test', 'infer', 'export', 'convert', 'attention', 'benchmark', 'models', 'doctor'):
        assert any(line.split()[:1] == [verb] for line in listed), verb


@pytest.mark.parametrize('verb', [name for name in cli.VERBS if cli.VERBS[name].is_there])
def test_help_of_each_verb_fits_a_screen_and_has_an_example(verb, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '120')
    with pytest.raises(SystemExit) as end:
        cli.main([verb, '--help'])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert len(shown.splitlines()) <= 60
    examples = [line for line in shown.splitlines() if f'xcit-mm {verb} ' in line and 'usage' not in line]
    assert examples, shown
    assert 'tools/' not in ''.join(examples)
    assert f'usage: xcit-mm {verb}' in shown


def test_a_verb_that_is_none(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(['tran'])
    assert end.value.code == 2
    assert "no verb 'tran'; did you mean train?" in capsys.readouterr().err


def test_a_verb_whose_module_is_not_there_is_not_offered(monkeypatch, capsys):
    monkeypatch.setitem(cli.VERBS, 'fly', cli.Verb('to the moon', module='apis.flying'))
    assert 'fly' not in run('--help', capsys=capsys).out
    with pytest.raises(SystemExit):
        cli.main(['fly'])


def test_a_tool_gets_its_arguments_and_its_own_errors(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(['train', str(tmp_path / 'no_config.py')])
    assert end.value.code == 1
    assert 'there is no config file' in capsys.readouterr().err


def test_models_lists_published_weights(capsys):
    shown = run('models', '*s12_16*', '--source', 'XCiT', capsys=capsys).out
    assert 'mask_rcnn_xcit_s12_16_3x_coco' in shown
    assert 'box AP 45.3' in shown
    with pytest.raises(SystemExit):
        cli.main(['models', 'resnet'])
    assert "no published weights match 'resnet'" in capsys.readouterr().err


def test_doctor_says_what_is_there(capsys):
    shown = run('doctor', capsys=capsys).out
    assert 'torch' in shown
    assert 'mmcv operators' in shown
    assert 'Everything required is installed.' in shown


def test_doctor_names_the_command_for_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(doctor.REQUIRED, 'not_there_at_all', 'pip install it')
    monkeypatch.setitem(doctor.OPTIONAL, 'nor_this', 'nothing much')
    with pytest.raises(SystemExit) as end:
        cli.main(['doctor'])
    shown = capsys.readouterr().out
    assert end.value.code == 1
    assert '!!  not_there_at_all is not installed\n                     -> pip install it' in shown
    assert 'nor_this         is not installed; for nothing much' in shown


def test_doctor_names_distributions_that_overwrite_each_other(monkeypatch):
    monkeypatch.setattr(doctor, '_is_installed', lambda name: name in ('onedl-mmcv', 'mmcv-lite'))
    (found,) = doctor._families()
    assert found.name == 'mmcv'
    assert found.mend.startswith('pip uninstall -y onedl-mmcv mmcv-lite')


def test_an_installation_has_the_command(installed, tmp_path):
    """Its tools come from ``xcit_mm/.mim``, and pip makes the script."""
    script = installed / 'bin' / 'xcit-mm'
    assert script.is_file()
    environment = {**os.environ, 'PYTHONPATH': str(installed), 'COLUMNS': '120'}
    done = subprocess.run(
        [sys.executable, script, 'infer', '--help'], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'usage: xcit-mm infer' in done.stdout
    assert (
        str(installed)
        in subprocess.run(
            [sys.executable, '-c', 'import xcit_mm.cli as c; print(c._tool_path("infer"))'],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        ).stdout
    )
