"""``python -m endauda_cli``."""

import sys

from endauda_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
