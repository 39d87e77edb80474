#!/usr/bin/env python
"""Every published model: parameters, MACs and accuracies, published against computed and measured.

    tools/model_zoo.py                                        # all 66 models, about a minute
    tools/model_zoo.py --task detection --format markdown
    tools/model_zoo.py --model 'xcit_s12_*' --format csv --out s12.csv
    tools/model_zoo.py --evaluate data --weights-dir weights  # test them; a repeated call continues where it stopped

docs/models.md, docs/configs/, model-index.yml and configs/metafile.yml are written by this tool too.
"""

import argparse
import difflib
import fnmatch
import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path

from mmengine.logging import MMLogger

from xcit_mm.engine.classification import PUBLISHED_PROTOCOLS
from xcit_mm.engine.screen import without_noise
from xcit_mm.errors import UsageError, clear_errors
from xcit_mm.model_zoo import all_models, page
from xcit_mm.model_zoo.evaluate import evaluate, plan
from xcit_mm.model_zoo.families import family_pages
from xcit_mm.model_zoo.metafile import metafiles
from xcit_mm.model_zoo.tables import as_csv, as_markdown, as_text, compute, summary
from xcit_mm.published import TASKS

ROOT = Path(__file__).resolve().parents[1]
FORMATS = {'text': as_text, 'markdown': as_markdown, 'csv': as_csv}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Print the model zoo, test it, write its tables.')
    parser.add_argument('--task', nargs='+', choices=TASKS, help='only these tasks')
    parser.add_argument('--model', metavar='GLOB', help="only models whose config matches, for example '*_s12_8_*'")
    parser.add_argument('--format', choices=FORMATS, default='text')
    parser.add_argument('--out', metavar='FILE', type=Path, help='write the tables there instead of printing them')
    parser.add_argument('--update-docs', action='store_true', help='rewrite docs/models.md and docs/configs/')
    parser.add_argument(
        '--metafiles', action='store_true', help='rewrite model-index.yml and configs/metafile.yml, and print nothing'
    )
    testing = parser.add_argument_group('testing')
    testing.add_argument(
        '--evaluate',
        metavar='DATA',
        type=Path,
        help='test the models on the data in this folder: of one task, or with imagenet/, coco/ and '
        'ade/ADEChallengeData2016/ in it',
    )
    testing.add_argument(
        '--weights-dir', metavar='DIR', type=Path, help='folder with the weights (default: downloaded)'
    )
    testing.add_argument(
        '--protocol', choices=['both', *PUBLISHED_PROTOCOLS], default='both', help='for classifiers (default: both)'
    )
    testing.add_argument(
        '--out-dir',
        '--work-dir',
        dest='work_dir',
        type=Path,
        default=Path('work_dirs/model_zoo'),
        help='for results and logs',
    )
    testing.add_argument('--retry-failed', action='store_true', help='rerun the tests that failed in an earlier call')
    testing.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='settings for all configs')
    args = parser.parse_args()
    if (args.update_docs or args.metafiles) and (args.task or args.model or args.evaluate or args.out):
        parser.error('--update-docs and --metafiles write all models; use them without the other options')
    if not args.evaluate and (args.weights_dir or args.retry_failed or args.cfg_options):
        parser.error('--weights-dir, --retry-failed and --cfg-options are for testing; name the data with --evaluate')
    return args


def select(args: argparse.Namespace) -> list:
    """The models that the options name."""
    models = [model for model in all_models() if not args.task or model.task in args.task]
    if not args.model:
        return models
    names = [model.name for model in models]
    chosen = fnmatch.filter(names, args.model)
    if not chosen:
        close = difflib.get_close_matches(args.model, names, n=3, cutoff=0.3) or names[:3]
        raise UsageError(f'no model matches {args.model}; there are for example {", ".join(close)}')
    return [model for model in models if model.name in chosen]


def run_tests(models: list, args: argparse.Namespace) -> tuple:
    """Accuracies and failures; progress goes to stderr, apart from the tables."""
    protocols = PUBLISHED_PROTOCOLS if args.protocol == 'both' else [args.protocol]
    runs = plan(models, ROOT, args.evaluate, args.weights_dir, protocols, args.cfg_options)
    return evaluate(runs, ROOT, args.work_dir, args.retry_failed, lambda line: print(line, file=sys.stderr, flush=True))


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UsageError(f'{path} cannot be written: {error.strerror}') from error


def update_files(args: argparse.Namespace) -> None:
    with redirect_stdout(sys.stderr), without_noise():
        rows = compute(all_models(), ROOT)
    files = metafiles(rows) if args.metafiles else {}
    if args.update_docs:
        files[page.PATH] = page.models_page(rows)
        files.update(family_pages(ROOT))
    for path, text in files.items():
        write(ROOT / path, text)
        print(f'written: {path}')
    print(summary(rows))


def main() -> None:
    args = parse_args()
    # The libraries log every model that is built; standard output is for the tables alone.
    MMLogger.get_instance('mmengine').setLevel(logging.WARNING)
    with clear_errors():
        if args.update_docs or args.metafiles:
            update_files(args)
            return
        models = select(args)
        with redirect_stdout(sys.stderr), without_noise():
            measured, failed = run_tests(models, args) if args.evaluate else ({}, {})
            rows = compute(models, ROOT)
        for row in rows:
            row.measured = measured.get(row.model.name, {})
        text = FORMATS[args.format](rows)
        if args.out:
            write(args.out, text)
            print(summary(rows))
        else:
            print(text, end='')
            if args.format == 'csv':
                print(summary(rows), file=sys.stderr)
        if failed:
            reasons = '\n'.join(f'  {name}: {reason}' for name, reason in failed.items())
            raise UsageError(f'failed tests: {len(failed)}; once fixed, repeat with --retry-failed.\n{reasons}')


if __name__ == '__main__':
    main()
