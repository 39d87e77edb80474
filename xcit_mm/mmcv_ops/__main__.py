"""``python -m xcit_mm.mmcv_ops {install,uninstall,status}``."""

import argparse
import sys

from . import installation


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m xcit_mm.mmcv_ops',
        description="mmcv's operators by torchvision and PyTorch, without a compiler.",
    )
    commands = parser.add_subparsers(dest='command', metavar='{install,uninstall,status}')
    install = commands.add_parser('install', help="write the operators into mmcv's folder")
    install.add_argument('--replace', action='store_true', help='set compiled operators that do not load aside')
    commands.add_parser('uninstall', help='remove them')
    commands.add_parser('status', help='say which operators come from where')
    options = vars(parser.parse_args())
    command = options.pop('command')
    if not command:
        parser.error('say what to do: install, uninstall or status')
    try:
        print(getattr(installation, command)(**options))
    except installation.InstallationError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
