"""``python -m xcit_mm``: the command ``xcit-mm``."""

from .cli import main

if __name__ == '__main__':
    main()
