"""``xcit-mm models``: the published weights, as a table."""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='List the published weights of XCiT. xcit-mm infer and export take the names; everything that '
        'takes a checkpoint takes xcit_mm://NAME.',
        epilog="example: xcit-mm models '*s12_16*' --source XCiT",
    )
    parser.add_argument('pattern', nargs='?', default='*', help="such as 'mask_rcnn_*' (default: all)")
    parser.add_argument('--source', choices=('XCiT', 'timm', 'MMPretrain', 'DINO', 'RobustBench'), help='who published')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from ..errors import UsageError, clear_errors
    from ..package import list_models, model_info

    with clear_errors():
        names = list_models(args.pattern, args.source) or list_models(f'*{args.pattern}*', args.source)
        if not names:
            raise UsageError(f'no published weights match {args.pattern!r}; xcit-mm models lists all')
        width = max(map(len, names))
        print(f'{"name":{width}}  {"what":11} {"source":11} {"data":24} {"published":>18}  licence')
        for name in names:
            one = model_info(name)
            number = f'{one.metric} {one.value:g}' if one.value is not None else ''
            print(f'{name:{width}}  {one.holds:11} {one.source:11} {one.data:24} {number:>18}  {one.licence}')
